// Run as a job: tries what a job must not be able to do, and prints a line for each attempt: "refused NAME: why" or
// "GOT NAME". Arguments: the cgroup root, the user of this job and its id, the broker's pid, another user's process,
// its cgroup below the root, its directory, the rendezvous socket, a set-uid root copy of id(1).
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

namespace {

constexpr long kBit32 = 1L << 32;  // the kernel looks at 32 bits of an int; a filter sees 64

// `result` is what a system call returned: below 0 is a refusal.
void Report(const std::string& name, long result) {
  const int error = errno;
  if (result < 0) {
    std::printf("refused %s: %s\n", name.c_str(), strerror(error));
  } else {
    std::printf("GOT %s\n", name.c_str());
  }
  std::fflush(stdout);
}

void TryOpen(const std::string& path, int flags) { Report("open " + path, open(path.c_str(), flags)); }

void TryWrite(const std::string& path, const std::string& text) {
  const int file = open(path.c_str(), O_WRONLY);
  Report("write " + path, file < 0 ? -1 : write(file, text.data(), text.size()));
}

// In a process of its own, which a filter may kill.
void TryInChild(const std::string& name, const auto& attempt) {
  const pid_t child = fork();
  if (child == 0) _exit(attempt() < 0 ? 1 : 0);
  int status = 0;
  waitpid(child, &status, 0);
  errno = WIFSIGNALED(status) ? EPERM : EACCES;
  Report(name, status == 0 ? 0 : -1);
}

void Cgroups(const std::string& root, const std::string& user, const std::string& id, const std::string& other) {
  const std::string pid = std::to_string(getpid());
  for (const std::string& group : {root + "/..", root, root + "/" + user, root + "/" + user + "/" + id}) {
    TryWrite(group + "/cgroup.procs", pid);
    TryWrite(group + "/cgroup.threads", pid);
    TryWrite(group + "/cgroup.subtree_control", "+pids");
    Report("mkdir in " + group, mkdir((group + "/mine").c_str(), 0755));
    if (group == root + "/..") continue;
    TryWrite(group + "/cgroup.kill", "1");
    TryWrite(group + "/cgroup.freeze", "1");
    for (const char* file : {"cpu.max", "memory.max", "pids.max", "io.max"}) TryWrite(group + "/" + file, "max");
    Report("chmod " + group, chmod(group.c_str(), 0777));
    Report("rmdir " + group, rmdir(group.c_str()));
  }
  TryOpen(root + "/" + other, O_RDONLY);
  TryOpen(root + "/" + other + "/cgroup.procs", O_RDONLY);
  TryWrite(root + "/" + other + "/cgroup.procs", pid);
}

void Namespaces() {
  constexpr std::array<std::pair<const char*, long>, 8> kKinds{{{"user", CLONE_NEWUSER},
                                                                {"mount", CLONE_NEWNS},
                                                                {"cgroup", CLONE_NEWCGROUP},
                                                                {"uts", CLONE_NEWUTS},
                                                                {"ipc", CLONE_NEWIPC},
                                                                {"pid", CLONE_NEWPID},
                                                                {"net", CLONE_NEWNET},
                                                                {"time", CLONE_NEWTIME}}};
  for (const auto& [name, flag] : kKinds) {
    Report(std::string("unshare ") + name, syscall(SYS_unshare, flag));
    Report(std::string("unshare, bit 32, ") + name, syscall(SYS_unshare, flag | kBit32));
    if (flag == CLONE_NEWTIME) continue;  // means another thing to clone
    const long child = syscall(SYS_clone, flag | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    Report(std::string("clone ") + name, child);
  }
  clone_args arguments{};
  arguments.flags = CLONE_NEWUSER;
  arguments.exit_signal = SIGCHLD;
  const long child = syscall(SYS_clone3, &arguments, sizeof(arguments));
  if (child == 0) _exit(0);
  Report("clone3 user", child);
  const int own = open("/proc/self/ns/uts", O_RDONLY);
  Report("setns", syscall(SYS_setns, own, 0));
}

void Mounts() {
  Report("mount tmpfs", mount("none", "/mnt", "tmpfs", 0, nullptr));
  Report("bind mount", mount("/", "/mnt", nullptr, MS_BIND, nullptr));
  Report("umount", umount2("/proc", MNT_DETACH));
  Report("pivot_root", syscall(SYS_pivot_root, ".", "."));
  Report("chroot", chroot("."));
  Report("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
  Report("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
  Report("mount_setattr", syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, nullptr, 0));
}

// `pid` is of another uid.
void OthersProcess(const std::string& what, pid_t pid) {
  const std::string proc = "/proc/" + std::to_string(pid) + "/";
  for (const char* file : {"mem", "environ", "maps", "fd", "stack", "syscall", "auxv"}) TryOpen(proc + file, O_RDONLY);
  for (const char* link : {"exe", "cwd", "root"}) TryOpen(proc + link, O_RDONLY);
  for (const char* space : {"mnt", "net", "user", "cgroup"}) TryOpen(proc + "ns/" + space, O_RDONLY);
  TryWrite(proc + "oom_score_adj", "1000");
  Report("ptrace attach " + what, ptrace(PTRACE_ATTACH, pid, nullptr, nullptr));
  Report("ptrace seize " + what, ptrace(PTRACE_SEIZE, pid, nullptr, nullptr));
  char byte = 0;
  const iovec here{&byte, 1}, there{&byte, 1};
  Report("process_vm_readv " + what, process_vm_readv(pid, &here, 1, &there, 1, 0));
  Report("process_vm_writev " + what, process_vm_writev(pid, &here, 1, &there, 1, 0));
  const long pidfd = syscall(SYS_pidfd_open, pid, 0);
  Report("pidfd_getfd " + what, pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, 0, 0));
  Report("pidfd_send_signal " + what, syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, nullptr, 0));
  Report("kill " + what, kill(pid, SIGCONT));
  Report("prlimit " + what, syscall(SYS_prlimit64, pid, RLIMIT_CORE, nullptr, &here));
  Report("setpriority " + what, setpriority(PRIO_PROCESS, static_cast<id_t>(pid), 19));
  Report("sched_setaffinity " + what, syscall(SYS_sched_setaffinity, pid, sizeof(byte), &byte));
}

void Identity(const std::string& setuid_id) {
  Report("setuid 0", setuid(0));
  Report("setresuid 0", setresuid(0, 0, 0));
  Report("setgid 0", setgid(0));
  const gid_t root = 0;
  Report("setgroups", static_cast<int>(syscall(SYS_setgroups, 1, &root)));
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct all[2]{{~0U, ~0U, ~0U}, {~0U, ~0U, ~0U}};
  Report("capset", syscall(SYS_capset, &header, all));
  Report("ambient capability", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
  Report("no_new_privs off", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
  Report("seccomp off", prctl(PR_SET_SECCOMP, 0, nullptr));
  FILE* const output = popen((setuid_id + " -u").c_str(), "r");
  char line[64] = {};
  const bool printed = output != nullptr && std::fgets(line, sizeof(line), output) != nullptr;
  errno = EPERM;
  Report("uid 0 by a set-uid copy of id", printed && atoi(line) == static_cast<int>(getuid()) ? -1 : 0);
}

void ForbiddenCalls() {
  Report("add_key", syscall(SYS_add_key, "user", "x", "x", 1, KEY_SPEC_SESSION_KEYRING));
  Report("request_key", syscall(SYS_request_key, "user", "x", nullptr, 0));
  Report("keyctl", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
  bpf_attr map{};
  map.map_type = BPF_MAP_TYPE_ARRAY;
  map.key_size = map.value_size = 4;
  map.max_entries = 1;
  Report("bpf", syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof(map)));
  perf_event_attr event{};
  event.size = sizeof(event);
  Report("perf_event_open", syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
  Report("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC | 1));
  char parameters[256] = {};
  Report("io_uring_setup", syscall(SYS_io_uring_setup, 4, parameters));
  Report("io_uring_enter", syscall(SYS_io_uring_enter, 0, 0, 0, 0, nullptr, 0));
  Report("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, parameters, O_RDONLY));
  Report("init_module", syscall(SYS_init_module, parameters, 1, ""));
  Report("finit_module", syscall(SYS_finit_module, 0, "", 0));
  Report("delete_module", syscall(SYS_delete_module, "x", 0));
  Report("kexec_load", syscall(SYS_kexec_load, 0, 0, nullptr, 0));
  Report("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, RB_DISABLE_CAD, nullptr));
  Report("swapoff", syscall(SYS_swapoff, "/none"));
  Report("syslog", syscall(SYS_syslog, 3, parameters, sizeof(parameters)));
  Report("acct", syscall(SYS_acct, nullptr));
  Report("quotactl", syscall(SYS_quotactl, 0, "/", 0, parameters));
  Report("sethostname", sethostname("x", 1));
  Report("vhangup", vhangup());
  timex nothing{};
  Report("adjtimex", adjtimex(&nothing));
  const timespec epoch{};
  Report("clock_settime", clock_settime(CLOCK_REALTIME, &epoch));
#ifdef __x86_64__
  Report("iopl", syscall(SYS_iopl, 3));
  Report("ioperm", syscall(SYS_ioperm, 0, 1, 1));
  TryInChild("a call of the 32-bit table", [] {
    long result = 20;  // getpid there
    asm volatile("int $0x80" : "+a"(result) : : "memory");
    return result;
  });
  TryInChild("a call of the x32 table", [] { return syscall(0x40000000L | SYS_getpid); });
#endif
}

void Sockets(const std::string& rendezvous) {
  for (const auto& [name, family] : {std::pair<const char*, long>{"packet", AF_PACKET},
                                     {"vsock", AF_VSOCK},
                                     {"alg", AF_ALG},
                                     {"bluetooth", AF_BLUETOOTH},
                                     {"can", AF_CAN},
                                     {"key", AF_KEY},
                                     {"tipc", AF_TIPC},
                                     {"xdp", AF_XDP}}) {
    for (const long type : {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET}) {
      Report("socket " + std::string(name) + " " + std::to_string(type), syscall(SYS_socket, family, type, 0));
      Report("socket, bit 32, " + std::string(name), syscall(SYS_socket, family | kBit32, type, 0));
    }
  }
  Report("raw socket", socket(AF_INET, SOCK_RAW, 1));
  const int client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  rendezvous.copy(address.sun_path, sizeof(address.sun_path) - 1);
  Report("the rendezvous socket", connect(client, reinterpret_cast<const sockaddr*>(&address), sizeof(address)));
  Report("unlink the rendezvous socket", unlink(rendezvous.c_str()));
}

void Terminals() {
  char typed = 'x';
  Report("/dev/tty", open("/dev/tty", O_RDWR));
  const int own = open("/dev/ptmx", O_RDWR | O_NOCTTY);
  for (const int terminal : {0, own}) {
    Report("TIOCSTI", ioctl(terminal, TIOCSTI, &typed));
    Report("TIOCSTI, bit 32", syscall(SYS_ioctl, terminal, TIOCSTI | kBit32, &typed));
    Report("TIOCLINUX", ioctl(terminal, TIOCLINUX, &typed));
  }
}

void Limits() {
  TryWrite("/proc/self/oom_score_adj", "-1");
  for (const int resource : {RLIMIT_CORE, RLIMIT_NPROC}) {
    rlimit limit{RLIM_INFINITY, RLIM_INFINITY};
    Report("raise limit " + std::to_string(resource), setrlimit(static_cast<__rlimit_resource>(resource), &limit));
  }
  Report("nice -1", setpriority(PRIO_PROCESS, 0, -1));
  const sched_param first{1};
  Report("realtime", sched_setscheduler(0, SCHED_FIFO, &first));
}

void Files(const std::string& other_directory) {
  TryOpen(other_directory, O_RDONLY);
  TryWrite(other_directory + "/mine", "x");
  TryOpen(other_directory + "/..", O_RDWR | O_TMPFILE);
  TryOpen("/dev/mem", O_RDONLY);
  TryOpen("/dev/kmsg", O_WRONLY);
  TryOpen("/etc/shadow", O_RDONLY);
  TryWrite("/proc/sysrq-trigger", "h");
  TryWrite("/proc/sys/kernel/core_pattern", "x");
  Report("mknod", mknod("device", S_IFBLK | 0600, makedev(8, 0)));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 10) return 2;
  Cgroups(argv[1], argv[2], argv[3], argv[6]);
  Namespaces();
  Mounts();
  OthersProcess("the broker", atoi(argv[4]));
  OthersProcess("another user's job", atoi(argv[5]));
  OthersProcess("init", 1);
  Identity(argv[9]);
  ForbiddenCalls();
  Sockets(argv[8]);
  Terminals();
  Limits();
  Files(argv[7]);
  std::printf("done\n");
  return 0;
}
