// jobbroker: the root half of Job Worker. See broker/README.md.
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <stdexcept>

#include "broker/cgroup.h"
#include "broker/privileges.h"
#include "broker/server.h"

namespace jobworker {
namespace {

constexpr const char* kUsage =
    "jobbroker " JOBWORKER_VERSION
    "\nusage: jobbroker --fd N | --socket PATH --peer USER|UID\n"
    "                 [--cgroup-root DIR] [--users FILE] [--missing-controllers refuse|warn]\n"
    "  --fd      the front end's socket (jobserver started as root gives it); when it closes, all jobs end\n"
    "  --socket  where front ends with the uid of --peer meet the broker, one at a time\n";

using Options = std::map<std::string, std::string, std::less<>>;

[[noreturn]] void Die(const std::string& what) { throw std::runtime_error(what); }

int ToInt(std::string_view text) {
  int value = -1;
  const auto [end, code] = std::from_chars(text.begin(), text.end(), value);
  return code == std::errc() && end == text.end() ? value : -1;
}

Options ParseOptions(int argc, char** argv) {
  // Some systems mount cgroup v2 beside v1.
  const bool mixed = access("/sys/fs/cgroup/unified", F_OK) == 0;
  Options options = {{"--cgroup-root", mixed ? "/sys/fs/cgroup/unified/jobworker" : "/sys/fs/cgroup/jobworker"}};
  for (const char* known : {"--fd", "--socket", "--peer", "--users"}) options[known];
  options["--missing-controllers"] = "refuse";
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const size_t equals = word.find('=');
    const auto known = options.find(word.substr(0, equals));
    if (known == options.end() || (equals == word.npos && i + 1 == argc)) Die(kUsage);
    known->second = equals == word.npos ? argv[++i] : word.substr(equals + 1);
  }
  const std::string& policy = options["--missing-controllers"];
  const bool deployed = !options["--socket"].empty() && !options["--peer"].empty();
  if (deployed == (ToInt(options["--fd"]) >= 3) || (policy != "refuse" && policy != "warn")) Die(kUsage);
  return options;
}

uid_t PeerUid(const std::string& peer) {
  if (ToInt(peer) >= 0) return static_cast<uid_t>(ToInt(peer));
  const passwd* entry = getpwnam(peer.c_str());
  return entry != nullptr ? entry->pw_uid : throw std::runtime_error("--peer: there is no user '" + peer + "'");
}

UniqueFd Listen(const std::string& path, uid_t peer) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) Die("--socket: the path is too long");
  path.copy(address.sun_path, path.size());
  UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  struct stat old {};
  if (lstat(path.c_str(), &old) == 0 && S_ISSOCK(old.st_mode)) (void)unlink(path.c_str());
  OrThrow(bind(listener.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), "socket " + path);
  OrThrow(chmod(path.c_str(), 0600) | lchown(path.c_str(), peer, static_cast<gid_t>(-1)), "own " + path);
  OrThrow(listen(listener.Get(), 16), "listen");
  (void)fprintf(stderr, "jobbroker: waiting for a front end at %s\n", path.c_str());
  return listener;
}

void MakeUsers(Users& users, CgroupTree& tree, bool warn) {
  const auto refuse_or_warn = [warn](const std::string& what) {
    if (!warn) Die(what + " (--missing-controllers=warn runs jobs without those limits)");
    (void)fprintf(stderr, "jobbroker: warning: %s\n", what.c_str());
  };
  if (tree.missing() != 0) refuse_or_warn("cgroup v2 here has no controllers:" + ControllerNames(tree.missing()));
  for (auto& [name, user] : users) {
    user.disk = DiskUnder(PrepareDirectory(user));
    user.missing = tree.missing();
    if (user.disk == 0 && (user.missing & kIo) == 0 && (NeedsDisk(user.ceiling) || NeedsDisk(user.job))) {
      refuse_or_warn("no block device under " + user.directory + " to limit the io of " + name + " on");
      user.missing |= kIo;
    }
    tree.MakeUser(name, user);
  }
}

void RunBroker(Options& options, CgroupTree& tree, const UniqueFd& guardian) {
  Users users = options["--users"].empty() ? BuiltInUsers() : LoadUsers(options["--users"]);
  MakeUsers(users, tree, options["--missing-controllers"] == "warn");
  const bool standalone = options["--socket"].empty();
  const uid_t peer_uid = standalone ? 0 : PeerUid(options["--peer"]);
  UniqueFd listener = standalone ? UniqueFd() : Listen(options["--socket"], peer_uid);
  NarrowPrivileges();
  Serve(users, tree.missing(), guardian, UniqueFd(ToInt(options["--fd"])), std::move(listener), peer_uid);
  tree.Clear();
}

// Without a broker nobody could stop its jobs. So its parent stays root, reads nothing from anybody, waits for the
// broker's end or a signal that asks for it, and ends all that lives in the cgroup tree. The broker does the same for
// it.
int Guard(pid_t broker, CgroupTree& tree, const sigset_t& signals) {
  const UniqueFd pidfd(OrThrow(static_cast<int>(syscall(SYS_pidfd_open, broker, 0)), "pidfd_open"));
  int number = 0, status = 0;
  for (pid_t ended = 0; ended == 0;) {
    OrThrow(-sigwait(&signals, &number), "sigwait");
    if (number != SIGCHLD) (void)syscall(SYS_pidfd_send_signal, pidfd.Get(), SIGKILL, nullptr, 0);
    // SIGCHLD also comes when the broker stops or goes on.
    ended = OrThrow(waitpid(broker, &status, number == SIGCHLD ? WNOHANG : 0), "waitpid");
  }
  tree.Clear();
  tree.Remove();
  return number != SIGCHLD || (WIFEXITED(status) && WEXITSTATUS(status) == 0) ? 0 : 1;
}

int Main(int argc, char** argv) try {
  Options options = ParseOptions(argc, argv);
  umask(022);
  NarrowDescriptors(ToInt(options["--fd"]));
  sigset_t signals{};
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&signals, number);
  OrThrow(sigprocmask(SIG_BLOCK, &signals, nullptr), "sigprocmask");
  CgroupTree tree(options["--cgroup-root"]);
  const UniqueFd guardian(OrThrow(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)), "pidfd_open"));
  const pid_t broker = OrThrow(fork(), "fork");
  if (broker == 0) return RunBroker(options, tree, guardian), 0;
  UniqueFd(ToInt(options["--fd"])).Reset();
  const int status = Guard(broker, tree, signals);
  (void)unlink(options["--socket"].c_str());
  return status;
} catch (const std::exception& error) {
  (void)fprintf(stderr, "jobbroker: %s\n", error.what());
  return 1;
}

}  // namespace
}  // namespace jobworker

int main(int argc, char** argv) { return jobworker::Main(argc, argv); }
