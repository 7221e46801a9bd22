#include "broker/privileges.h"

#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/capability.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <memory>
#include <string>

#include "common/unique_fd.h"

namespace jobworker {
namespace {
// SETUID, SETGID: become the job's user in the child. KILL: signal a job, which has another uid. cgroupfs belongs to
// uid 0 and needs none.
constexpr cap_value_t kKept[] = {CAP_SETUID, CAP_SETGID, CAP_KILL};

// The broker makes none of these calls, and no job is meant to. Separated by blanks.
constexpr std::string_view kRefused =
    "mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr setns swapon "
    "swapoff reboot kexec_load kexec_file_load init_module finit_module delete_module add_key request_key keyctl iopl "
    "ioperm bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register open_by_handle_at quotactl "
    "quotactl_fd acct settimeofday clock_settime clock_adjtime adjtimex syslog vhangup nfsservctl uselib "
    "lookup_dcookie sethostname setdomainname ";

int AddRefusals(scmp_filter_ctx filter) {
  int failed = 0;
  for (size_t at = 0; at < kRefused.size(); at = kRefused.find(' ', at) + 1) {
    const std::string name(kRefused.substr(at, kRefused.find(' ', at) - at));
    const int number = seccomp_syscall_resolve_name(name.c_str());
    if (number != __NR_SCMP_ERROR) failed |= seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), number, 0);
  }
  // Of these arguments the kernel looks at 32 bits, so do we: else bit 32 would be a way past the filter.
  for (const int request : {TIOCSTI, TIOCLINUX}) {
    const scmp_arg_cmp is{1, SCMP_CMP_MASKED_EQ, UINT32_MAX, static_cast<scmp_datum_t>(request)};
    failed |= seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(ioctl), 1, &is);
  }
  for (unsigned family = 0; family < AF_MAX; ++family) {
    if (family == AF_UNIX || family == AF_INET || family == AF_INET6 || family == AF_NETLINK) continue;
    const scmp_arg_cmp is{0, SCMP_CMP_MASKED_EQ, UINT32_MAX, family};
    failed |= seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, &is);
  }
  // No namespaces, whose root could mount and more. The bit of CLONE_NEWTIME means something else to clone. No filter
  // can see the flags of clone3, which the broker needs: its children take that from themselves.
  for (const unsigned flag :
       std::initializer_list<unsigned>{CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER,
                                       CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWTIME}) {
    const scmp_arg_cmp is_set{0, SCMP_CMP_MASKED_EQ, flag, flag};
    failed |= seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(unshare), 1, &is_set);
    if (flag == CLONE_NEWTIME) continue;
    failed |= seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1, &is_set);
  }
  return failed;
}

void KeepCapabilities() {
  // All of them: the broker executes nothing, and its children are to have none.
  for (cap_value_t cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; ++cap) {
    OrThrow(cap_drop_bound(cap), "drop a capability from the bounding set");
  }
  const std::unique_ptr<_cap_struct, decltype(&cap_free)> caps(cap_init(), &cap_free);
  for (const cap_flag_t set : {CAP_PERMITTED, CAP_EFFECTIVE}) {
    OrThrow(cap_set_flag(caps.get(), set, std::size(kKept), kKept, CAP_SET), "cap_set_flag");
  }
  OrThrow(cap_reset_ambient() | cap_set_proc(caps.get()), "keep SETUID, SETGID and KILL");
}
}  // namespace

void NarrowDescriptors(unsigned first, unsigned count) {
  for (int fd = 0; fd <= 2; ++fd) {
    if (fcntl(fd, F_GETFD) < 0) OrThrow(open("/dev/null", O_RDWR) - fd, "open /dev/null");  // takes the lowest free
  }
  rlimit files{};
  OrThrow(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
  files.rlim_cur = files.rlim_max;
  OrThrow(setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
  OrThrow((first > 3 ? close_range(3, first - 1, 0) : 0) | close_range(first + count, ~0U, 0), "close descriptors");
  if (count > 0) OrThrow(close_range(first, first + count - 1, CLOSE_RANGE_CLOEXEC), "mark descriptors");
}

void NarrowPrivileges() {
  // While CAP_SYS_RESOURCE is here: otherwise what it is now stays a floor, to which every job could go back.
  const UniqueFd oom(OrThrow(open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC), "open oom_score_adj"));
  char sign = 0;
  OrThrow(static_cast<int>(read(oom.Get(), &sign, 1)), "read oom_score_adj");
  if (sign == '-') OrThrow(static_cast<int>(pwrite(oom.Get(), "0", 1, 0)), "set oom_score_adj");
  const rlimit none{0, 0};
  OrThrow(setrlimit(RLIMIT_CORE, &none) | prctl(PR_SET_DUMPABLE, 0) | prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "narrow");
  KeepCapabilities();
  const std::unique_ptr<void, decltype(&seccomp_release)> filter(seccomp_init(SCMP_ACT_ALLOW), &seccomp_release);
  errno = EINVAL;
  OrThrow(-static_cast<int>(filter == nullptr || AddRefusals(filter.get()) != 0), "build the seccomp filter");
  OrThrow(seccomp_load(filter.get()), "load the seccomp filter");
}
}  // namespace jobworker
