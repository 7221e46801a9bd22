#include "daemon/job_waiter.h"

#include <fmt/format.h>

#include "daemon/api.h"

namespace jobworker {

void JobWaiter::Begin() {
  if (done()) return;
  for (const JobKey& key : keys_) {
    const auto job = jobs_.Find(key);
    if (job) continue;
    const grpc::Status status = NoJobStatus(job.error());
    return Finish({status.error_code(), fmt::format("pids: {}: {}", key.id, status.error_message())});
  }
  const auto self = std::static_pointer_cast<JobWaiter>(shared_from_this());
  for (const JobKey& key : keys_) {
    jobs_.WatchEnd(key, this, [self](const auto& job) { self->Ended(job); });
  }
}

void JobWaiter::Over() {
  for (const JobKey& key : keys_) jobs_.UnwatchEnd(key, this);
}

void JobWaiter::Ended(const tl::expected<JobTable::View, NoJob>& job) {
  if (!job) return Finish(NoJobStatus(job.error()));
  ended_.push_back(*job);
  Tell();
}

void JobWaiter::Tell() {
  if (done() || writing() || ended_.empty()) return;
  const JobStatus status = ToJobStatus(jobs_, *ended_.front());
  ended_.pop_front();
  if (--left_ == 0) return WriteAndFinish(status);
  Write(status);
}

}  // namespace jobworker
