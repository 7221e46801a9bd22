// jobbroker: the root half of Job Worker. See broker/README.md.
#include <poll.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <csignal>
#include <cstdio>
#include <stdexcept>

#include "broker/cgroup.h"
#include "broker/privileges.h"
#include "broker/server.h"
#include "common/message_socket.h"

namespace jobworker {
namespace {
constexpr const char* kUsage =
    "jobbroker " JOBWORKER_VERSION
    "\nusage: jobbroker --fd N | --socket PATH --peer USER|UID\n"
    "                 [--cgroup-root DIR] [--users FILE] [--missing-controllers refuse|warn]\n"
    "  --fd      the front end's socket (jobserver started as root gives it); when it closes, all jobs end\n"
    "  --socket  where front ends with the uid of --peer meet the broker, one at a time\n";

struct Options {
  uint64_t fd = 0, listen_fds = 0, listen_pid = 0, watchdog_us = 0;
  std::string notify_socket, listen_names;
  std::string socket, peer, cgroup_root, users, missing_controllers = "refuse";
};

[[noreturn]] void Die(const std::string& what) { throw std::runtime_error(what); }

Options ParseOptions(int argc, char** argv, char** environment) {
  Options options;
  Settings settings = {{"--fd", &options.fd},       {"--socket", &options.socket},
                       {"--peer", &options.peer},   {"--cgroup-root", &options.cgroup_root},
                       {"--users", &options.users}, {"--missing-controllers", &options.missing_controllers}};
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    if (word.find('=') == word.npos && i + 1 < argc) word += std::string("=") + argv[++i];
    if (!Assign(word, settings)) Die(kUsage);
  }
  Settings systemds = {{"NOTIFY_SOCKET", &options.notify_socket},
                       {"LISTEN_FDS", &options.listen_fds},
                       {"LISTEN_PID", &options.listen_pid},
                       {"LISTEN_FDNAMES", &options.listen_names},
                       {"WATCHDOG_USEC", &options.watchdog_us}};
  for (; options.fd == 0 && *environment != nullptr; ++environment) (void)Assign(*environment, systemds);
  const bool ours = options.listen_pid == static_cast<uint64_t>(getpid()) && !options.notify_socket.empty();
  if (!ours || options.listen_fds > 1'000'000) options.listen_fds = 0;
  const bool deployed = !options.socket.empty() && !options.peer.empty();
  const bool warn_or_refuse = options.missing_controllers == "warn" || options.missing_controllers == "refuse";
  if (deployed == (options.fd >= 3 && options.fd < INT32_MAX) || !warn_or_refuse) Die(kUsage);
  // Some systems mount cgroup v2 beside v1.
  const bool beside = access("/sys/fs/cgroup/unified", F_OK) == 0;
  const char* const root = beside ? "/sys/fs/cgroup/unified/jobworker" : "/sys/fs/cgroup/jobworker";
  if (options.cgroup_root.empty()) options.cgroup_root = root;
  return options;
}

uid_t PeerUid(const std::string& peer) {
  uint64_t uid = 0;
  Settings number = {{"uid", &uid}};
  if (Assign("uid=" + peer, number) && uid < UINT32_MAX) return static_cast<uid_t>(uid);
  const passwd* entry = getpwnam(peer.c_str());
  return entry != nullptr ? entry->pw_uid : throw std::runtime_error("--peer: there is no user '" + peer + "'");
}

UniqueFd Listen(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) Die("--socket: the path is too long");
  path.copy(address.sun_path, path.size());
  UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  struct stat old {};
  if (lstat(path.c_str(), &old) == 0 && S_ISSOCK(old.st_mode)) (void)unlink(path.c_str());
  OrThrow(bind(listener.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), "socket " + path);
  OrThrow(listen(listener.Get(), 16), "listen");
  // Who may come so far is up to the directory; who may come in, to the uid that the kernel noted.
  OrThrow(chmod(path.c_str(), 0666), "open " + path);
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

// Without a broker nobody could stop its jobs. So it has a child that keeps root's rights, reads nothing from anybody,
// waits until the broker has ended or asks for it, and then ends and removes all that is in the cgroup tree. The broker
// does the same for it. Returns its pidfd.
UniqueFd StartGuardian(CgroupTree& tree, int front_end) {
  const pid_t broker = getpid(), guardian = OrThrow(fork(), "fork");
  if (guardian > 0) return UniqueFd(OrThrow(static_cast<int>(syscall(SYS_pidfd_open, guardian, 0)), "pidfd_open"));
  UniqueFd(front_end).Reset();
  sigset_t clear{};
  sigaddset(&clear, SIGUSR1);
  int number = 0;
  if (prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0 && getppid() == broker) (void)sigwait(&clear, &number);
  tree.Clear();
  _exit(0);
}

void Run(const Options& options, Users& users, CgroupTree& tree, const Store& store, StoredJobs jobs,
         std::initializer_list<int> ends) {
  const bool standalone = options.socket.empty();
  MakeUsers(users, tree, options.missing_controllers == "warn");
  const uid_t peer_uid = standalone ? 0 : PeerUid(options.peer);
  UniqueFd listener = standalone ? UniqueFd() : Listen(options.socket);
  NarrowPrivileges();
  UniqueFd peer(standalone ? static_cast<int>(options.fd) : -1);
  Serve(users, tree.missing(), store, std::move(jobs), ends, std::move(peer), std::move(listener), peer_uid);
}

int Main(int argc, char** argv, char** environment) try {
  const Options options = ParseOptions(argc, argv, environment);
  const auto fd = static_cast<unsigned>(options.fd);
  umask(022);
  NarrowDescriptors(fd != 0 ? fd : 3, fd != 0 ? 1 : static_cast<unsigned>(options.listen_fds));
  const Store store(options.notify_socket, options.watchdog_us);
  Users users = LoadUsers(options.users);
  StoredJobs jobs = store.TakeBack(options.listen_fds, options.listen_names, users);
  sigset_t ends{}, blocked{};
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&ends, number);
  sigorset(&blocked, &ends, &ends);
  sigaddset(&blocked, SIGUSR1);
  OrThrow(sigprocmask(SIG_BLOCK, &blocked, nullptr), "sigprocmask");
  const UniqueFd signals(OrThrow(signalfd(-1, &ends, SFD_CLOEXEC), "signalfd"));
  std::set<std::string> kept;
  for (const auto& [key, job] : jobs) {
    const std::string user = "/" + key.user;
    if (!job.Ended()) kept.insert({user, user + "/" + std::to_string(key.id)});
  }
  CgroupTree tree(options.cgroup_root, kept, !store.IsOpen());
  const UniqueFd guardian = store.IsOpen() ? UniqueFd() : StartGuardian(tree, static_cast<int>(fd));
  std::string wrong;
  try {
    Run(options, users, tree, store, std::move(jobs), {signals.Get(), guardian.Get()});
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  (void)unlink(options.socket.c_str());
  // Where they are stored, SIGTERM alone ends the jobs: after any other end another broker follows.
  sigset_t pending{};
  if (!store.IsOpen() || (sigpending(&pending) == 0 && sigismember(&pending, SIGTERM) == 1)) tree.Clear();
  (void)syscall(SYS_pidfd_send_signal, guardian.Get(), SIGUSR1, nullptr, 0);
  for (pollfd ended{guardian.Get(), POLLIN, 0}; guardian.IsOpen() && poll(&ended, 1, -1) != 1;) continue;
  return wrong.empty() ? 0 : throw std::runtime_error(wrong);
} catch (const std::exception& error) {
  (void)fprintf(stderr, "jobbroker: %s\n", error.what());
  return 1;
}
}  // namespace
}  // namespace jobworker

int main(int argc, char** argv, char** environment) { return jobworker::Main(argc, argv, environment); }
