#include "broker/server.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <deque>
#include <functional>

#include "broker/cgroup.h"
#include "broker/dispatch.h"
#include "broker/spawn.h"
#include "common/message_socket.h"

namespace jobworker {
namespace {
constexpr int kSoPassRights = 83;  // SO_PASSRIGHTS, Linux 6.16
constexpr int kSpareDescriptors = 32;
constexpr size_t kMostStoredNames = 120'000;  // $LISTEN_FDNAMES, as all strings of an environment, ends at 128 KiB

// The number of PIDFD_GET_INFO, what it gives back, and the bit of it that says how a reaped process ended
// (Linux 6.15).
struct PidfdInfo {
  uint64_t mask = kExit, cgroup = 0;
  uint32_t ids[11] = {};
  int32_t exit_code = 0;
  static constexpr uint64_t kExit = 8;
};
constexpr auto kPidfdGetInfo = _IOWR(0xff, 11, PidfdInfo);

struct Record {
  State state = State::kStarting;
  User* owner = nullptr;
  UniqueFd cgroup, events;
  Child child;
  ChildFailure failure;  // with an error, the job never ran: it ends as Failed, not as Exited
  Parcel parcel;
};
using Jobs = std::map<JobKey, Record>;
using JobEntry = Jobs::value_type;
struct Outgoing {
  std::string message;
  std::shared_ptr<JobDescriptors> descriptors;  // those before kStdin go with it
  UniqueFd stdin_end;
};

// The kernel closes descriptors that were sent to us when we read, or drop unread, what they came with; and closing a
// TCP socket with SO_LINGER waits. Where the kernel does not refuse them to the sender, this interrupts the wait.
struct Heartbeat {
  static constexpr itimerval kBeat{{0, 250'000}, {0, 250'000}};
  Heartbeat() { (void)setitimer(ITIMER_REAL, &kBeat, &outer_); }
  ~Heartbeat() { (void)setitimer(ITIMER_REAL, &outer_, nullptr); }
  itimerval outer_{};  // one can be inside another
};

uint64_t NowUs() {
  timespec now{};
  (void)clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

class Server {
 public:
  explicit Server(Service& service) : service_(service) {}

  void Run() {
    struct sigaction interrupt {};  // no SA_RESTART: see Heartbeat
    interrupt.sa_handler = [](int) {};
    OrThrow(sigaction(SIGALRM, &interrupt, nullptr), "sigaction");
    for (const int end : service_.ends) Watch(end, EPOLLIN, [this](uint32_t) { running_ = false; });
    for (auto& [key, stored] : service_.jobs) Adopt(stored);
    if (service_.watchdog_us != 0) WatchTheClock();
    if (service_.listener.IsOpen()) Watch(service_.listener.Get(), EPOLLIN, [this](uint32_t) { AcceptPeer(); });
    if (service_.peer.IsOpen()) TakePeer(std::move(service_.peer));
    service_.store.Tell("READY=1");
    while (running_) {
      // One at a time: what an event closes or erases cannot be named by another one that was fetched with it.
      epoll_event event{};
      if (epoll_wait(epoll_.Get(), &event, 1, -1) != 1) continue;
      const Handler handler = handlers_.at(event.data.fd);  // a copy: it may unwatch itself
      handler(event.events);
    }
  }

 private:
  using Handler = std::function<void(uint32_t events)>;

  // Again for one that is watched: for other events.
  void Watch(int fd, uint32_t events, Handler handler) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    const int change = handlers_.insert_or_assign(fd, std::move(handler)).second ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    OrThrow(epoll_ctl(epoll_.Get(), change, fd, &event), "epoll_ctl");
  }

  // epoll forgets a descriptor only when its last copy is closed, and a child has copies until it execs.
  void Unwatch(UniqueFd& fd) {
    (void)epoll_ctl(epoll_.Get(), EPOLL_CTL_DEL, fd.Get(), nullptr);
    handlers_.erase(fd.Get());
    fd.Reset();
  }

  // Half the time that systemd gives. That requests are read too is what the front end's Ping shows.
  void WatchTheClock() {
    const auto half = static_cast<time_t>(service_.watchdog_us / 2);
    const timespec beat{half / 1'000'000, half % 1'000'000 * 1000};
    const itimerspec beats{beat, beat};
    OrThrow(timerfd_settime(watchdog_.Get(), 0, &beats, nullptr), "timerfd_settime");
    Watch(watchdog_.Get(), EPOLLIN, [this](uint32_t) {
      uint64_t passed = 0;
      if (read(watchdog_.Get(), &passed, sizeof(passed)) > 0) service_.store.Tell("WATCHDOG=1");
    });
  }

  // Takes up a job of an earlier broker's where that one left it.
  void Adopt(StoredJob& stored) {
    const Parcel& parcel = stored.parcel;
    const auto found = service_.users.find(parcel.job.key.user);
    Record record;
    record.parcel = parcel;
    if (found != service_.users.end()) record.owner = &found->second;
    if (parcel.Ended()) record.state = State::kEnded;
    if (parcel.Ended() || record.owner == nullptr) service_.store.Drop(parcel.Name(false));
    if (record.owner == nullptr) return service_.store.Drop(parcel.Name(true));
    record.child.descriptors = std::make_shared<JobDescriptors>();
    std::move(stored.descriptors.end() - kStdin, stored.descriptors.end(), record.child.descriptors->begin());
    if (!parcel.Ended()) {
      record.cgroup = OpenLeaf(record.owner->cgroup.Get(), parcel.job.key.id);
      if (!record.cgroup.IsOpen()) return service_.store.Drop(parcel.Name(false));
      record.child.pidfd = std::move(stored.descriptors[0]);
      record.child.status = std::move(stored.descriptors[1]);
    }
    Begin(std::move(record));
  }

  void Begin(Record record) {
    ++record.owner->job_count;
    record.owner->ended_count += record.state == State::kEnded ? 1U : 0U;
    stored_names_ += record.parcel.Name(true).size() + 1;
    const JobKey key = record.parcel.job.key;
    JobEntry& job = *jobs_.emplace(key, std::move(record)).first;
    if (job.second.state == State::kEnded) return;
    Watch(job.second.child.status.Get(), EPOLLIN, [this, &job](uint32_t) { ExecDone(job); });
  }

  void Keep(const Record& record) {
    std::vector<int> numbers;
    for (const UniqueFd* fd : {&record.child.pidfd, &record.child.status}) {
      if (fd->IsOpen()) numbers.push_back(fd->Get());
    }
    for (size_t i = 0; i < kStdin; ++i) numbers.push_back((*record.child.descriptors)[i].Get());
    service_.store.Keep(record.parcel, numbers);
  }

  // The rendezvous socket is never read: whoever connects is judged by the uid that the kernel recorded.
  void AcceptPeer() {
    const Heartbeat heartbeat;
    const UniqueFd visitor(accept4(service_.listener.Get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    ucred who{};
    socklen_t size = sizeof(who);
    if (!visitor.IsOpen() || getsockopt(visitor.Get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return;
    // A front end that died is gone, though what it sent last is still to be read.
    for (pollfd hung_up{peer_.Get(), 0, 0}; peer_.IsOpen() && poll(&hung_up, 1, 0) == 1;) ReadRequest();
    if (who.uid != service_.peer_uid || peer_.IsOpen()) {
      const char* reason = who.uid != service_.peer_uid ? "wrong uid" : "another front end is connected";
      (void)fprintf(stderr, "jobbroker: refused uid=%u pid=%d reason=\"%s\"\n", who.uid, who.pid, reason);
      return;
    }
    std::pair<UniqueFd, UniqueFd> pair = MessageSocketPair();
    if (SendMessage(visitor.Get(), "+", std::array{pair.second.Get()}) == 0) TakePeer(std::move(pair.first));
  }

  void TakePeer(UniqueFd peer) {
    const int off = 0;
    (void)setsockopt(peer.Get(), SOL_SOCKET, kSoPassRights, &off, sizeof(off));
    peer_ = std::move(peer);
    greeted_ = blocked_ = false;
    WatchPeer(EPOLLIN);
  }

  void WatchPeer(uint32_t wanted) {
    Watch(peer_.Get(), wanted, [this](uint32_t events) {
      if ((events & EPOLLIN) != 0) return ReadRequest();
      return (events & EPOLLOUT) != 0 ? Flush() : DropPeer("closed");
    });
  }

  void DropPeer(const char* reason) {
    (void)fprintf(stderr, "jobbroker: front end dropped reason=\"%s\"\n", reason);
    const Heartbeat heartbeat;
    (void)shutdown(peer_.Get(), SHUT_RDWR);  // a child has a copy until it execs
    Unwatch(peer_);
    outgoing_.clear();
    if (!service_.listener.IsOpen()) running_ = false;
  }

  void ReadRequest() {
    const Heartbeat heartbeat;
    std::string_view message;
    const Receive received = ReceiveMessage(peer_.Get(), buffer_, message);
    if (received == Receive::kNothingYet) return;
    if (received == Receive::kClosed) return DropPeer("closed");
    if (received == Receive::kViolation) return DropPeer("message too long or with descriptors");
    const std::optional<Request> request = Decode<Request>(message);
    if (!request) return DropPeer("malformed request");
    const auto judge = [this](const auto& asked) {
      return IsAllowed(StateOf(asked), asked.kType) ? Answer(asked) : DropPeer("request not allowed in this state");
    };
    std::visit(judge, *request);
  }

  State StateOf(const auto& message) {
    if (!greeted_) return State::kNewPeer;
    if constexpr (requires { message.key; }) {
      const auto job = jobs_.find(message.key);
      if (job != jobs_.end()) return job->second.state;
    }
    return State::kAbsent;
  }

  void Answer(const Hello& hello) {
    if (hello.version != kProtocolVersion) return DropPeer("other protocol version");
    greeted_ = true;
    Send(Encode(Welcome{kProtocolVersion, service_.missing, static_cast<uint32_t>(jobs_.size())}));
    for (JobEntry& job : jobs_) {
      SendJob(job.second, ReplyType::kJob);
      if (job.second.state == State::kEnded) Send(Encode(job.second.parcel.exited));
    }
  }

  void Answer(const Ping&) { Send(Encode(Pong{})); }

  void Answer(const Start& start) {
    const auto found = service_.users.find(start.key.user);
    if (found == service_.users.end()) return Fail(start.key, RequestType::kStart, Stage::kUser, ENOENT);
    User& owner = found->second;
    // One that has ended does not count: a front end keeps the newest, which tells the next one where ids go on.
    const uint64_t free = owner.ended_count > 0 ? 1 : 0;
    const bool full = service_.store.IsOpen() && stored_names_ > kMostStoredNames;
    if (full || owner.job_count - free >= owner.max_jobs) {
      return Fail(start.key, RequestType::kStart, Stage::kJobs, EAGAIN);
    }
    const std::optional<Limits> limits = JobLimits(owner, start.limits);
    if (!limits) return Fail(start.key, RequestType::kStart, Stage::kCeiling, EPERM);
    Record record;
    record.owner = &owner;
    record.parcel.exited.key = start.key;
    record.parcel.job = {start.key, {}, owner.missing, 0, NowUs(), 0};
    Stage stage = Stage::kCgroup;
    try {
      record.cgroup = MakeLeaf(owner.cgroup.Get(), start.key.id);
      stage = Stage::kLimits;
      // The kernel gives out the lowest free number. What a start leaves free is for killing jobs and for visitors.
      errno = EMFILE;
      OrThrow(max_descriptors_ - kSpareDescriptors - record.cgroup.Get(), "descriptors");
      record.parcel.job.limits = ApplyLimits(record.cgroup.Get(), *limits, owner.missing, owner.disk);
      for (size_t i = 0; i < kLimitCount; ++i)
        record.parcel.job.limits[i] = std::min(record.parcel.job.limits[i], owner.applied[i]);
      record.child = Spawn(owner, start, record.cgroup.Get(), stage);
    } catch (const std::system_error& error) {
      if (error.code() != std::errc::file_exists) (void)RemoveLeaf(owner.cgroup.Get(), start.key.id);
      return Fail(start.key, RequestType::kStart, stage, error.code().value());
    }
    Keep(record);
    Begin(std::move(record));
  }

  void Answer(const Signal& signal) {
    const UniqueFd& pidfd = jobs_.at(signal.key).child.pidfd;
    if (pidfd.IsOpen() && syscall(SYS_pidfd_send_signal, pidfd.Get(), signal.number, nullptr, 0) == 0) return;
    Fail(signal.key, RequestType::kSignal, Stage::kSignal, pidfd.IsOpen() ? errno : ESRCH);
  }

  void Answer(const Kill& kill) {
    const UniqueFd& cgroup = jobs_.at(kill.key).cgroup;
    const int error = cgroup.IsOpen() ? KillAll(cgroup.Get()) : ESRCH;
    if (error != 0) Fail(kill.key, RequestType::kKill, Stage::kKill, error);
  }

  void Answer(const UsageRequest& usage) {
    const Record& record = jobs_.at(usage.key);
    const bool lives = record.cgroup.IsOpen();
    Send(Encode(UsageIs{usage.key, lives ? ReadCounters(record.cgroup.Get()) : record.parcel.exited.counters}));
  }

  void Answer(const WhoIs& who) {
    UserIs is{who.user};
    if (const auto found = service_.users.find(who.user); found != service_.users.end()) {
      const User& user = found->second;
      const auto most = static_cast<uint32_t>(std::min<uint64_t>(user.max_jobs, UINT32_MAX));
      is = {who.user, 1, user.missing, static_cast<uint32_t>(user.job_count), most, user.applied, user.job};
      for (size_t i = 0; i < kLimitCount; ++i) is.ceiling[i] = std::min(is.ceiling[i], user.ceiling[i]);
    }
    Send(Encode(is));
  }

  void Answer(const Forget& forget) {
    const Record& record = jobs_.at(forget.key);
    service_.store.Drop(record.parcel.Name(true));
    stored_names_ -= record.parcel.Name(true).size() + 1;
    --record.owner->job_count;
    --record.owner->ended_count;
    jobs_.erase(forget.key);
  }

  void ExecDone(JobEntry& job) {
    Record& record = job.second;
    const ssize_t size = read(record.child.status.Get(), &record.failure, sizeof(record.failure));
    if (size < 0) return;  // EAGAIN or EINTR: epoll tells again
    Unwatch(record.child.status);
    Watch(record.child.pidfd.Get(), EPOLLIN, [this, &job](uint32_t now) { MainProcessEnded(job, now); });
    if (size != 0) return;
    record.state = State::kRunning;
    SendJob(record, ReplyType::kStarted);
  }

  void MainProcessEnded(JobEntry& job, uint32_t events) {
    Record& record = job.second;
    Exited& exited = record.parcel.exited;
    const int pidfd = record.child.pidfd.Get();
    siginfo_t info{};
    PidfdInfo foreign;
    int status = 0;  // as of waitpid
    if (waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG) == 0) {
      if (info.si_pid == 0) return;
      status = info.si_code == CLD_EXITED ? info.si_status << 8 : info.si_status;
      status |= info.si_code == CLD_DUMPED ? WCOREFLAG : 0;
    } else if (ioctl(pidfd, kPidfdGetInfo, &foreign) == 0 && (foreign.mask & PidfdInfo::kExit) != 0) {
      status = foreign.exit_code;
    } else if (errno != ENOTTY && (events & EPOLLHUP) == 0) {
      // A child of an earlier broker. How it ended is told once another process has reaped it, which hangs up.
      return Watch(pidfd, 0, [this, &job](uint32_t now) { MainProcessEnded(job, now); });
    } else {
      exited.cause = EndCause::kUnknown;
    }
    Unwatch(record.child.pidfd);
    record.state = State::kEnding;
    exited.ended_us = std::max(NowUs(), record.parcel.job.started_us);  // the clock may have been set back
    if (exited.cause != EndCause::kUnknown) {
      exited.cause = WIFEXITED(status) ? EndCause::kExited : EndCause::kSignalled;
      exited.value = static_cast<uint8_t>(WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
      exited.core_dumped = WCOREDUMP(status) ? 1 : 0;
    }
    record.events = OpenEvents(record.cgroup.Get());
    if (!IsPopulated(record.events)) return CgroupEmpty(job);
    exited.leftovers = CountProcesses(record.cgroup.Get());
    (void)KillAll(record.cgroup.Get());
    Watch(record.events.Get(), EPOLLPRI, [this, &job](uint32_t) {
      if (!IsPopulated(job.second.events)) CgroupEmpty(job);
    });
  }

  void CgroupEmpty(JobEntry& job) {
    Record& record = job.second;
    Unwatch(record.events);
    ReadOomKills(record.cgroup.Get(), record.parcel.exited.oom_kills, record.parcel.exited.oom_level);
    record.parcel.exited.counters = ReadCounters(record.cgroup.Get());
    record.cgroup.Reset();
    if (record.failure.error == 0) Keep(record);
    service_.store.Drop(record.parcel.Name(false));
    if (!RemoveLeaf(record.owner->cgroup.Get(), job.first.id)) perror("jobbroker: a job's cgroup is left behind");
    record.state = State::kEnded;
    ++record.owner->ended_count;
    if (record.failure.error == 0) return Send(Encode(record.parcel.exited));
    Fail(job.first, RequestType::kStart, record.failure.stage, record.failure.error);
    Answer(Forget{job.first});
  }

  void Fail(const JobKey& key, RequestType request, Stage stage, int error) {
    Send(Encode(Failed{key, request, stage, static_cast<uint32_t>(error)}));
  }

  void SendJob(Record& record, ReplyType type) {
    if (!peer_.IsOpen() || !greeted_) return;
    // Once it waits to be sent it goes with its message: the job sees the end of its input when the front end, which
    // alone has it then, closes it or dies.
    UniqueFd stdin_end = std::move((*record.child.descriptors)[kStdin]);
    record.parcel.job.has_stdin = stdin_end.IsOpen() ? 1 : 0;
    record.parcel.job.starting = record.state == State::kStarting || record.failure.error != 0 ? 1 : 0;
    Send(Encode(record.parcel.job, type), record.child.descriptors, std::move(stdin_end));
  }

  void Send(std::string message, std::shared_ptr<JobDescriptors> descriptors = nullptr, UniqueFd stdin_end = {}) {
    if (!peer_.IsOpen() || !greeted_) return;
    outgoing_.push_back({std::move(message), std::move(descriptors), std::move(stdin_end)});
    if (!blocked_) Flush();
  }

  // While anything waits here no request is read: a front end that does not read gets no further answers.
  void Flush() {
    int error = 0;
    for (; !outgoing_.empty(); outgoing_.pop_front()) {
      const auto& [message, descriptors, stdin_end] = outgoing_.front();
      std::vector<int> numbers;
      for (size_t i = 0; descriptors != nullptr && i < kStdin; ++i) numbers.push_back((*descriptors)[i].Get());
      if (stdin_end.IsOpen()) numbers.push_back(stdin_end.Get());
      error = SendMessage(peer_.Get(), message, numbers);
      if (error != 0) break;
    }
    if (error != 0 && error != EAGAIN) return DropPeer(strerror(error));
    if (blocked_ != (error != 0)) WatchPeer(error != 0 ? EPOLLOUT : EPOLLIN);
    blocked_ = error != 0;
  }

  Service& service_;
  size_t stored_names_ = 0;
  const UniqueFd watchdog_{OrThrow(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create")};
  const UniqueFd epoll_{OrThrow(epoll_create1(EPOLL_CLOEXEC), "epoll_create1")};
  std::map<int, Handler> handlers_;
  UniqueFd peer_;
  const int max_descriptors_ = static_cast<int>(sysconf(_SC_OPEN_MAX));
  bool running_ = true, greeted_ = false, blocked_ = false;
  Jobs jobs_;
  std::deque<Outgoing> outgoing_;
  std::string buffer_ = std::string(kMaxMessageBytes, '\0');
};

}  // namespace

void Serve(Service service) { Server(service).Run(); }
}  // namespace jobworker
