// The broker's loop through the whole lives of jobs: real sockets and epoll over a kernel that is made up, where
// cgroups and processes are numbers. Where dispatch_fuzz sends whatever bytes there are, an input here is a session of
// mostly well-formed requests, so that every state is reached; what the loop asks of the kernel and what it answers is
// checked.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

#include "broker/cgroup.h"
#include "broker/server.h"
#include "broker/spawn.h"
#include "common/message_socket.h"

namespace jobworker {
namespace {

constexpr size_t kMostRequests = 60;  // their answers fit in the socket, which nobody reads until the end

[[noreturn]] void Broken(const char* rule) {
  (void)fprintf(stdout, "sessions_fuzz: broken: %s\n", rule);
  (void)fflush(stdout);
  std::abort();
}
void Hold(bool rule, const char* what) {
  if (!rule) Broken(what);
}

// A job as this kernel knows it. Its behaviour is the first letter of its command.
struct FakeJob {
  const User* user = nullptr;
  uint64_t id = 0;
  UniqueFd pidfd, status, event, kill;  // this side's ends of what the broker has
  int leaf = -1, broker_pidfd = -1;
  ino_t broker_event = 0, broker_kill = 0;  // it moves these descriptors
  bool born = false, alive = false, reaped = false, leftovers = false, removed = false;
};

std::vector<FakeJob> jobs;
std::set<JobKey> may_be_killed;  // named by a Kill or a Signal of the session
Users* users = nullptr;

FakeJob& Find(auto matches, const char* otherwise) {
  // The newest first: the kernel gives the numbers of closed descriptors out again.
  const auto found = std::find_if(jobs.rbegin(), jobs.rend(), matches);
  if (found == jobs.rend()) Broken(otherwise);
  return *found;
}

FakeJob& OfLeaf(int leaf) {
  return Find([&](const FakeJob& job) { return job.leaf == leaf && !job.removed; },
              "a cgroup that is not there is used");
}

// Its main process ends, and the rest of it unless it stays behind.
void End(FakeJob& job) {
  if (!job.alive) return;
  job.alive = false;
  job.status.Reset();
  const uint64_t one = 1;
  Hold(write(job.pidfd.Get(), &one, sizeof(one)) == sizeof(one), "pidfd");
}

JobKey KeyOf(const FakeJob& job) {
  for (const auto& [name, user] : *users) {
    if (&user == job.user) return {name, job.id};
  }
  Broken("a job without a user");
}

ino_t InodeOf(const UniqueFd& fd) {
  struct stat info {};
  Hold(fstat(fd.Get(), &info) == 0, "fstat");
  return info.st_ino;
}

// The broker's end; `here` is this side's.
UniqueFd NewPair(UniqueFd& here) {
  int ends[2];
  Hold(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  here.Reset(ends[1]);
  return UniqueFd(ends[0]);
}

}  // namespace

Leaf MakeLeaf(int user_directory, uint64_t id) {
  FakeJob job;
  for (const auto& [name, user] : *users) {
    if (user.cgroup.Get() == user_directory) job.user = &user;
  }
  Hold(job.user != nullptr, "a cgroup is made outside the users' directories");
  const auto same = [&](const FakeJob& other) { return other.user == job.user && other.id == id && !other.removed; };
  Hold(std::none_of(jobs.begin(), jobs.end(), same), "a cgroup is made twice");
  if (id == 3) throw std::system_error(ENOSPC, std::generic_category());
  Leaf leaf{UniqueFd(eventfd(0, EFD_CLOEXEC)), NewPair(job.event), NewPair(job.kill)};
  job.id = id;
  job.leaf = leaf.directory.Get();
  job.broker_event = InodeOf(leaf.events);
  job.broker_kill = InodeOf(leaf.kill);
  jobs.push_back(std::move(job));
  return leaf;
}

// There is no earlier broker.
Leaf OpenLeaf(int, const std::string&) { Broken("a job of an earlier broker"); }

bool RemoveLeaf(int user_directory, uint64_t id) {
  if (id == 3) return false;
  FakeJob& job = Find(
      [&](const FakeJob& other) {
        return other.user->cgroup.Get() == user_directory && other.id == id && !other.removed;
      },
      "a cgroup that is not there is removed");
  Hold(!job.born || (job.reaped && !job.leftovers), "a cgroup with processes is removed");
  return job.removed = true;
}

Limits ApplyLimits(int leaf, const Limits& limits, uint8_t, dev_t) {
  jobs.back().leaf = leaf;  // the broker has given it a number out of the children's way
  const User& user = *OfLeaf(leaf).user;
  for (size_t i = 0; i < kLimitCount; ++i) {
    Hold(limits[i] <= user.ceiling[i] || limits[i] == user.job[i], "a limit is above the ceiling");
  }
  if (limits[kCpuLimit] == 1) throw std::system_error(EINVAL, std::generic_category());
  return limits;
}

Child Spawn(const User& user, const Start& start, int leaf, Stage& stage) {
  FakeJob& job = OfLeaf(leaf);
  Hold(job.user == &user && start.key == KeyOf(job), "a job is born as another user or elsewhere");
  const char behaviour = start.argv[0][0];
  stage = Stage::kClone;
  if (behaviour == 'p') throw std::system_error(EAGAIN, std::generic_category());
  int ends[2];
  Hold(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0, "pipe");
  job.status.Reset(ends[1]);
  Child child{UniqueFd(eventfd(0, EFD_CLOEXEC)), std::make_shared<JobDescriptors>(), UniqueFd(ends[0])};
  const size_t count = start.want_stdin != 0 ? kMaxDescriptors : kStdin;
  for (size_t i = 0; i < count; ++i) (*child.descriptors)[i] = UniqueFd(eventfd(0, EFD_CLOEXEC));
  job.pidfd.Reset(dup(child.pidfd.Get()));
  job.broker_pidfd = child.pidfd.Get();
  job.born = job.alive = true;
  job.leftovers = start.argv.size() > 1;
  const ChildFailure failure{Stage::kExec, ENOENT};
  if (behaviour == 'f') Hold(write(ends[1], &failure, sizeof(failure)) == sizeof(failure), "status");
  if (behaviour != 's') job.status.Reset();  // exec, at once
  if (behaviour == 'f' || behaviour == 'q') End(job);
  return child;
}

int KillAll(const UniqueFd& kill) {
  const ino_t inode = InodeOf(kill);
  FakeJob& job =
      Find([&](const FakeJob& other) { return other.broker_kill == inode && !other.removed; }, "a strange kill");
  Hold(!job.alive || may_be_killed.contains(KeyOf(job)), "a job is killed that nobody named");
  End(job);
  if (job.id == 5) return EBUSY;
  job.leftovers = false;
  job.event.Reset();  // hangs up, which epoll tells whether it was asked for or not
  return 0;
}

Counters ReadCounters(int leaf) {
  FakeJob& job = OfLeaf(leaf);
  job.status.Reset();  // time passes: a slow one comes to its exec
  if (job.id == 4) End(job);
  return {};
}

uint32_t CountProcesses(int leaf) { return OfLeaf(leaf).leftovers ? 1 : 0; }
void ReadOomKills(int leaf, uint32_t&, OomLevel&) { (void)OfLeaf(leaf); }

bool IsPopulated(const UniqueFd& events) {
  const ino_t inode = InodeOf(events);
  const FakeJob& job =
      Find([&](const FakeJob& other) { return other.broker_event == inode && !other.removed; }, "strange events");
  return job.alive || job.leftovers;
}

namespace {

FakeJob& OfPidfd(int pidfd) {
  return Find([&](const FakeJob& job) { return job.broker_pidfd == pidfd && !job.reaped; }, "a strange pidfd is used");
}

// The next bytes of the input as numbers; zeros at its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  [[nodiscard]] bool Empty() const { return size_ == 0; }
  uint8_t Byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  std::string Bytes(size_t size) {
    std::string bytes;
    while (bytes.size() < size && size_ > 0) bytes.push_back(static_cast<char>(Byte()));
    return bytes;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

Start StartFrom(const JobKey& key, Input& input) {
  const uint8_t how = input.Byte();
  Start start{key, {}, {std::string(1, "rqsfpr"[how % 6])}, {}};
  start.want_stdin = how >> 5 & 1;
  if ((how & 64) != 0) start.argv.emplace_back("leaves something behind");
  if ((how & 128) != 0) start.limits[input.Byte() % kLimitCount] = uint64_t{1} << (input.Byte() % 64);
  return start;
}

std::string RequestFrom(Input& input) {
  constexpr const char* kNames[] = {"alice", "bob", "carl", "dave"};
  const uint8_t what = input.Byte(), whose = input.Byte();
  const JobKey key{kNames[whose % 4], uint64_t{whose} / 4 % 6 + 1};
  switch (what % 8) {
    case 0: return Encode(StartFrom(key, input));
    case 1: may_be_killed.insert(key); return Encode(Signal{key, static_cast<uint8_t>(input.Byte() % 66)});
    case 2: may_be_killed.insert(key); return Encode(Kill{key});
    case 3: return Encode(UsageRequest{key});
    case 4: return Encode(Forget{key});
    case 5: return Encode(Hello{input.Byte() < 250 ? kProtocolVersion : 0});
    case 6: return whose % 2 == 0 ? Encode(Ping{}) : Encode(WhoIs{key.user});
    default: return input.Bytes(whose);
  }
}

// One datagram, and how many descriptors came with it; nothing when there is none left.
std::string NextDatagram(int socket, size_t& count) {
  std::string bytes(kMaxMessageBytes, '\0');
  iovec body{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr header{};
  header.msg_iov = &body;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  const ssize_t size = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  const cmsghdr* rights = size > 0 ? CMSG_FIRSTHDR(&header) : nullptr;
  count = rights == nullptr ? 0 : (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
  for (size_t i = 0; i < count; ++i) {
    int number = -1;
    memcpy(&number, CMSG_DATA(rights) + i * sizeof(int), sizeof(number));
    UniqueFd(number).Reset();
  }
  Hold((header.msg_flags & MSG_CTRUNC) == 0, "a reply has more descriptors than a job");
  bytes.resize(size > 0 ? static_cast<size_t>(size) : 0);
  return bytes;
}

// Every reply is one, and every job's replies come in the order of its life.
void CheckReplies(int socket) {
  std::set<JobKey> running;
  size_t count = 0;
  for (std::string bytes; !(bytes = NextDatagram(socket, count)).empty();) {
    const std::optional<Reply> reply = Decode<Reply>(bytes);
    Hold(reply.has_value(), "a reply is malformed");
    Hold(count == std::visit([](const auto& message) { return DescriptorsOf(message); }, *reply),
         "a reply has another number of descriptors");
    if (const auto* started = std::get_if<Started>(&*reply)) {
      Hold(running.insert(started->key).second, "a job starts twice");
    } else if (const auto* exited = std::get_if<Exited>(&*reply)) {
      Hold(running.erase(exited->key) == 1, "a job ends that has not started");
    } else if (const auto* failed = std::get_if<Failed>(&*reply)) {
      Hold(failed->request != RequestType::kStart || !running.contains(failed->key), "a running job did not start");
    }
  }
}

// Gives the process back as it was: libFuzzer has a timer of its own.
class KeptTimer {
 public:
  KeptTimer() {
    sigaction(SIGALRM, nullptr, &action_);
    getitimer(ITIMER_REAL, &timer_);
  }
  ~KeptTimer() {
    sigaction(SIGALRM, &action_, nullptr);
    setitimer(ITIMER_REAL, &timer_, nullptr);
  }

 private:
  struct sigaction action_ {};
  itimerval timer_{};
};

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

void RunSession(Input input) {
  Users list = LoadUsers("");
  for (auto& [name, user] : list) {
    user.cgroup.Reset(eventfd(0, EFD_CLOEXEC));
    user.applied = user.ceiling;
    user.max_jobs = 4;
  }
  users = &list;
  auto [front, back] = MessageSocketPair();
  if (input.Byte() < 250) (void)SendMessage(front.Get(), Encode(Hello{}));
  for (size_t i = 0; i < kMostRequests && !input.Empty(); ++i) (void)SendMessage(front.Get(), RequestFrom(input));
  (void)shutdown(front.Get(), SHUT_WR);
  const KeptTimer kept;
  const UniqueFd guardian(eventfd(0, EFD_CLOEXEC));
  Serve(list, 0, Store("", 0), {}, {guardian.Get()}, std::move(back), {}, 0);
  CheckReplies(front.Get());
}

}  // namespace
}  // namespace jobworker

extern "C" int __real_waitid(idtype_t type, id_t id, siginfo_t* info, int options);
extern "C" int __wrap_waitid(idtype_t type, id_t id, siginfo_t* info, int options) {
  if (type != P_PIDFD) return __real_waitid(type, id, info, options);
  jobworker::FakeJob& job = jobworker::OfPidfd(static_cast<int>(id));
  if (job.alive) return 0;
  job.reaped = true;
  info->si_pid = 2;
  info->si_code = CLD_KILLED;
  info->si_status = SIGKILL;
  return 0;
}

extern "C" long __real_syscall(long number, long a, long b, long c, long d, long e, long f);
extern "C" long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f) {
  if (number != SYS_pidfd_send_signal) return __real_syscall(number, a, b, c, d, e, f);
  jobworker::FakeJob& job = jobworker::OfPidfd(static_cast<int>(a));
  jobworker::Hold(jobworker::may_be_killed.contains(jobworker::KeyOf(job)), "a job is signalled that nobody named");
  if (b == SIGKILL) jobworker::End(job);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const size_t before = jobworker::OpenDescriptors();
  jobworker::RunSession({data, size});
  jobworker::jobs.clear();
  jobworker::may_be_killed.clear();
  jobworker::Hold(jobworker::OpenDescriptors() == before, "a descriptor is left open");
  return 0;
}
