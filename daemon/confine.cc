#include "daemon/confine.h"

#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>
#include <seccomp.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "daemon/because.h"

namespace jobworker {

namespace {

constexpr const char* kRefused[] = {"execve",
                                    "execveat",
                                    "ptrace",
                                    "process_vm_readv",
                                    "process_vm_writev",
                                    "pidfd_getfd",
                                    "mount",
                                    "umount2",
                                    "pivot_root",
                                    "chroot",
                                    "move_mount",
                                    "open_tree",
                                    "fsopen",
                                    "fsmount",
                                    "mount_setattr",
                                    "setns",
                                    "unshare",
                                    "init_module",
                                    "finit_module",
                                    "delete_module",
                                    "kexec_load",
                                    "kexec_file_load",
                                    "reboot",
                                    "swapon",
                                    "swapoff",
                                    "add_key",
                                    "request_key",
                                    "keyctl",
                                    "bpf",
                                    "perf_event_open",
                                    "userfaultfd",
                                    "io_uring_setup",
                                    "iopl",
                                    "ioperm",
                                    "setuid",
                                    "setgid",
                                    "setreuid",
                                    "setregid",
                                    "setresuid",
                                    "setresgid",
                                    "setgroups",
                                    "setfsuid",
                                    "setfsgid",
                                    "capset",
                                    "open_by_handle_at",
                                    "quotactl",
                                    "acct",
                                    "syslog",
                                    "settimeofday",
                                    "clock_settime",
                                    "clock_adjtime"};

tl::unexpected<std::string> Failed(const char* what) { return Because(fmt::format("{}: {}", what, strerror(errno))); }

bool ParseId(std::string_view text, uint32_t& id) {
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), id);
  return code == std::errc() && end == text.data() + text.size() && id != 0 && id != UINT32_MAX;
}

tl::expected<void, std::string> LoadFilter() {
  const scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
  int failed = filter == nullptr ? -ENOMEM : 0;
  for (const char* name : kRefused) {
    const int number = seccomp_syscall_resolve_name(name);
    if (failed == 0 && number != __NR_SCMP_ERROR) failed = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), number, 0);
  }
  // The kernel looks at 32 bits of these arguments, so does the filter.
  constexpr scmp_arg_cmp kLinger[] = {{1, SCMP_CMP_MASKED_EQ, UINT32_MAX, SOL_SOCKET},
                                      {2, SCMP_CMP_MASKED_EQ, UINT32_MAX, SO_LINGER}};
  if (failed == 0) {
    failed = seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(setsockopt), std::size(kLinger), kLinger);
  }
  if (failed == 0) failed = seccomp_load(filter);
  seccomp_release(filter);
  errno = -failed;
  if (failed != 0) return Failed("seccomp filter");
  return {};
}

}  // namespace

tl::expected<Account, std::string> ParseAccount(const std::string& text) {
  Account account{};
  const size_t colon = text.find(':');
  if (colon != std::string::npos) {
    if (ParseId(text.substr(0, colon), account.uid) && ParseId(text.substr(colon + 1), account.gid)) return account;
    return Because("--run-as: '" + text + "' is not UID:GID with numbers above 0");
  }
  const passwd* entry = getpwnam(text.c_str());
  if (entry == nullptr) return Because("--run-as: there is no user '" + text + "'");
  if (entry->pw_uid == 0 || entry->pw_gid == 0) return Because("--run-as: '" + text + "' is root");
  return Account{entry->pw_uid, entry->pw_gid};
}

tl::expected<void, std::string> BecomeAccount(const Account& account) {
  const auto& [uid, gid] = account;
  for (cap_value_t cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; ++cap) {
    if (cap_drop_bound(cap) != 0) return Failed("cannot empty the capability bounding set");
  }
  if (setgroups(0, nullptr) != 0 || setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0) {
    return Failed("cannot become the account of --run-as");
  }
  uid_t uids[3] = {};
  gid_t gids[3] = {};
  if (getresuid(&uids[0], &uids[1], &uids[2]) != 0 || getresgid(&gids[0], &gids[1], &gids[2]) != 0) {
    return Failed("cannot read the ids back");
  }
  for (int i = 0; i < 3; ++i) {
    if (uids[i] != uid || gids[i] != gid) return Because("the ids did not change as asked");
  }
  if (getgroups(0, nullptr) != 0) return Because("supplementary groups remain");
  return {};
}

tl::expected<void, std::string> Confine() {
  rlimit files{};
  const rlimit no_core{0, 0};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return Failed("getrlimit");
  files.rlim_cur = files.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &files) != 0 || setrlimit(RLIMIT_CORE, &no_core) != 0) return Failed("setrlimit");
  // systemd's filter for services without privileges refuses capset; they have nothing to drop.
  const cap_t none = cap_init(), now = cap_get_proc();
  const bool dropped = (cap_compare(now, none) == 0 || cap_set_proc(none) == 0) && cap_reset_ambient() == 0;
  (void)(cap_free(none) | cap_free(now));
  if (!dropped) return Failed("drop capabilities");
  if (prctl(PR_SET_DUMPABLE, 0) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return Failed("prctl");
  return LoadFilter();
}

}  // namespace jobworker
