#include "daemon/output_collector.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "daemon/log.h"
#include "daemon/metrics.h"

namespace jobworker {

namespace {

constexpr OutputStream kStreams[] = {OutputStream::kStdout, OutputStream::kStderr};
constexpr size_t kTakeAtMost = size_t{1} << 20;  // of one pipe, before others have their turn

}  // namespace

OutputCollector::OutputCollector(EventLoop& loop, const OutputLimits& limits, std::function<void(const JobKey&)> kill)
    : loop_(loop), kill_(std::move(kill)), retention_(limits) {}

void OutputCollector::SetLimits(const OutputLimits& limits) {
  retention_.SetLimits(limits);
  for (const auto& [user, state] : users_) Resume(user);
}

bool OutputCollector::Add(const JobKey& key, std::shared_ptr<Journal> journal, Pipes pipes) {
  Job& job = jobs_[key];
  job = {std::move(journal), std::move(pipes), {}, false};
  for (size_t i = 0; i < job.pipes.size(); ++i) {
    if (!job.pipes[i].IsOpen()) continue;
    // Fails where one that was taken over holds more, and then it stays as it is.
    (void)fcntl(job.pipes[i].Get(), F_SETPIPE_SZ, kQuietPipe);
    job.capacity[i] = fcntl(job.pipes[i].Get(), F_GETPIPE_SZ);
    if (job.capacity[i] >= kFloodedPipe) ++flooded_;
  }
  retention_.Add(key.user, *job.journal);
  return Watch(key, job);
}

bool OutputCollector::Watch(const JobKey& key, Job& job) {
  job.waits = false;
  bool all = true;
  for (size_t i = 0; i < job.pipes.size(); ++i) {
    const int pipe = job.pipes[i].Get();
    if (pipe >= 0) all = loop_.Watch(pipe, EPOLLIN, [this, key, i] { ReadPipe(key, i); }) && all;
  }
  if (!all) WatchLater(key);
  return all;
}

void OutputCollector::WatchLater(const JobKey& key) {
  loop_.At(EventLoop::Clock::now() + Journal::kTryAgain, [this, key] {
    const auto found = jobs_.find(key);
    if (found != jobs_.end() && !found->second.waits) Watch(key, found->second);
  });
}

void OutputCollector::ReadPipe(const JobKey& key, size_t index) {
  Job& job = jobs_.at(key);
  const ssize_t size = job.journal->Take(kStreams[index], job.pipes[index].Get(), kTakeAtMost);
  if (size > 0) {
    metrics::OutputTaken(static_cast<uint64_t>(size));
    if (size >= job.capacity[index]) Widen(job, index);
    return Check(key, job);
  }
  if (size == 0) return ClosePipe(job, index);
  if (errno == EAGAIN || errno == EINTR) return;
  // Short of memory, or so. The bytes are still in the pipe.
  Log("output waits", {{"user", key.user}, {"job", std::to_string(key.id)}, {"reason", strerror(errno)}});
  loop_.Unwatch(job.pipes[index].Get());
  WatchLater(key);
}

// A process that fills its pipe is stopped and woken for every turn of the loop. Without room for more it stays so.
void OutputCollector::Widen(Job& job, size_t index) {
  int& capacity = job.capacity[index];
  const int wanted = capacity < kBusyPipe ? kBusyPipe : kFloodedPipe;
  if (capacity >= kFloodedPipe || (wanted == kFloodedPipe && flooded_ == kMostFlooded)) return;
  const int got = fcntl(job.pipes[index].Get(), F_SETPIPE_SZ, wanted);
  if (got < 0) return;
  capacity = got;
  if (wanted == kFloodedPipe) ++flooded_;
}

void OutputCollector::ClosePipe(Job& job, size_t index) {
  if (!job.pipes[index].IsOpen()) return;
  loop_.Unwatch(job.pipes[index].Get());
  // The broker has it until the job is forgotten.
  (void)fcntl(job.pipes[index].Get(), F_SETPIPE_SZ, kQuietPipe);
  job.pipes[index].Reset();
  if (std::exchange(job.capacity[index], 0) >= kFloodedPipe) --flooded_;
}

// A process elsewhere may have been handed a write end: what it writes from now on is not waited for, or this would
// never end.
bool OutputCollector::Finish(const JobKey& key) {
  Job& job = jobs_.at(key);
  for (size_t i = 0; i < std::size(kStreams); ++i) {
    int left = 0;
    if (job.pipes[i].IsOpen() && ioctl(job.pipes[i].Get(), FIONREAD, &left) != 0) return false;
    while (left > 0) {
      const ssize_t size = job.journal->Take(kStreams[i], job.pipes[i].Get(), static_cast<size_t>(left));
      if (size < 0 && errno == EINTR) continue;
      if (size < 0) return false;
      if (size == 0) break;
      metrics::OutputTaken(static_cast<uint64_t>(size));
      left -= static_cast<int>(size);
    }
    ClosePipe(job, i);
  }
  job.waits = false;
  return true;
}

void OutputCollector::Ended(const JobKey& key) {
  Journal& journal = *jobs_.at(key).journal;
  (void)retention_.Check(key.user, journal);
  retention_.Ended(key.user, journal);
  Resume(key.user);
}

void OutputCollector::Remove(const JobKey& key) {
  const auto found = jobs_.find(key);
  for (size_t i = 0; i < found->second.pipes.size(); ++i) ClosePipe(found->second, i);
  retention_.Remove(key.user, *found->second.journal);
  jobs_.erase(found);
  Resume(key.user);
}

void OutputCollector::ClosePipes() {
  for (auto& [key, job] : jobs_) {
    for (UniqueFd& pipe : job.pipes) {
      if (pipe.IsOpen()) loop_.Unwatch(pipe.Get());
      pipe.Reset();
    }
  }
}

void OutputCollector::Check(const JobKey& key, Job& job) {
  switch (retention_.Check(key.user, *job.journal)) {
    case Retention::Verdict::kGoOn: return;
    case Retention::Verdict::kKill: kill_(key); [[fallthrough]];
    case Retention::Verdict::kWait:
      for (const UniqueFd& pipe : job.pipes) loop_.Unwatch(pipe.Get());
      job.waits = true;
      HeedProgress(key.user);
      Resume(key.user);  // what was read before it was heeded
  }
}

// While a job waits, whoever reads output of its user's, or ceases to, may make room.
void OutputCollector::HeedProgress(const std::string& user) {
  users_[user].any_waits = true;
  const auto posted = std::make_shared<std::atomic<bool>>(false);
  const auto progress = [this, user, posted] {
    if (posted->exchange(true)) return;
    loop_.Post([this, user, posted] {
      *posted = false;
      Resume(user);
    });
  };
  ForJobsOf(user, [&](const JobKey&, Job& job) { job.journal->OnProgress(progress); });
  CallBack(user);
  LookAgain(user);
}

void OutputCollector::Resume(const std::string& user) {
  bool& any_waits = users_[user].any_waits;
  if (!std::exchange(any_waits, false)) return;
  ForJobsOf(user, [&](const JobKey& key, Job& job) {
    if (!job.waits) return;
    const Retention::Verdict verdict = retention_.Check(user, *job.journal);
    if (verdict == Retention::Verdict::kGoOn) {
      Watch(key, job);
      return;
    }
    if (verdict == Retention::Verdict::kKill) kill_(key);
    any_waits = true;
  });
  CallBack(user);
  if (any_waits) return LookAgain(user);
  ForJobsOf(user, [](const JobKey&, Job& job) { job.journal->OnProgress(nullptr); });
}

// Those whose word makes room for a job that waits, and nobody else: each time costs a request.
void OutputCollector::CallBack(const std::string& user) {
  const bool all = users_[user].any_waits && retention_.IsFull(user);
  const bool block = retention_.limits().policy == OutputPolicy::kBlock;
  ForJobsOf(user, [&](const JobKey&, Job& job) { job.journal->CallBack(block && (all || job.waits)); });
}

void OutputCollector::LookAgain(const std::string& user) {
  std::optional<EventLoop::Timer>& look = users_[user].next_look;
  if (look) loop_.Cancel(*look);
  look.reset();
  auto next = Journal::Clock::time_point::max();
  ForJobsOf(user, [&](const JobKey&, Job& job) { next = std::min(next, job.journal->LookAgainAt()); });
  if (next == Journal::Clock::time_point::max()) return;
  look = loop_.At(next, [this, user] {
    users_[user].next_look.reset();
    Resume(user);
  });
}

void OutputCollector::ForJobsOf(const std::string& user, const std::function<void(const JobKey&, Job&)>& each) {
  for (auto job = jobs_.lower_bound({user, 0}); job != jobs_.end() && job->first.user == user; ++job) {
    each(job->first, job->second);
  }
}

}  // namespace jobworker
