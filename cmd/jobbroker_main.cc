// jobbroker: the root half of Job Worker. See broker/README.md.
#include <getopt.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "broker/cgroup.h"
#include "broker/privileges.h"
#include "broker/server.h"

namespace jobworker {
namespace {

constexpr const char* kUsage =
    "jobbroker " JOBWORKER_VERSION
    ", the root half of Job Worker; jobserver starts it by itself when it is run as root\n"
    "usage: jobbroker --fd N | --socket PATH --peer USER|UID\n"
    "                 [--cgroup-root DIR] [--users FILE] [--missing-controllers refuse|warn]\n"
    "  --fd      the front end's socket; when it closes, all jobs end\n"
    "  --socket  where front ends with the uid of --peer meet the broker, one at a time\n";

struct Options {
  int fd = -1;
  std::string socket, peer, cgroup_root, users;
  bool warn = false;
};

[[noreturn]] void Die(const std::string& what, int code = 0) {
  (void)fprintf(stderr, "jobbroker: %s%s%s\n", what.c_str(), code != 0 ? ": " : "", code != 0 ? strerror(code) : "");
  exit(1);
}

template <class T>
T OrDie(Result<T> result) {
  if (!result.Ok()) Die(result.error().what, result.error().code == EINVAL ? 0 : result.error().code);
  return std::move(result.value());
}

bool ParseInt(const std::string& text, int& value) {
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && *end == '\0' && value >= 0;
}

Options ParseOptions(int argc, char** argv) {
  constexpr option kOptions[] = {
      {"fd", 1, nullptr, 'f'},          {"socket", 1, nullptr, 's'},  {"peer", 1, nullptr, 'p'},
      {"cgroup-root", 1, nullptr, 'c'}, {"users", 1, nullptr, 'u'},   {"missing-controllers", 1, nullptr, 'm'},
      {"help", 0, nullptr, 'h'},        {"version", 0, nullptr, 'h'}, {nullptr, 0, nullptr, 0}};
  Options options;
  for (int c; (c = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    const std::string value = optarg != nullptr ? optarg : "";
    switch (c) {
      case 'f':
        if (!ParseInt(value, options.fd) || options.fd < 3) Die("--fd takes the number of a socket, from 3");
        break;
      case 's': options.socket = value; break;
      case 'p': options.peer = value; break;
      case 'c': options.cgroup_root = value; break;
      case 'u': options.users = value; break;
      case 'm':
        if (value != "refuse" && value != "warn") Die("--missing-controllers takes refuse or warn");
        options.warn = value == "warn";
        break;
      case 'h': (void)fputs(kUsage, stdout); exit(0);
      default: exit(1);
    }
  }
  const bool deployed = !options.socket.empty() && !options.peer.empty();
  if (optind != argc || deployed == (options.fd >= 0)) Die(kUsage);
  // Some systems mount cgroup v2 beside v1.
  const bool mixed = access("/sys/fs/cgroup/unified", F_OK) == 0;
  if (options.cgroup_root.empty())
    options.cgroup_root = mixed ? "/sys/fs/cgroup/unified/jobworker" : "/sys/fs/cgroup/jobworker";
  return options;
}

uid_t PeerUid(const std::string& peer) {
  int uid = 0;
  if (ParseInt(peer, uid)) return static_cast<uid_t>(uid);
  const passwd* entry = getpwnam(peer.c_str());
  if (entry == nullptr) Die("--peer: there is no user '" + peer + "'");
  return entry->pw_uid;
}

UniqueFd Listen(const std::string& path, uid_t peer) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) Die("--socket: the path is too long");
  path.copy(address.sun_path, path.size());
  UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  struct stat old {};
  if (lstat(path.c_str(), &old) == 0 && S_ISSOCK(old.st_mode)) (void)unlink(path.c_str());
  umask(0177);
  if (bind(listener.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      lchown(path.c_str(), peer, static_cast<gid_t>(-1)) != 0 || listen(listener.Get(), 16) != 0) {
    Die("rendezvous socket " + path, errno);
  }
  umask(022);
  return listener;
}

void RefuseOrWarn(const Options& options, const std::string& what) {
  if (!options.warn) Die(what + " (--missing-controllers=warn runs jobs without those limits)");
  (void)fprintf(stderr, "jobbroker: warning: %s\n", what.c_str());
}

void MakeUsers(const Options& options, Users& users, CgroupTree& tree) {
  if (tree.missing() != 0)
    RefuseOrWarn(options, "cgroup v2 here has no controllers:" + ControllerNames(tree.missing()));
  for (auto& [name, user] : users) {
    user.disk = DiskUnder(OrDie(PrepareDirectory(user)));
    user.missing = tree.missing();
    if (user.disk == 0 && (user.missing & kIo) == 0 && (NeedsDisk(user.ceiling) || NeedsDisk(user.job))) {
      RefuseOrWarn(options, "no block device under " + user.directory + " to limit the io of " + name + " on");
      user.missing |= kIo;
    }
    OrDie(tree.MakeUser(name, user));
  }
}

// A broker that dies, however it dies, leaves jobs that nobody could stop. So its parent stays root, reads nothing from
// anybody, and when the broker is gone ends all that lives in the cgroup tree.
int Guard(pid_t broker, CgroupTree& tree) {
  sigset_t all;
  sigfillset(&all);
  (void)sigprocmask(SIG_SETMASK, &all, nullptr);
  int status = 0;
  while (waitpid(broker, &status, 0) < 0 && errno == EINTR) continue;
  OrDie(tree.Clear());
  tree.Remove();
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int Serve(const Options& options, CgroupTree& tree) {
  const bool standalone = options.fd >= 0;
  if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0) Die("prctl", errno);
  Users users = options.users.empty() ? BuiltInUsers() : OrDie(LoadUsers(options.users));
  MakeUsers(options, users, tree);
  const uid_t peer_uid = standalone ? 0 : PeerUid(options.peer);
  UniqueFd listener = standalone ? UniqueFd() : Listen(options.socket, peer_uid);
  OrDie(NarrowPrivileges());
  Server server(std::move(users), tree.missing(), UniqueFd(options.fd), std::move(listener), peer_uid);
  OrDie(server.Run());
  return 0;
}

int Main(int argc, char** argv) {
  const Options options = ParseOptions(argc, argv);
  umask(022);
  OrDie(NarrowDescriptors(options.fd));
  CgroupTree tree = OrDie(CgroupTree::Open(options.cgroup_root));
  const pid_t broker = fork();
  if (broker < 0) Die("fork", errno);
  if (broker == 0) return Serve(options, tree);
  UniqueFd(options.fd).Reset();
  const int status = Guard(broker, tree);
  if (!options.socket.empty()) (void)unlink(options.socket.c_str());
  return status;
}

}  // namespace
}  // namespace jobworker

int main(int argc, char** argv) { return jobworker::Main(argc, argv); }
