#include "daemon/job_table.h"

#include <sys/epoll.h>

#include <csignal>

#include "daemon/log.h"

namespace jobworker {

namespace {

constexpr StartFailed kNoReply{Stage::kCgroup, 0, true};
constexpr OutputStream kStreams[kOutputDescriptors] = {OutputStream::kStdout, OutputStream::kStderr};

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

JobTable::JobTable(EventLoop& loop, JobTableLimits limits, std::function<void(const std::string&)> broker_gone)
    : loop_(loop),
      limits_(limits),
      broker_gone_(std::move(broker_gone)),
      budget_(new MemoryBudget{limits.output_per_job, limits.output_in_all}),
      buffer_(OutputStore::kMaxPiece, '\0') {}

void JobTable::StartJob(const std::string& user, std::vector<std::string> argv, std::vector<std::string> env,
                        StartCallback done) {
  if (broker_ == nullptr || broker_->backlog() >= limits_.broker_backlog) {
    return done(tl::unexpected(kNoReply));
  }
  Start start{{user, ++users_[user].last_id}, {}, std::move(argv), std::move(env)};
  jobs_[start.key].started = std::move(done);
  broker_->StartJob(start);
}

std::shared_ptr<const JobView> JobTable::Find(const JobKey& key) const {
  const auto found = jobs_.find(key);
  return found == jobs_.end() ? nullptr : found->second.view;
}

void JobTable::StopJob(const JobKey& key, StopCallback done) {
  Entry& entry = jobs_.at(key);
  if (entry.ended || broker_ == nullptr) return done(entry.ended ? &entry.view->result : nullptr);
  entry.stop_waiters.push_back(std::move(done));
  if (entry.stopping) return;
  entry.stopping = true;
  broker_->SignalJob(key, SIGTERM);
  loop_.At(EventLoop::Clock::now() + limits_.stop_grace, [this, key] {
    const auto found = jobs_.find(key);
    if (found != jobs_.end() && !found->second.ended && broker_ != nullptr) broker_->KillJob(key);
  });
}

void JobTable::OnJob(const Job& job, OutputPipes pipes) {
  UserJobs& user = users_[job.key.user];
  user.last_id = std::max(user.last_id, job.key.id);
  Log("job taken over", {{"user", job.key.user}, {"job", std::to_string(job.key.id)}});
  Adopt(job.key, job.missing, jobs_[job.key], std::move(pipes));
}

void JobTable::OnStarted(const Started& started, OutputPipes pipes) {
  const auto found = jobs_.find(started.key);
  if (found == jobs_.end() || !found->second.started) return;  // replayed while it was starting: it is known already
  Adopt(started.key, started.missing, found->second, std::move(pipes));
  const StartCallback done = std::exchange(found->second.started, nullptr);
  Log("job started", {{"user", started.key.user}, {"job", std::to_string(started.key.id)}});
  done(found->second.view);
}

void JobTable::Adopt(const JobKey& key, uint8_t missing, Entry& entry, OutputPipes pipes) {
  entry.view = std::make_shared<JobView>();
  entry.view->key = key;
  entry.view->missing = missing;
  entry.view->output = std::make_unique<MemoryOutputStore>(budget_);
  entry.pipes = std::move(pipes);
  for (size_t i = 0; i < entry.pipes.size(); ++i) {
    loop_.Watch(entry.pipes[i].Get(), EPOLLIN, [this, key, i] { ReadPipe(key, i); });
  }
}

void JobTable::ReadPipe(const JobKey& key, size_t index) {
  Entry& entry = jobs_.at(key);
  errno = 0;
  if (ReadOnce(entry, index) || errno == EAGAIN) return;
  ClosePipe(entry, index);
}

void JobTable::ClosePipe(Entry& entry, size_t index) {
  if (!entry.pipes[index].IsOpen()) return;
  loop_.Unwatch(entry.pipes[index].Get());
  entry.pipes[index].Reset();
}

// False at the end of the stream, and when nothing is there (errno is EAGAIN then).
bool JobTable::ReadOnce(Entry& entry, size_t index) {
  const ssize_t size = read(entry.pipes[index].Get(), buffer_.data(), buffer_.size());
  if (size <= 0) return size < 0 && errno == EINTR;
  entry.view->output->Append(kStreams[index], std::string_view(buffer_).substr(0, static_cast<size_t>(size)));
  return true;
}

// The job's cgroup is empty, so what is in the pipes now is all there is, even if a stranger still holds a write end.
// No more than a pipe's capacity is read: that stranger could write for ever.
void JobTable::Drain(Entry& entry) {
  constexpr size_t kMaxPipeReads = 64;
  for (size_t i = 0; i < entry.pipes.size(); ++i) {
    for (size_t reads = 0; reads < kMaxPipeReads && entry.pipes[i].IsOpen() && ReadOnce(entry, i); ++reads) continue;
    ClosePipe(entry, i);
  }
}

void JobTable::OnFailed(const Failed& failed) {
  const auto found = jobs_.find(failed.key);
  if (failed.request != RequestType::kStart || found == jobs_.end()) return;  // a signal or kill that came too late
  const StartCallback done = std::move(found->second.started);
  if (found->second.view != nullptr) Drain(found->second);  // replayed while it was starting
  jobs_.erase(found);
  Log("job not started", {{"user", failed.key.user},
                          {"job", std::to_string(failed.key.id)},
                          {"stage", StageName(failed.stage)},
                          {"errno", std::to_string(failed.error)}});
  if (done) done(tl::unexpected(StartFailed{failed.stage, static_cast<int>(failed.error)}));
}

void JobTable::OnExited(const Exited& exited) {
  const auto found = jobs_.find(exited.key);
  if (found == jobs_.end() || found->second.ended) return;
  Entry& entry = found->second;
  Drain(entry);
  entry.ended = true;
  entry.view->result = {exited, entry.stopping};
  entry.view->output->Close();
  LogEnd(exited, entry.stopping);
  for (const StopCallback& done : std::exchange(entry.stop_waiters, {})) done(&entry.view->result);
  KeepEnded(exited.key);
}

// The broker keeps its record until then, so a front end that is restarted still learns of the job.
void JobTable::KeepEnded(const JobKey& key) {
  UserJobs& user = users_[key.user];
  user.ended.push_back(key.id);
  if (user.ended.size() <= limits_.ended_per_user) return;
  const JobKey oldest{key.user, user.ended.front()};
  user.ended.pop_front();
  jobs_.erase(oldest);
  if (broker_ != nullptr) broker_->ForgetJob(oldest);
}

void JobTable::Abandon() {
  broker_ = nullptr;
  for (auto& [key, entry] : jobs_) {
    if (const StartCallback done = std::exchange(entry.started, nullptr)) {
      done(tl::unexpected(kNoReply));
    }
    for (const StopCallback& done : std::exchange(entry.stop_waiters, {})) done(nullptr);
  }
}

void JobTable::OnBrokerGone(const std::string& why) {
  Abandon();
  broker_gone_(why);
}

}  // namespace jobworker
