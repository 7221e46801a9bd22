#include "broker/spawn.h"

#include <grp.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <climits>
#include <csignal>

namespace jobworker {
namespace {
// All that the child needs, made before clone: after it, only async-signal-safe calls.
struct Plan {
  const User& user;
  const char* directory;
  const std::vector<std::string>& candidates;
  std::vector<char*> argv, envp;
  cap_t no_capabilities;
  std::array<int, 4> ends;  // stdin, stdout, stderr, status
};

// ENOSYS: the C libraries then use clone, whose flags the broker's own filter sees, as it does other architectures.
sock_filter no_clone3[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                           BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
                           BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
                           BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
const sock_fprog kNoClone3{std::size(no_clone3), no_clone3};

// Its read and its write end. Non-blocking ours alone, which is the first or the second: a job does not expect EAGAIN.
// The pipe is root's; a job that opens /dev/stderr or /dev/stdin anew needs the right to.
std::array<UniqueFd, 2> MakePipe(int leaf, size_t ours = 0) {
  int ends[2];
  OrThrow(pipe2(ends, O_CLOEXEC), "pipe2");
  std::array<UniqueFd, 2> pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
  OrThrow(fcntl(ends[ours], F_SETFL, O_NONBLOCK) | fchmod(ends[0], ours == 0 ? 0622 : 0644), "set up a pipe");
  Keep(pipe[ours], leaf);
  return pipe;
}

// A file in memory that nobody can execute, where the kernel knows the flag (Linux 6.3), with `text` at kJournalStart.
UniqueFd MakeMemory(std::string_view text) {
  constexpr unsigned kNoExecSeal = 8;  // MFD_NOEXEC_SEAL
  int fd = memfd_create("job", MFD_CLOEXEC | kNoExecSeal);
  if (fd < 0 && errno == EINVAL) fd = memfd_create("job", MFD_CLOEXEC);
  UniqueFd memory(OrThrow(fd, "memfd_create"));
  errno = ENOSPC;  // when it takes less than all
  const ssize_t written = text.empty() ? 0 : pwrite(memory.Get(), text.data(), text.size(), kJournalStart);
  OrThrow(written == std::ssize(text) ? 0 : -1, "write a journal");
  return memory;
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& string : strings) pointers.push_back(const_cast<char*>(string.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// Up to the first close_range the table of descriptors is the broker's, and nothing may be changed in it. Then it is
// our own, up to `status`, the highest of ours; what other children are given is closed in it at once.
bool SetUpSession(const Plan& plan) {
  for (int number = 1; number < NSIG; ++number) (void)signal(number, SIG_DFL);
  const sigset_t no_signals{};
  umask(077);
  const auto [in, out, err, status] = plan.ends;
  const auto highest = static_cast<unsigned>(status);
  const ChildFailure none{};
  return setsid() >= 0 && sigprocmask(SIG_SETMASK, &no_signals, nullptr) == 0 &&
         close_range(highest + 1, ~0U, CLOSE_RANGE_UNSHARE) == 0 && dup2(in, 0) == 0 && dup2(out, 1) == 1 &&
         dup2(err, 2) == 2 && close_range(3, highest - 1, 0) == 0 && write(status, &none, sizeof(none)) > 0;
}

bool SetUpResources(uint64_t pids) {
  rlimit files{}, processes{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0 || getrlimit(RLIMIT_NPROC, &processes) != 0) return false;
  files.rlim_cur = std::min<rlim_t>(files.rlim_max, 1024);
  processes.rlim_cur = processes.rlim_max = std::min<rlim_t>(processes.rlim_max, pids);  // behind pids.max, by uid
  return setrlimit(RLIMIT_NOFILE, &files) == 0 && setrlimit(RLIMIT_NPROC, &processes) == 0;
}

// Groups first, user last: after setresuid there is no right to the others. Read back, because a set*id call with -1
// succeeds and changes nothing.
bool BecomeUser(const User& user, cap_t no_capabilities) {
  const auto uid = static_cast<uid_t>(user.uid);
  const auto gid = static_cast<gid_t>(user.gid);
  uid_t uids[3] = {};
  gid_t gids[3] = {};
  if (setgroups(0, nullptr) != 0 || setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0 ||
      getresuid(&uids[0], &uids[1], &uids[2]) != 0 || getresgid(&gids[0], &gids[1], &gids[2]) != 0 ||
      cap_set_proc(no_capabilities) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return false;
  }
  for (int i = 0; i < 3; ++i) {
    if (uids[i] == 0 || uids[i] != uid || gids[i] == 0 || gids[i] != gid) return false;
  }
  return getgroups(0, nullptr) == 0;
}

void Exec(const Plan& plan) {
  int worst = ENOENT;
  for (const std::string& path : plan.candidates) {
    (void)execve(path.c_str(), plan.argv.data(), plan.envp.data());
    if (errno != ENOENT && errno != ENOTDIR) worst = errno;
    if (worst != ENOENT && worst != EACCES) break;
  }
  errno = worst;
}

[[noreturn]] void RunChild(const Plan& plan) {
  const User& user = plan.user;
  Stage stage = Stage::kSetUp;
  bool ready = SetUpSession(plan) && SetUpResources(user.ceiling[kPidsLimit]);
  if (ready) stage = Stage::kIdentity, ready = BecomeUser(user, plan.no_capabilities);
  // As the user, so that a directory the user may not enter is not entered.
  if (ready) stage = Stage::kDirectory, ready = chdir(user.directory.c_str()) == 0 && chdir(plan.directory) == 0;
  if (ready) stage = Stage::kFilter, ready = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &kNoClone3) == 0;
  if (ready) stage = Stage::kExec, Exec(plan);
  const ChildFailure failure{stage, errno != 0 ? errno : EPERM};
  (void)!write(plan.ends[3], &failure, sizeof(failure));
  _exit(127);
}
}  // namespace

std::vector<std::string> JobEnvironment(const User& user, const Start& start) {
  std::vector<std::string> environment = {"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + user.directory};
  for (const char* key : {"USER=", "LOGNAME="}) environment.push_back(key + start.key.user);
  for (const char* fixed : {"SHELL=/bin/sh", "LANG=C.UTF-8"}) environment.emplace_back(fixed);
  environment.push_back("JOB_ID=" + std::to_string(start.key.id));
  for (const std::string& entry : start.env) {
    const std::string key = entry.substr(0, entry.find('=') + 1);
    std::erase_if(environment, [&](const std::string& other) { return other.starts_with(key); });
    environment.push_back(entry);
  }
  return environment;
}

std::vector<std::string> ExecCandidates(const std::string& command, const std::vector<std::string>& environment) {
  // A name that is too long for any file is not multiplied by the length of PATH.
  if (command.find('/') != std::string::npos || command.size() > NAME_MAX) return {command};
  std::vector<std::string> candidates;
  for (const std::string& entry : environment) {
    if (!entry.starts_with("PATH=")) continue;
    for (size_t at = 5, end = 0; end != std::string::npos; at = end + 1) {
      end = entry.find(':', at);
      const std::string directory = entry.substr(at, end - at);
      candidates.push_back((directory.empty() ? "." : directory) + "/" + command);
    }
  }
  return candidates;
}

Child Spawn(const User& user, const Start& start, int leaf, Stage& stage) {
  stage = Stage::kPipe;
  auto [out, child_out] = MakePipe(leaf);
  auto [err, child_err] = MakePipe(leaf);
  auto [status, child_status] = MakePipe(leaf);
  std::array in = {UniqueFd(OrThrow(open("/dev/null", O_RDONLY | O_CLOEXEC), "open /dev/null")), UniqueFd()};
  if (start.want_stdin != 0) in = MakePipe(leaf, 1);
  ByteIo origin;
  origin.Bytes(Encode(start), 0);
  JobDescriptors given{std::move(out), std::move(err), MakeMemory(""), MakeMemory(origin.Take()), std::move(in[1])};
  for (const size_t journal : {kJournalData, kJournalIndex}) Keep(given[journal], leaf);
  const auto descriptors = std::make_shared<JobDescriptors>(std::move(given));
  Keep(child_status, std::max({in[0].Get(), child_out.Get(), child_err.Get()}));
  UniqueFd pidfd(OrThrow(fcntl(leaf, F_DUPFD_CLOEXEC, leaf), "descriptors"));  // for its number
  static const cap_t no_capabilities = cap_init();
  const std::vector<std::string> environment = JobEnvironment(user, start);
  const std::vector<std::string> candidates = ExecCandidates(start.argv[0], environment);
  const Plan plan{user,
                  start.directory.empty() ? "." : start.directory.c_str(),
                  candidates,
                  Pointers(start.argv),
                  Pointers(environment),
                  no_capabilities,
                  {in[0].Get(), child_out.Get(), child_err.Get(), child_status.Get()}};
  int low_pidfd = -1;
  clone_args arguments{};
  arguments.flags = CLONE_PIDFD | CLONE_INTO_CGROUP | CLONE_FILES;
  arguments.pidfd = reinterpret_cast<uintptr_t>(&low_pidfd);
  arguments.exit_signal = SIGCHLD;
  arguments.cgroup = static_cast<unsigned>(leaf);
  stage = Stage::kClone;
  if (OrThrow(static_cast<int>(syscall(SYS_clone3, &arguments, sizeof(arguments))), "clone3") == 0) RunChild(plan);
  for (UniqueFd* end : {&in[0], &child_out, &child_err, &child_status}) (void)end->Release();
  (void)dup3(UniqueFd(low_pidfd).Get(), pidfd.Get(), O_CLOEXEC);
  return {std::move(pidfd), descriptors, std::move(status), plan.ends};
}
}  // namespace jobworker
