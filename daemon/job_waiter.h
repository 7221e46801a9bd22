// One JobWait call.
#pragma once
#include <deque>
#include <vector>

#include "daemon/job_table.h"
#include "daemon/loop_call.h"
#include "jobworker.pb.h"

namespace jobworker {

// Tells each job's end, in the order in which they come.
class JobWaiter final : public LoopCall {
 public:
  JobWaiter(EventLoop& loop, std::shared_ptr<Call> call, JobTable& jobs, std::vector<JobKey> keys, bool any)
      : LoopCall(loop, std::move(call)), jobs_(jobs), keys_(std::move(keys)), left_(any ? 1 : keys_.size()) {}

  // On the loop's thread, once.
  void Begin();

 private:
  void Received(const std::optional<grpc::ByteBuffer>&) override {}
  void Written() override { Tell(); }
  void Over() override;
  void Ended(const tl::expected<JobTable::View, NoJob>& job);
  void Tell();

  JobTable& jobs_;
  const std::vector<JobKey> keys_;
  size_t left_;  // to be told
  std::deque<JobTable::View> ended_;
};

}  // namespace jobworker
