#include "daemon/job_table.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <csignal>

#include "daemon/log.h"

namespace jobworker {

namespace {

constexpr OutputStream kStreams[2] = {OutputStream::kStdout, OutputStream::kStderr};

void LogEnd(const Exited& exited, bool stopped) {
  const bool coded = exited.cause == EndCause::kExited;
  Log("job ended", {{"user", exited.key.user},
                    {"job", std::to_string(exited.key.id)},
                    {coded ? "code" : "signal", std::to_string(exited.value)},
                    {"stopped", stopped ? "yes" : "no"},
                    {"oom_kills", std::to_string(exited.oom_kills)},
                    {"leftovers", std::to_string(exited.leftovers)}});
}

}  // namespace

JobTable::JobTable(EventLoop& loop, const JobTableLimits& limits, std::function<void(const std::string&)> broker_gone)
    : loop_(loop),
      limits_(limits),
      broker_gone_(std::move(broker_gone)),
      memory_(std::make_shared<OutputMemory>(limits.output_per_job, limits.output_in_all)) {}

void JobTable::StartJob(const std::string& user, std::vector<std::string> argv, std::vector<std::string> env,
                        StartCallback done) {
  if (broker_ == nullptr) return done(tl::unexpected(JobFailure(NoJob::kGone)));
  if (broker_->backlog() >= limits_.broker_backlog) return done(tl::unexpected(JobFailure(NoJob::kBusy)));
  const JobKey key{user, ++users_[user].last_id};
  Entry& entry = jobs_[key];
  entry.start = {key, {}, std::move(argv), std::move(env), "", "", 0};
  entry.started = std::move(done);
  broker_->StartJob(entry.start);
}

tl::expected<JobTable::View, NoJob> JobTable::Find(const JobKey& key) const {
  if (broker_ == nullptr) return tl::unexpected(NoJob::kGone);
  const auto found = jobs_.find(key);
  if (found == jobs_.end() || found->second.view == nullptr) return tl::unexpected(NoJob::kUnknown);
  return found->second.view;
}

void JobTable::StopJob(const JobKey& key, StopCallback done) {
  if (broker_ == nullptr) return done(tl::unexpected(NoJob::kGone));
  const auto found = jobs_.find(key);
  if (found == jobs_.end()) return done(tl::unexpected(NoJob::kUnknown));
  Entry& entry = found->second;
  if (entry.phase == Phase::kEnded) return done(entry.view->result);
  entry.stop_waiters.push_back(std::move(done));
  // A job that is starting is stopped once it has started: until then it may fail, its key be free, and a request that
  // names it break the protocol.
  if (!std::exchange(entry.stopping, true) && entry.phase == Phase::kRunning) Terminate(key);
}

void JobTable::Terminate(const JobKey& key) {
  broker_->SignalJob(key, SIGTERM);
  loop_.At(EventLoop::Clock::now() + limits_.stop_grace, [this, key] {
    const auto found = jobs_.find(key);
    if (broker_ != nullptr && found != jobs_.end() && found->second.phase == Phase::kRunning) broker_->KillJob(key);
  });
}

void JobTable::Close() {
  broker_ = nullptr;
  for (auto& [key, entry] : jobs_) {
    if (const StartCallback started = std::exchange(entry.started, nullptr)) {
      started(tl::unexpected(JobFailure(NoJob::kGone)));
    }
    for (const StopCallback& done : std::exchange(entry.stop_waiters, {})) done(tl::unexpected(NoJob::kGone));
    if (entry.view != nullptr) entry.view->output->Abandon();
    for (size_t i = 0; i < std::size(kStreams); ++i) ClosePipe(entry, i);
  }
}

void JobTable::OnJob(const Job& job, JobDescriptors pipes) {
  UserJobs& user = users_[job.key.user];
  user.last_id = std::max(user.last_id, job.key.id);
  Entry& entry = jobs_[job.key];
  Adopt(job.key, job.missing, entry, std::move(pipes));
  if (!WatchPipes(job.key, entry)) entry.view->output->Abandon();
  Log("job taken over", {{"user", job.key.user}, {"job", std::to_string(job.key.id)}});
}

void JobTable::OnStarted(const Started& started, JobDescriptors pipes) {
  const auto found = jobs_.find(started.key);
  if (broker_ == nullptr || found == jobs_.end() || found->second.phase != Phase::kStarting) return;
  Entry& entry = found->second;
  const std::string command = fmt::format("{}", fmt::join(entry.start.argv, " "));
  Adopt(started.key, started.missing, entry, std::move(pipes));
  const StartCallback done = std::exchange(entry.started, nullptr);
  if (!WatchPipes(started.key, entry)) {
    // Nobody could read what it writes: it never was. The broker tells its end, and then it is forgotten.
    entry.phase = Phase::kUnusable;
    entry.view = nullptr;
    broker_->KillJob(started.key);
    return done(tl::unexpected(JobFailure(StageFailed{Stage::kPipe, EMFILE})));
  }
  Log("job started", {{"user", started.key.user}, {"job", std::to_string(started.key.id)}, {"command", command}});
  if (entry.stopping) broker_->KillJob(started.key);
  done(View(entry.view));
}

void JobTable::Adopt(const JobKey& key, uint8_t missing, Entry& entry, JobDescriptors pipes) {
  entry.phase = Phase::kRunning;
  entry.start = {};
  entry.pipes = std::move(pipes);
  entry.view = std::make_shared<JobView>();
  entry.view->key = key;
  entry.view->missing = missing;
  entry.view->output = std::make_shared<MemoryOutputStore>(memory_);
}

bool JobTable::WatchPipes(const JobKey& key, Entry& entry) {
  for (size_t i = 0; i < std::size(kStreams); ++i) {
    const int pipe = entry.pipes[i].Get();
    if (pipe >= 0 && loop_.Watch(pipe, EPOLLIN, [this, key, i] { ReadPipe(key, i); })) continue;
    for (size_t each = 0; each < std::size(kStreams); ++each) ClosePipe(entry, each);
    return false;
  }
  return true;
}

void JobTable::ReadPipe(const JobKey& key, size_t index) {
  Entry& entry = jobs_.at(key);
  const ssize_t size = entry.view->output->Take(kStreams[index], entry.pipes[index].Get());
  if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR)) ClosePipe(entry, index);
}

void JobTable::ClosePipe(Entry& entry, size_t index) {
  if (!entry.pipes[index].IsOpen()) return;
  loop_.Unwatch(entry.pipes[index].Get());
  entry.pipes[index].Reset();
}

// The job's cgroup is empty, so what is in the pipes now is all of its output. A process elsewhere may have been handed
// a write end: what it writes from now on is not waited for, or this would never end.
void JobTable::Drain(Entry& entry) {
  for (size_t i = 0; i < std::size(kStreams); ++i) {
    int left = 0;
    if (entry.pipes[i].IsOpen() && ioctl(entry.pipes[i].Get(), FIONREAD, &left) != 0) left = 0;
    while (left > 0) {
      const ssize_t size = entry.view->output->Take(kStreams[i], entry.pipes[i].Get());
      if (size <= 0) break;
      left -= static_cast<int>(size);
    }
    ClosePipe(entry, i);
  }
}

void JobTable::OnFailed(const Failed& failed) {
  const auto found = jobs_.find(failed.key);
  if (failed.request != RequestType::kStart || found == jobs_.end()) return;  // a signal or a kill that came too late
  Entry& entry = found->second;
  // Ended jobs count in the broker until they are forgotten, so the oldest makes room.
  if (failed.stage == Stage::kJobs && entry.phase == Phase::kStarting && broker_ != nullptr &&
      !users_[failed.key.user].ended.empty()) {
    ForgetOldest(failed.key.user);
    return broker_->StartJob(entry.start);
  }
  Log("job not started", {{"user", failed.key.user},
                          {"job", std::to_string(failed.key.id)},
                          {"stage", StageName(failed.stage)},
                          {"errno", std::to_string(failed.error)}});
  if (entry.view != nullptr) entry.view->output->Abandon();  // replayed while it was starting
  for (size_t i = 0; i < std::size(kStreams); ++i) ClosePipe(entry, i);
  const auto node = jobs_.extract(found);
  for (const StopCallback& done : node.mapped().stop_waiters) done(tl::unexpected(NoJob::kUnknown));
  if (!node.mapped().started) return;
  node.mapped().started(tl::unexpected(JobFailure(StageFailed{failed.stage, static_cast<int>(failed.error)})));
}

void JobTable::OnExited(const Exited& exited) {
  const auto found = jobs_.find(exited.key);
  if (broker_ == nullptr || found == jobs_.end()) return;
  Entry& entry = found->second;
  if (entry.phase != Phase::kRunning && entry.phase != Phase::kUnusable) return;
  LogEnd(exited, entry.stopping);
  const bool unusable = entry.phase == Phase::kUnusable;
  if (!unusable) {
    Drain(entry);
    entry.view->result = {exited, entry.stopping};
    entry.view->output->Close();
  }
  entry.phase = Phase::kEnded;
  for (const StopCallback& done : std::exchange(entry.stop_waiters, {})) done(JobResult{exited, entry.stopping});
  UserJobs& user = users_[exited.key.user];
  // The broker keeps its record until then, so a front end that is restarted still learns of the job.
  if (unusable) {
    jobs_.erase(found);
    return broker_->ForgetJob(exited.key);
  }
  user.ended.push_back(exited.key.id);
  if (user.ended.size() > limits_.ended_per_user) ForgetOldest(exited.key.user);
}

void JobTable::ForgetOldest(const std::string& user) {
  std::deque<uint64_t>& ended = users_[user].ended;
  const JobKey oldest{user, ended.front()};
  ended.pop_front();
  jobs_.erase(oldest);
  broker_->ForgetJob(oldest);
}

void JobTable::OnBrokerGone(const std::string& why) {
  Close();
  broker_gone_(why);
}

}  // namespace jobworker
