#include "broker/server.h"

#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "broker/cgroup.h"

namespace jobworker {

namespace {

constexpr int kSoPassRights = 83;  // SO_PASSRIGHTS, Linux 6.16
constexpr uint64_t kSourceMask = 7;

void SetAlarm(suseconds_t microseconds) {
  const itimerval timer{{0, 0}, {0, microseconds}};
  (void)setitimer(ITIMER_REAL, &timer, nullptr);
}

}  // namespace

Server::Server(Users users, uint8_t missing, UniqueFd peer, UniqueFd listener, uid_t peer_uid)
    : users_(std::move(users)),
      missing_(missing),
      peer_(std::move(peer)),
      listener_(std::move(listener)),
      peer_uid_(peer_uid),
      standalone_(peer_.IsOpen()),
      buffer_(kMaxMessageBytes, '\0') {}

Status Server::Run() {
  sigset_t ends;
  sigemptyset(&ends);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&ends, number);
  struct sigaction interrupt {};  // no SA_RESTART: see ReadRequest
  interrupt.sa_handler = [](int) {};
  epoll_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  signals_ = UniqueFd(signalfd(-1, &ends, SFD_CLOEXEC));
  if (!epoll_.IsOpen() || !signals_.IsOpen() || sigprocmask(SIG_BLOCK, &ends, nullptr) != 0 ||
      sigaction(SIGALRM, &interrupt, nullptr) != 0) {
    return ErrnoError("epoll or signals");
  }
  Watch(signals_.Get(), EPOLLIN, Source::kSignals);
  if (listener_.IsOpen()) Watch(listener_.Get(), EPOLLIN, Source::kListener);
  if (standalone_) TakePeer(std::move(peer_));
  while (running_) {
    // One at a time: what an event closes or erases cannot be named by another one that was fetched with it.
    epoll_event event{};
    const int count = epoll_wait(epoll_.Get(), &event, 1, -1);
    if (count < 0 && errno != EINTR) return ErrnoError("epoll_wait");
    if (count == 1) HandleEvent(event.data.u64, event.events);
  }
  return Done{};
}

void Server::Watch(int fd, uint32_t events, Source source, JobEntry* job) {
  static_assert(alignof(JobEntry) > kSourceMask);
  epoll_event event{};
  event.events = events;
  event.data.u64 = reinterpret_cast<uintptr_t>(job) | static_cast<uint64_t>(source);
  if (epoll_ctl(epoll_.Get(), EPOLL_CTL_ADD, fd, &event) == 0) return;
  if (errno == EEXIST && epoll_ctl(epoll_.Get(), EPOLL_CTL_MOD, fd, &event) == 0) return;
  (void)fprintf(stderr, "jobbroker: epoll_ctl: %s\n", strerror(errno));
  running_ = false;  // nothing would ever tell of this descriptor again
}

// epoll forgets a descriptor only when its last copy is closed, and a child has copies until it execs.
void Server::Unwatch(UniqueFd& fd) {
  (void)epoll_ctl(epoll_.Get(), EPOLL_CTL_DEL, fd.Get(), nullptr);
  fd.Reset();
}

void Server::HandleEvent(uint64_t token, uint32_t events) {
  auto* const job = reinterpret_cast<JobEntry*>(token & ~kSourceMask);
  switch (static_cast<Source>(token & kSourceMask)) {
    case Source::kSignals: running_ = false; return;
    case Source::kListener: return AcceptPeer();
    case Source::kPeer:
      if ((events & EPOLLIN) != 0) return ReadRequest();
      return (events & EPOLLOUT) != 0 ? Flush() : DropPeer("closed");
    case Source::kStatus: return ExecDone(*job);
    case Source::kPidfd: return MainProcessEnded(*job);
    case Source::kEvents:
      if (!IsPopulated(job->second.events.Get())) CgroupEmpty(*job);
      return;
  }
}

// The rendezvous socket is never read: whoever connects is judged by the uid that the kernel recorded.
void Server::AcceptPeer() {
  const UniqueFd visitor(accept4(listener_.Get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  ucred who{};
  socklen_t size = sizeof(who);
  if (!visitor.IsOpen() || getsockopt(visitor.Get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return;
  if (who.uid != peer_uid_ || peer_.IsOpen()) {
    const char* reason = who.uid != peer_uid_ ? "wrong uid" : "another front end is connected";
    (void)fprintf(stderr, "jobbroker: refused uid=%u pid=%d reason=\"%s\"\n", who.uid, who.pid, reason);
    return;
  }
  Result<std::pair<UniqueFd, UniqueFd>> pair = MessageSocketPair();
  if (!pair.Ok() || !SendMessage(visitor.Get(), "+", {pair.value().second.Get()}).Ok()) return;
  TakePeer(std::move(pair.value().first));
}

void Server::TakePeer(UniqueFd peer) {
  const int off = 0;
  refuses_rights_ = setsockopt(peer.Get(), SOL_SOCKET, kSoPassRights, &off, sizeof(off)) == 0;
  peer_ = std::move(peer);
  greeted_ = blocked_ = false;
  Watch(peer_.Get(), EPOLLIN, Source::kPeer);
}

void Server::DropPeer(const char* reason) {
  (void)fprintf(stderr, "jobbroker: front end dropped reason=\"%s\"\n", reason);
  Unwatch(peer_);
  outgoing_.clear();
  if (standalone_) running_ = false;
}

// Descriptors sent to us are closed by the kernel as recvmsg returns, and closing a TCP socket with SO_LINGER waits.
// Where the kernel cannot refuse them to the sender, an alarm ends that wait.
void Server::ReadRequest() {
  std::string_view message;
  if (!refuses_rights_) SetAlarm(250'000);
  const Receive received = ReceiveMessage(peer_.Get(), buffer_, message);
  if (!refuses_rights_) SetAlarm(0);
  if (received == Receive::kNothingYet) return;
  if (received == Receive::kClosed) return DropPeer("closed");
  if (received == Receive::kViolation) return DropPeer("message too long or with descriptors");
  const std::optional<Request> request = Decode<Request>(message);
  if (!request) return DropPeer("malformed request");
  if (Judge(StateOf(*request), static_cast<RequestType>(request->index())) != Verdict::kAllowed) {
    return DropPeer("request not allowed in this state");
  }
  std::visit([this](const auto& allowed) { Answer(allowed); }, *request);
}

State Server::StateOf(const Request& request) {
  if (!greeted_) return State::kNewPeer;
  const auto state = [this](const auto& message) {
    if constexpr (requires { message.key; }) {
      const auto job = jobs_.find(message.key);
      if (job != jobs_.end()) return job->second.state;
    }
    return State::kAbsent;
  };
  return std::visit(state, request);
}

void Server::Answer(const Hello& hello) {
  if (hello.version != kProtocolVersion) return DropPeer("other protocol version");
  greeted_ = true;
  Send(Encode(Welcome{kProtocolVersion, missing_, static_cast<uint32_t>(jobs_.size())}));
  for (const auto& [key, record] : jobs_) {
    Send(Encode(Job{key, record.limits, record.owner->missing}), record.output);
    if (record.state == State::kEnded) Send(Encode(record.exited));
  }
}

void Server::Answer(const Start& start) {
  const auto fail = [&](Stage stage, int error) { Fail(start.key, RequestType::kStart, stage, error); };
  const auto found = users_.find(start.key.user);
  if (found == users_.end()) return fail(Stage::kUser, ENOENT);
  User& owner = found->second;
  if (owner.job_count >= owner.max_jobs) return fail(Stage::kJobs, EAGAIN);
  const Result<Limits> limits = JobLimits(owner, start.limits);
  if (!limits.Ok()) return fail(Stage::kCeiling, limits.error().code);
  Result<UniqueFd> leaf = MakeLeaf(owner.cgroup.Get(), start.key.id);
  if (!leaf.Ok()) return fail(Stage::kCgroup, leaf.error().code);
  const int directory = leaf.value().Get();
  Stage stage = Stage::kLimits;
  const Result<Limits> applied = ApplyLimits(directory, limits.value(), owner.missing, owner.disk);
  Result<Child> child = applied.Ok() ? Spawn(owner, start, directory, stage) : applied.error();
  if (!child.Ok()) {
    (void)RemoveLeaf(owner.cgroup.Get(), start.key.id);
    return fail(stage, child.error().code);
  }
  JobEntry& job = *jobs_.try_emplace(start.key).first;
  Record& record = job.second;
  record.owner = &owner;
  record.cgroup = std::move(leaf.value());
  record.pidfd = std::move(child.value().pidfd);
  record.status = std::move(child.value().status);
  record.output = std::make_shared<const Output>(std::move(child.value().output));
  std::transform(applied.value().begin(), applied.value().end(), owner.applied.begin(), record.limits.begin(),
                 [](uint64_t ours, uint64_t users) { return std::min(ours, users); });
  ++owner.job_count;
  Watch(record.status.Get(), EPOLLIN, Source::kStatus, &job);
}

void Server::Answer(const Signal& signal) {
  const UniqueFd& pidfd = jobs_.at(signal.key).pidfd;
  if (pidfd.IsOpen() && syscall(SYS_pidfd_send_signal, pidfd.Get(), signal.number, nullptr, 0) == 0) return;
  Fail(signal.key, RequestType::kSignal, Stage::kSignal, pidfd.IsOpen() ? errno : ESRCH);
}

void Server::Answer(const Kill& kill) {
  const UniqueFd& cgroup = jobs_.at(kill.key).cgroup;
  const Status killed = cgroup.IsOpen() ? KillAll(cgroup.Get()) : Status(Error{ESRCH, ""});
  if (!killed.Ok()) Fail(kill.key, RequestType::kKill, Stage::kKill, killed.error().code);
}

void Server::Answer(const UsageRequest& usage) {
  const Record& record = jobs_.at(usage.key);
  Send(Encode(UsageIs{usage.key, record.cgroup.IsOpen() ? ReadCounters(record.cgroup.Get()) : record.exited.counters}));
}

void Server::Answer(const Forget& forget) {
  --jobs_.at(forget.key).owner->job_count;
  jobs_.erase(forget.key);
}

void Server::ExecDone(JobEntry& job) {
  Record& record = job.second;
  const ssize_t size = read(record.status.Get(), &record.failure, sizeof(record.failure));
  if (size < 0) return;  // EAGAIN or EINTR: epoll tells again
  Unwatch(record.status);
  Watch(record.pidfd.Get(), EPOLLIN, Source::kPidfd, &job);
  if (size != 0) return;
  record.state = State::kRunning;
  Send(Encode(Started{job.first, record.limits, record.owner->missing}), record.output);
}

void Server::MainProcessEnded(JobEntry& job) {
  Record& record = job.second;
  siginfo_t info{};
  const auto id = static_cast<id_t>(record.pidfd.Get());
  if (waitid(static_cast<idtype_t>(P_PIDFD), id, &info, WEXITED | WNOHANG) != 0 || info.si_pid == 0) return;
  Unwatch(record.pidfd);
  record.state = State::kEnding;
  record.exited.key = job.first;
  record.exited.cause = info.si_code == CLD_EXITED ? EndCause::kExited : EndCause::kSignalled;
  record.exited.value = static_cast<uint8_t>(info.si_status);
  record.exited.core_dumped = info.si_code == CLD_DUMPED;
  Result<UniqueFd> events = OpenEvents(record.cgroup.Get());
  if (!events.Ok() || !IsPopulated(events.value().Get())) return CgroupEmpty(job);
  record.exited.leftovers = CountProcesses(record.cgroup.Get());
  (void)KillAll(record.cgroup.Get());
  record.events = std::move(events.value());
  Watch(record.events.Get(), EPOLLPRI, Source::kEvents, &job);
}

void Server::CgroupEmpty(JobEntry& job) {
  Record& record = job.second;
  Unwatch(record.events);
  ReadOomKills(record.cgroup.Get(), record.exited.oom_kills, record.exited.oom_level);
  record.exited.counters = ReadCounters(record.cgroup.Get());
  record.cgroup.Reset();
  const Status removed = RemoveLeaf(record.owner->cgroup.Get(), job.first.id);
  if (!removed.Ok()) {
    (void)fprintf(stderr, "jobbroker: cgroup left behind user=%s job=%s error=\"%s\"\n", job.first.user.c_str(),
                  std::to_string(job.first.id).c_str(), strerror(removed.error().code));
  }
  record.state = State::kEnded;
  if (record.failure.error == 0) return Send(Encode(record.exited));
  Fail(job.first, RequestType::kStart, record.failure.stage, record.failure.error);
  Answer(Forget{job.first});
}

void Server::Fail(const JobKey& key, RequestType request, Stage stage, int error) {
  Send(Encode(Failed{key, request, stage, static_cast<uint32_t>(error)}));
}

void Server::Send(std::string message, std::shared_ptr<const Output> descriptors) {
  if (!peer_.IsOpen() || !greeted_) return;
  outgoing_.push_back({std::move(message), std::move(descriptors)});
  if (!blocked_) Flush();
}

// While anything waits here no request is read: a front end that does not read gets no further answers.
void Server::Flush() {
  bool blocked = false;
  for (; !outgoing_.empty(); outgoing_.pop_front()) {
    const auto& [message, fds] = outgoing_.front();
    const Status sent = fds == nullptr ? SendMessage(peer_.Get(), message)
                                       : SendMessage(peer_.Get(), message, {fds->out.Get(), fds->err.Get()});
    blocked = !sent.Ok() && sent.error().code == EAGAIN;
    if (blocked) break;
    if (!sent.Ok()) return DropPeer(strerror(sent.error().code));
  }
  if (blocked != blocked_) Watch(peer_.Get(), blocked ? EPOLLOUT : EPOLLIN, Source::kPeer);
  blocked_ = blocked;
}

}  // namespace jobworker
