// One stream of a job's output to one client.
#pragma once
#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>

#include "daemon/job_table.h"
#include "daemon/output_store.h"
#include "jobworker.grpc.pb.h"

namespace jobworker {

// Writes the id, then the output from the first byte as the client takes it, then the end. It holds one response at a
// time, so a slow client costs that and its HTTP/2 window. It keeps itself alive until gRPC is done with it.
class Follower final : public grpc::ServerWriteReactor<WorkerResponse>,
                       public OutputReader,
                       public std::enable_shared_from_this<Follower> {
 public:
  static std::shared_ptr<Follower> Make();

  // Exactly one of the two, once, from any thread.
  void Follow(std::shared_ptr<const JobView> job);
  void Refuse(const grpc::Status& status);

  void OutputReady() override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  Follower() = default;
  enum class Step { kNothing, kWrite, kWriteEnd, kCancelled, kAbandoned };
  void Advance();
  Step Prepare();

  std::shared_ptr<Follower> self_;
  std::mutex mutex_;  // guards the rest
  std::shared_ptr<const JobView> job_;
  uint64_t offset_ = 0;
  bool writing_ = false;
  bool finished_ = false;
  bool cancelled_ = false;
  WorkerResponse response_;
};

// JobEnd as the API has it.
JobEnd ToJobEnd(const JobResult& result);

}  // namespace jobworker
