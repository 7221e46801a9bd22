#include "tests/boundary/broker_process.h"

#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>

namespace jobworker {

namespace {

fs::path CgroupMount() {
  const fs::path beside_v1 = "/sys/fs/cgroup/unified";
  return fs::exists(beside_v1) ? beside_v1 : "/sys/fs/cgroup";
}

void MakeOddSurroundings() {
  const gid_t extra = 4;
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  const int stray = open("/", O_RDONLY);
  const bool made = stray >= 0 && setgroups(1, &extra) == 0 && sigprocmask(SIG_BLOCK, &blocked, nullptr) == 0 &&
                    signal(SIGPIPE, SIG_IGN) == SIG_DFL && signal(SIGUSR2, SIG_IGN) == SIG_DFL;
  if (!made) _exit(100);
  umask(0);
  // Not everywhere may root do that.
  const UniqueFd score(open("/proc/self/oom_score_adj", O_WRONLY));
  (void)!write(score.Get(), "-500", 4);
  for (const char* name : {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC", "SECRET"})
    setenv(name, "1", 1);
}

[[noreturn]] void Exec(const std::vector<char*>& arguments, int log, int keep, rlim_t files,
                       const std::function<void()>& last) {
  const rlimit limit{files, files};
  // The broker must end by itself, not with the test.
  if (setsid() < 0 || dup2(log, 1) != 1 || dup2(log, 2) != 2) _exit(100);
  if (keep >= 0 && fcntl(keep, F_SETFD, 0) != 0) _exit(100);
  if (files != 0 && setrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(100);
  MakeOddSurroundings();
  last();
  execvp(arguments[0], arguments.data());
  _exit(101);
}

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}

}  // namespace

bool WaitFor(int fd, short events) {
  pollfd one{fd, events, 0};
  return poll(&one, 1, kHangMs) == 1;
}

std::string ReadFile(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

bool WaitForText(const fs::path& file, const std::string& text) {
  const UniqueFd changes(inotify_init1(IN_CLOEXEC));
  inotify_add_watch(changes.Get(), file.c_str(), IN_MODIFY);
  while (ReadFile(file).find(text) == std::string::npos) {
    char events[4096];
    if (!WaitFor(changes.Get(), POLLIN) || read(changes.Get(), events, sizeof(events)) < 0) return false;
  }
  return true;
}

Process::Process(const std::vector<std::string>& words, const fs::path& log, int keep, rlim_t files,
                 const std::function<void()>& last) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const UniqueFd out(open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  pid_ = fork();
  if (pid_ == 0) Exec(arguments, out.Get(), keep, files, last);
  pidfd_.Reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
}

Process::~Process() {
  if (!pidfd_.IsOpen()) return;
  Signal(SIGKILL);
  Wait();
}

void Process::Signal(int number) const { syscall(SYS_pidfd_send_signal, pidfd_.Get(), number, nullptr, 0); }

int Process::Wait() {
  if (!pidfd_.IsOpen() || !WaitFor(pidfd_.Get(), POLLIN)) return -1;
  int status = 0;
  if (waitpid(pid_, &status, 0) != pid_) return -1;
  pidfd_.Reset();
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

BrokerProcess::BrokerProcess() {
  char name[] = "/tmp/boundary.XXXXXX";
  directory_ = mkdtemp(name) != nullptr ? name : "/nonexistent";
  cgroup_ = CgroupMount() / ("jobworker-" + directory_.filename().string());
  // Jobs go through here to their own directories; what else is in it they may not list.
  fs::permissions(directory_, fs::perms(0711));
  fs::create_directory(directory_ / "work");
  fs::create_directory(directory_ / "run");
  fs::permissions(directory_ / "run", fs::perms(0750));
  EXPECT_EQ(chown((directory_ / "run").c_str(), 0, kFrontEndUid), 0);
  std::string users;
  for (const auto& [user, uid] : {std::pair{"alice", kAliceUid}, {"bob", kBobUid}, {"carl", kCarlUid}}) {
    users += std::string(user) + " uid=" + std::to_string(uid) + " gid=" + std::to_string(uid) +
             " dir=" + work(user).string() +
             " cpu=2000 memory=268435456 pids=2000 write-bytes=max write-ops=max jobs=max\n";
  }
  WriteUsers(users);
}

BrokerProcess::~BrokerProcess() {
  if (broker_.pid() > 0) {
    broker_.Signal(SIGTERM);
    broker_.Wait();
  }
  std::error_code ignored;
  fs::remove_all(directory_, ignored);
}

void BrokerProcess::WriteUsers(const std::string& text) {
  std::ofstream(directory_ / "users") << text;
  fs::permissions(directory_ / "users", fs::perms(0644));
}

void BrokerProcess::Start(Mode mode, rlim_t files, const std::function<void()>& last) {
  std::vector<std::string> words{
      JOBBROKER, "--cgroup-root", cgroup_, "--users", directory_ / "users", "--missing-controllers", "warn"};
  UniqueFd other;
  if (mode == Mode::kDeployed) {
    words.insert(words.end(), {"--socket", socket(), "--peer", std::to_string(kFrontEndUid)});
  } else {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    front_end_.Reset(ends[0]);
    other.Reset(ends[1]);
    words.insert(words.end(), {"--fd", std::to_string(other.Get())});
  }
  broker_ = Process(words, directory_ / "log", other.Get(), files, last);
  ASSERT_TRUE(mode == Mode::kStandalone || WaitForText(directory_ / "log", "waiting for a front end")) << Log();
}

UniqueFd BrokerProcess::Visit(uid_t uid) {
  const sockaddr_un address = AddressOf(socket());
  UniqueFd visitor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  // The kernel notes the effective uid of who connects.
  EXPECT_EQ(setegid(uid), 0);
  EXPECT_EQ(seteuid(uid), 0);
  const int failed = connect(visitor.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = errno;
  EXPECT_EQ(seteuid(0), 0);
  EXPECT_EQ(setegid(0), 0);
  if (failed == 0) return visitor;
  EXPECT_TRUE(error == EACCES && uid != kFrontEndUid) << strerror(error) << "\n" << Log();
  return {};
}

pid_t BrokerProcess::FindGuardian() const {
  for (const pid_t pid : ChildrenOf(broker_.pid())) {
    const std::string line = ReadFile("/proc/" + std::to_string(pid) + "/cmdline");
    if (line.find("jobbroker") != line.npos) return pid;
  }
  return 0;
}

std::vector<pid_t> ChildrenOf(pid_t pid) {
  std::vector<pid_t> children;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (!std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; })) continue;
    const std::vector<std::string> parent = StatusLine(std::stoi(name), "PPid");
    if (!parent.empty() && std::stoi(parent[0]) == pid) children.push_back(std::stoi(name));
  }
  return children;
}

std::vector<pid_t> ProcessesIn(const fs::path& cgroup) {
  std::ifstream file(cgroup / "cgroup.procs");
  std::vector<pid_t> pids;
  for (pid_t pid = 0; file >> pid;) pids.push_back(pid);
  return pids;
}

std::set<std::string> CgroupsBelow(const fs::path& cgroup) {
  std::set<std::string> found;
  std::error_code gone;
  for (fs::recursive_directory_iterator at(cgroup, gone), end; !gone && at != end; at.increment(gone)) {
    if (std::error_code none; at->is_directory(none)) found.insert(at->path().lexically_relative(cgroup));
  }
  return found;
}

size_t DescriptorsOf(pid_t pid) {
  const fs::directory_iterator all("/proc/" + std::to_string(pid) + "/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

bool IsAlive(pid_t pid) {
  const std::vector<std::string> state = StatusLine(pid, "State");
  return !state.empty() && state[0] != "Z" && state[0] != "X";
}

std::vector<std::string> StatusLine(pid_t pid, const std::string& name) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name + ":")) continue;
    std::istringstream words(line.substr(name.size() + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

size_t ResidentKib(pid_t pid) {
  const std::vector<std::string> line = StatusLine(pid, "VmRSS");
  return line.empty() ? 0 : std::stoul(line[0]);
}

}  // namespace jobworker
