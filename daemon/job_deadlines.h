// When jobs are to be stopped for the sake of time: at their timeout, and when nobody of their user has followed them
// for as long as their lease.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>

#include "common/broker_protocol.h"
#include "daemon/event_loop.h"
#include "daemon/journal.h"
#include "job_note.pb.h"

namespace jobworker {

// On the loop's thread.
class JobDeadlines {
 public:
  // `stop` is told once for each deadline that is over: kTimeout or kLease.
  using Stop = std::function<void(const JobKey&, StopKind)>;
  JobDeadlines(EventLoop& loop, Stop stop) : loop_(loop), stop_(std::move(stop)) {}
  JobDeadlines(const JobDeadlines&) = delete;

  // A job that has started, now or before this front end did. Its lease begins now.
  void Add(const JobKey& key, const JobNote& note, uint64_t started_us);
  // It has ended.
  void Remove(const JobKey& key);
  // A stream follows it, and no longer. A job without a lease, or that has ended, may be named too.
  void Follow(const JobKey& key);
  void Leave(const JobKey& key);

 private:
  struct Watched {
    uint64_t lease_ms = 0;
    size_t followers = 0;
    std::optional<EventLoop::Timer> timeout, lease;
  };
  EventLoop::Timer StopAfter(uint64_t microseconds, const JobKey& key, StopKind kind);
  void Cancel(std::optional<EventLoop::Timer>& timer);

  EventLoop& loop_;
  const Stop stop_;
  std::map<JobKey, Watched> jobs_;  // those that have a deadline
};

}  // namespace jobworker
