#include "broker/server.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
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
constexpr int kSoPassRights = 83;             // SO_PASSRIGHTS, Linux 6.16
constexpr size_t kMostStoredNames = 130'000;  // they come in one string of the environment: at most 128 KiB

// What PIDFD_GET_INFO (Linux 6.15) gives of a process that somebody has reaped.
struct PidfdInfo {
  uint64_t mask = kExit, cgroup = 0;
  uint32_t ids[11] = {};
  int32_t exit_code = 0;
  static constexpr uint64_t kExit = 8;
};

struct Record : StoredJob {
  State state = State::kStarting;
  User* owner = nullptr;
  Leaf leaf;
  ChildFailure failure;  // with an error, the job never ran: it ends as Failed, not as Exited
};
using Jobs = std::map<JobKey, Record>;
using JobEntry = Jobs::value_type;

// The kernel closes descriptors that were sent to us when we read, or drop unread, what they came with; and closing a
// TCP socket with SO_LINGER waits. Where the kernel does not refuse them to the sender, a heartbeat interrupts that.
void Beat(bool on) {
  const itimerval beat{{0, on ? 250'000 : 0}, {0, on ? 250'000 : 0}};
  (void)setitimer(ITIMER_REAL, &beat, nullptr);
}

uint64_t NowUs() {
  return static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch() / std::chrono::microseconds(1));
}

class Server {
 public:
  Server(Users& users, uint8_t missing, const Store& store, UniqueFd listener, uid_t peer_uid)
      : users_(users), missing_(missing), store_(store), listener_(std::move(listener)), peer_uid_(peer_uid) {}
  ~Server() { Beat(true); }  // while its sockets, and what is unread in them, are closed

  void Run(StoredJobs&& jobs, UniqueFd peer, std::initializer_list<int> ends) {
    struct sigaction interrupt {};  // no SA_RESTART: see Beat
    interrupt.sa_handler = [](int) {};
    OrThrow(sigaction(SIGALRM, &interrupt, nullptr), "sigaction");
    for (const int end : ends)
      if (end >= 0) Watch(end, EPOLLIN, [this](uint32_t) { running_ = false; });
    for (auto& [key, job] : jobs) TakeUp(std::move(job));
    if (listener_.IsOpen()) Watch(listener_.Get(), EPOLLIN, [this](uint32_t) { AcceptPeer(); });
    if (peer.IsOpen()) TakePeer(std::move(peer));
    store_.Tell("READY=1");
    const uint64_t pause_us = store_.watchdog_us() / 3;  // an event may come just before it is over
    const int pause_ms = pause_us != 0 ? static_cast<int>(pause_us / 1000) + 1 : -1;
    for (uint64_t told_us = 0; running_;) {
      if (pause_us != 0 && NowUs() - told_us > pause_us) told_us = NowUs(), store_.Tell("WATCHDOG=1");
      // One at a time: what an event closes or erases cannot be named by another one that was fetched with it.
      epoll_event event{};
      if (epoll_wait(epoll_.Get(), &event, 1, pause_ms) != 1) continue;
      const Handler handler = handlers_.at(event.data.fd);  // a copy: it may unwatch itself
      Beat(true);
      handler(event.events);
      Beat(false);
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

  // A job of an earlier broker's, where that one left it.
  void TakeUp(StoredJob job) {
    User& owner = users_.at(job.job.key.user);
    Leaf leaf = OpenLeaf(owner.cgroup.Get(), std::to_string(job.job.key.id));
    const bool ended = job.Ended();
    if (ended || !leaf.directory.IsOpen()) store_.Drop(job.Name(false));
    if (!ended && !leaf.directory.IsOpen()) return;
    owner.ended_count += ended ? 1U : 0U;
    const State state = ended ? State::kEnded : State::kRunning;
    JobEntry& entry = Add({std::move(job), state, &owner, std::move(leaf), {}});
    if (!ended) WatchEnd(entry, EPOLLIN);
  }

  JobEntry& Add(Record record) {
    ++record.owner->job_count;
    stored_names_ += record.Name(true).size() + 1;
    return *jobs_.emplace(record.job.key, std::move(record)).first;
  }

  // The rendezvous socket is never read: whoever connects is judged by the uid that the kernel recorded.
  void AcceptPeer() try {
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
  } catch (const std::system_error& error) {
    (void)fprintf(stderr, "jobbroker: no front end can come: %s\n", error.what());
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
    (void)shutdown(peer_.Get(), SHUT_RDWR);  // a child has a copy until it execs
    Unwatch(peer_);
    outgoing_.clear();
    if (!listener_.IsOpen()) running_ = false;
  }

  void ReadRequest() {
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
    const uint64_t most = store_.IsOpen() && stored_names_ > kMostStoredNames ? 0 : owner.max_jobs;
    if (owner.job_count - free >= most) return Fail(start.key, RequestType::kStart, Stage::kJobs, EAGAIN);
    const std::optional<Limits> limits = JobLimits(owner, start.limits);
    if (!limits) return Fail(start.key, RequestType::kStart, Stage::kCeiling, EPERM);
    Record record;
    record.owner = &owner;
    record.exited.key = start.key;
    record.job = {start.key, {}, owner.missing, 0, NowUs(), 0};
    Stage stage = Stage::kCgroup;
    try {
      record.leaf = MakeLeaf(owner.cgroup.Get(), start.key.id);
      stage = Stage::kLimits;
      for (UniqueFd* kept : {&record.leaf.directory, &record.leaf.events, &record.leaf.kill}) Keep(*kept, first_kept_);
      record.job.limits = ApplyLimits(record.leaf.directory.Get(), *limits, owner.missing, owner.disk);
      for (size_t i = 0; i < kLimitCount; ++i) record.job.limits[i] = std::min(record.job.limits[i], owner.applied[i]);
      record.child = Spawn(owner, start, record.leaf.directory.Get(), stage);
    } catch (const std::system_error& error) {
      if (error.code() != std::errc::file_exists) (void)RemoveLeaf(owner.cgroup.Get(), start.key.id);
      return Fail(start.key, RequestType::kStart, stage, error.code().value());
    }
    JobEntry& job = Add(std::move(record));
    Watch(job.second.child.status.Get(), EPOLLIN, [this, &job](uint32_t) { ExecDone(job); });
    Watch(job.second.child.pidfd.Get(), EPOLLIN | EPOLLONESHOT, [&job](uint32_t) { CloseEnds(job.second.child); });
  }

  void Answer(const Signal& signal) {
    const UniqueFd& pidfd = jobs_.at(signal.key).child.pidfd;
    if (pidfd.IsOpen() && syscall(SYS_pidfd_send_signal, pidfd.Get(), signal.number, nullptr, 0) == 0) return;
    Fail(signal.key, RequestType::kSignal, Stage::kSignal, pidfd.IsOpen() ? errno : ESRCH);
  }

  void Answer(const Kill& kill) {
    const Leaf& leaf = jobs_.at(kill.key).leaf;
    const int error = leaf.kill.IsOpen() ? KillAll(leaf.kill) : ESRCH;
    if (error != 0) Fail(kill.key, RequestType::kKill, Stage::kKill, error);
  }

  void Answer(const UsageRequest& usage) {
    const Record& record = jobs_.at(usage.key);
    const bool lives = record.leaf.directory.IsOpen();
    Send(Encode(UsageIs{usage.key, lives ? ReadCounters(record.leaf.directory.Get()) : record.exited.counters}));
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
    store_.Drop(record.Name(true));
    stored_names_ -= record.Name(true).size() + 1;
    --record.owner->job_count;
    --record.owner->ended_count;
    jobs_.erase(forget.key);
  }

  static void CloseEnds(Child& child) {
    for (int& end : child.ends) UniqueFd(std::exchange(end, -1)).Reset();
  }

  void ExecDone(JobEntry& job) {
    Record& record = job.second;
    const ssize_t size = read(record.child.status.Get(), &record.failure, sizeof(record.failure));
    if (size < 0) return;  // EAGAIN or EINTR: epoll tells again
    CloseEnds(record.child);
    if (size != 0 && record.failure.error == 0) return;
    Unwatch(record.child.status);
    WatchEnd(job, EPOLLIN);
    if (size != 0) return;
    record.state = State::kRunning;
    store_.Keep(record);  // before anybody is told of it
    SendJob(record, ReplyType::kStarted);
  }

  void WatchEnd(JobEntry& job, uint32_t events) {
    Watch(job.second.child.pidfd.Get(), events | EPOLLET, [this, &job](uint32_t now) { MainProcessEnded(job, now); });
  }

  void MainProcessEnded(JobEntry& job, uint32_t events) {
    Record& record = job.second;
    siginfo_t info{};
    PidfdInfo foreign;
    const int pidfd = record.child.pidfd.Get();
    if (waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG) == 0) {
      if (info.si_pid == 0) return;  // a tracer knows first; there is another edge when it has let go
    } else if (ioctl(pidfd, _IOWR(0xff, 11, PidfdInfo), &foreign) == 0 && (foreign.mask & PidfdInfo::kExit) != 0) {
      const int status = foreign.exit_code;
      info.si_code = WIFEXITED(status) ? CLD_EXITED : WCOREDUMP(status) ? CLD_DUMPED : CLD_KILLED;
      info.si_status = WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status);
    } else if (errno != ENOTTY && (events & EPOLLHUP) == 0) {
      // A child of an earlier broker. How it ended is told once another process has reaped it, which hangs up.
      return WatchEnd(job, 0);
    }
    Unwatch(record.child.pidfd);
    record.state = State::kEnding;
    record.exited.ended_us = std::max(NowUs(), record.job.started_us);  // the clock may have been set back
    record.exited.cause = info.si_code == CLD_EXITED ? EndCause::kExited : EndCause::kSignalled;
    if (info.si_code == 0) record.exited.cause = EndCause::kUnknown;
    record.exited.value = static_cast<uint8_t>(info.si_status);
    record.exited.core_dumped = info.si_code == CLD_DUMPED;
    if (!IsPopulated(record.leaf.events)) return CgroupEmpty(job);
    record.exited.leftovers = CountProcesses(record.leaf.directory.Get());
    (void)KillAll(record.leaf.kill);
    Watch(record.leaf.events.Get(), EPOLLPRI, [this, &job](uint32_t) {
      if (!IsPopulated(job.second.leaf.events)) CgroupEmpty(job);
    });
  }

  void CgroupEmpty(JobEntry& job) {
    Record& record = job.second;
    Unwatch(record.leaf.events);
    ReadOomKills(record.leaf.directory.Get(), record.exited.oom_kills, record.exited.oom_level);
    record.exited.counters = ReadCounters(record.leaf.directory.Get());
    record.leaf = {};
    if (record.failure.error == 0) store_.Keep(record), store_.Drop(record.Name(false));
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
    // It goes with one message: another that shares the descriptors waits in outgoing_ and takes it along.
    record.job.has_stdin = record.child.descriptors.use_count() == 1 && (*record.child.descriptors)[kStdin].IsOpen();
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
  const Store& store_;
  const UniqueFd listener_;
  const uid_t peer_uid_;
  size_t stored_names_ = 0;
  const UniqueFd epoll_{OrThrow(epoll_create1(EPOLL_CLOEXEC), "epoll_create1")};
  std::map<int, Handler> handlers_;
  UniqueFd peer_;
  const int first_kept_ = std::min(epoll_.Get() + 256, static_cast<int>(sysconf(_SC_OPEN_MAX)) / 3);
  bool running_ = true, greeted_ = false, blocked_ = false;
  Jobs jobs_;
  std::deque<std::pair<std::string, std::shared_ptr<JobDescriptors>>> outgoing_;
  std::string buffer_ = std::string(kMaxMessageBytes, '\0');
};

}  // namespace

void Serve(Users& users, uint8_t missing, const Store& store, StoredJobs jobs, std::initializer_list<int> ends,
           UniqueFd peer, UniqueFd listener, uid_t peer_uid) {
  Server(users, missing, store, std::move(listener), peer_uid).Run(std::move(jobs), std::move(peer), ends);
}
}  // namespace jobworker
