#include "broker/server.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/time.h>
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

struct Record {
  State state = State::kStarting;
  User* owner = nullptr;
  UniqueFd cgroup, events;
  Child child;
  ChildFailure failure;  // with an error, the job never ran: it ends as Failed, not as Exited
  Job job;
  Exited exited;
};
using Jobs = std::map<JobKey, Record>;
using JobEntry = Jobs::value_type;

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
  Server(Users& users, uint8_t missing, UniqueFd listener, uid_t peer_uid)
      : users_(users), missing_(missing), listener_(std::move(listener)), peer_uid_(peer_uid) {}

  void Run(UniqueFd peer, std::initializer_list<int> ends) {
    struct sigaction interrupt {};  // no SA_RESTART: see Heartbeat
    interrupt.sa_handler = [](int) {};
    OrThrow(sigaction(SIGALRM, &interrupt, nullptr), "sigaction");
    for (const int end : ends) Watch(end, EPOLLIN, [this](uint32_t) { running_ = false; });
    if (listener_.IsOpen()) Watch(listener_.Get(), EPOLLIN, [this](uint32_t) { AcceptPeer(); });
    if (peer.IsOpen()) TakePeer(std::move(peer));
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

  // The rendezvous socket is never read: whoever connects is judged by the uid that the kernel recorded.
  void AcceptPeer() {
    const Heartbeat heartbeat;
    const UniqueFd visitor(accept4(listener_.Get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    ucred who{};
    socklen_t size = sizeof(who);
    if (!visitor.IsOpen() || getsockopt(visitor.Get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return;
    // A front end that died is gone, though what it sent last is still to be read.
    for (pollfd hung_up{peer_.Get(), 0, 0}; peer_.IsOpen() && poll(&hung_up, 1, 0) == 1;) ReadRequest();
    if (who.uid != peer_uid_ || peer_.IsOpen()) {
      const char* reason = who.uid != peer_uid_ ? "wrong uid" : "another front end is connected";
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
    if (!listener_.IsOpen()) running_ = false;
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
    Send(Encode(Welcome{kProtocolVersion, missing_, static_cast<uint32_t>(jobs_.size())}));
    for (JobEntry& job : jobs_) {
      SendJob(job.second, ReplyType::kJob);
      if (job.second.state == State::kEnded) Send(Encode(job.second.exited));
    }
  }

  void Answer(const Ping&) { Send(Encode(Pong{})); }

  void Answer(const Start& start) {
    const auto found = users_.find(start.key.user);
    if (found == users_.end()) return Fail(start.key, RequestType::kStart, Stage::kUser, ENOENT);
    User& owner = found->second;
    // One that has ended does not count: a front end keeps the newest, which tells the next one where ids go on.
    const uint64_t free = owner.ended_count > 0 ? 1 : 0;
    if (owner.job_count - free >= owner.max_jobs) return Fail(start.key, RequestType::kStart, Stage::kJobs, EAGAIN);
    const std::optional<Limits> limits = JobLimits(owner, start.limits);
    if (!limits) return Fail(start.key, RequestType::kStart, Stage::kCeiling, EPERM);
    Record record;
    record.owner = &owner;
    record.exited.key = start.key;
    record.job = {start.key, {}, owner.missing, 0, NowUs(), 0};
    Stage stage = Stage::kCgroup;
    try {
      record.cgroup = MakeLeaf(owner.cgroup.Get(), start.key.id);
      stage = Stage::kLimits;
      // The kernel gives out the lowest free number. What a start leaves free is for killing jobs and for visitors.
      errno = EMFILE;
      OrThrow(max_descriptors_ - kSpareDescriptors - record.cgroup.Get(), "descriptors");
      record.job.limits = ApplyLimits(record.cgroup.Get(), *limits, owner.missing, owner.disk);
      for (size_t i = 0; i < kLimitCount; ++i) record.job.limits[i] = std::min(record.job.limits[i], owner.applied[i]);
      record.child = Spawn(owner, start, record.cgroup.Get(), stage);
    } catch (const std::system_error& error) {
      if (error.code() != std::errc::file_exists) (void)RemoveLeaf(owner.cgroup.Get(), start.key.id);
      return Fail(start.key, RequestType::kStart, stage, error.code().value());
    }
    ++owner.job_count;
    JobEntry& job = *jobs_.emplace(start.key, std::move(record)).first;
    Watch(job.second.child.status.Get(), EPOLLIN, [this, &job](uint32_t) { ExecDone(job); });
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
    Send(Encode(UsageIs{usage.key, lives ? ReadCounters(record.cgroup.Get()) : record.exited.counters}));
  }

  void Answer(const WhoIs& who) {
    UserIs is{who.user};
    if (const auto found = users_.find(who.user); found != users_.end()) {
      const User& user = found->second;
      const auto most = static_cast<uint32_t>(std::min<uint64_t>(user.max_jobs, UINT32_MAX));
      is = {who.user, 1, user.missing, static_cast<uint32_t>(user.job_count), most, user.applied, user.job};
      for (size_t i = 0; i < kLimitCount; ++i) is.ceiling[i] = std::min(is.ceiling[i], user.ceiling[i]);
    }
    Send(Encode(is));
  }

  void Answer(const Forget& forget) {
    const Record& record = jobs_.at(forget.key);
    --record.owner->job_count;
    --record.owner->ended_count;
    jobs_.erase(forget.key);
  }

  void ExecDone(JobEntry& job) {
    Record& record = job.second;
    const ssize_t size = read(record.child.status.Get(), &record.failure, sizeof(record.failure));
    if (size < 0) return;  // EAGAIN or EINTR: epoll tells again
    Unwatch(record.child.status);
    Watch(record.child.pidfd.Get(), EPOLLIN, [this, &job](uint32_t) { MainProcessEnded(job); });
    if (size != 0) return;
    record.state = State::kRunning;
    SendJob(record, ReplyType::kStarted);
  }

  void MainProcessEnded(JobEntry& job) {
    Record& record = job.second;
    siginfo_t info{};
    const auto id = static_cast<id_t>(record.child.pidfd.Get());
    if (waitid(static_cast<idtype_t>(P_PIDFD), id, &info, WEXITED | WNOHANG) != 0 || info.si_pid == 0) return;
    Unwatch(record.child.pidfd);
    record.state = State::kEnding;
    record.exited.ended_us = std::max(NowUs(), record.job.started_us);  // the clock may have been set back
    record.exited.cause = info.si_code == CLD_EXITED ? EndCause::kExited : EndCause::kSignalled;
    record.exited.value = static_cast<uint8_t>(info.si_status);
    record.exited.core_dumped = info.si_code == CLD_DUMPED;
    record.events = OpenEvents(record.cgroup.Get());
    if (!IsPopulated(record.events)) return CgroupEmpty(job);
    record.exited.leftovers = CountProcesses(record.cgroup.Get());
    (void)KillAll(record.cgroup.Get());
    Watch(record.events.Get(), EPOLLPRI, [this, &job](uint32_t) {
      if (!IsPopulated(job.second.events)) CgroupEmpty(job);
    });
  }

  void CgroupEmpty(JobEntry& job) {
    Record& record = job.second;
    Unwatch(record.events);
    ReadOomKills(record.cgroup.Get(), record.exited.oom_kills, record.exited.oom_level);
    record.exited.counters = ReadCounters(record.cgroup.Get());
    record.cgroup.Reset();
    if (!RemoveLeaf(record.owner->cgroup.Get(), job.first.id)) perror("jobbroker: a job's cgroup is left behind");
    record.state = State::kEnded;
    ++record.owner->ended_count;
    if (record.failure.error == 0) return Send(Encode(record.exited));
    Fail(job.first, RequestType::kStart, record.failure.stage, record.failure.error);
    Answer(Forget{job.first});
  }

  void Fail(const JobKey& key, RequestType request, Stage stage, int error) {
    Send(Encode(Failed{key, request, stage, static_cast<uint32_t>(error)}));
  }

  void SendJob(Record& record, ReplyType type) {
    record.job.has_stdin = (*record.child.descriptors)[kStdin].IsOpen() ? 1 : 0;
    record.job.starting = record.state == State::kStarting || record.failure.error != 0 ? 1 : 0;
    Send(Encode(record.job, type), record.child.descriptors);
  }

  void Send(std::string message, std::shared_ptr<JobDescriptors> descriptors = nullptr) {
    if (!peer_.IsOpen() || !greeted_) return;
    outgoing_.emplace_back(std::move(message), std::move(descriptors));
    if (!blocked_) Flush();
  }

  // While anything waits here no request is read: a front end that does not read gets no further answers.
  void Flush() {
    int error = 0;
    for (; !outgoing_.empty(); outgoing_.pop_front()) {
      const auto& [message, descriptors] = outgoing_.front();
      std::vector<int> numbers;
      for (size_t i = 0; descriptors != nullptr && i < kMaxDescriptors; ++i) {
        if ((*descriptors)[i].IsOpen()) numbers.push_back((*descriptors)[i].Get());
      }
      error = SendMessage(peer_.Get(), message, numbers);
      if (error != 0) break;
      // The job sees the end of its input once the front end, which alone has it now, closes it or dies.
      if (descriptors != nullptr) (*descriptors)[kStdin].Reset();
    }
    if (error != 0 && error != EAGAIN) return DropPeer(strerror(error));
    if (blocked_ != (error != 0)) WatchPeer(error != 0 ? EPOLLOUT : EPOLLIN);
    blocked_ = error != 0;
  }

  Users& users_;
  const uint8_t missing_;
  const UniqueFd listener_;
  const uid_t peer_uid_;
  const UniqueFd epoll_{OrThrow(epoll_create1(EPOLL_CLOEXEC), "epoll_create1")};
  std::map<int, Handler> handlers_;
  UniqueFd peer_;
  const int max_descriptors_ = static_cast<int>(sysconf(_SC_OPEN_MAX));
  bool running_ = true, greeted_ = false, blocked_ = false;
  Jobs jobs_;
  std::deque<std::pair<std::string, std::shared_ptr<JobDescriptors>>> outgoing_;
  std::string buffer_ = std::string(kMaxMessageBytes, '\0');
};

}  // namespace

void Serve(Users& users, uint8_t missing, std::initializer_list<int> ends, UniqueFd peer, UniqueFd listener,
           uid_t peer_uid) {
  Server(users, missing, std::move(listener), peer_uid).Run(std::move(peer), ends);
}
}  // namespace jobworker
