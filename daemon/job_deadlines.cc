#include "daemon/job_deadlines.h"

#include "daemon/clock.h"

namespace jobworker {

namespace {

constexpr uint64_t kUsPerMs = 1000;

}  // namespace

void JobDeadlines::Add(const JobKey& key, const JobNote& note, uint64_t started_us) {
  if (note.timeout_ms() == 0 && note.lease_ms() == 0) return;
  Watched& job = jobs_[key];
  job.lease_ms = note.lease_ms();
  if (note.timeout_ms() != 0) {
    job.timeout = StopAfter(LeftUs(started_us, note.timeout_ms() * kUsPerMs), key, StopKind::kTimeout);
  }
  if (note.lease_ms() != 0) job.lease = StopAfter(note.lease_ms() * kUsPerMs, key, StopKind::kLease);
}

void JobDeadlines::Remove(const JobKey& key) {
  const auto job = jobs_.find(key);
  if (job == jobs_.end()) return;
  Cancel(job->second.timeout);
  Cancel(job->second.lease);
  jobs_.erase(job);
}

void JobDeadlines::Follow(const JobKey& key) {
  const auto job = jobs_.find(key);
  if (job == jobs_.end()) return;
  ++job->second.followers;
  Cancel(job->second.lease);
}

void JobDeadlines::Leave(const JobKey& key) {
  const auto job = jobs_.find(key);
  if (job == jobs_.end() || job->second.followers == 0 || --job->second.followers != 0) return;
  const uint64_t lease_ms = job->second.lease_ms;
  if (lease_ms != 0) job->second.lease = StopAfter(lease_ms * kUsPerMs, key, StopKind::kLease);
}

EventLoop::Timer JobDeadlines::StopAfter(uint64_t microseconds, const JobKey& key, StopKind kind) {
  const auto when = EventLoop::Clock::now() + std::chrono::microseconds(microseconds);
  return loop_.At(when, [this, key, kind] { stop_(key, kind); });
}

void JobDeadlines::Cancel(std::optional<EventLoop::Timer>& timer) {
  if (timer) loop_.Cancel(*timer);
  timer.reset();
}

}  // namespace jobworker
