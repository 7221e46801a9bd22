// One stream of a job's output to one client.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "daemon/job_table.h"
#include "daemon/rpc_server.h"
#include "jobworker.pb.h"

namespace jobworker {

// What a JobQuery asks for; a JobStart asks for everything.
struct FollowSpec {
  uint64_t offset = 0;
  std::optional<uint64_t> tail_bytes, tail_lines;  // instead of offset
  std::optional<OutputStream> only;
  bool no_follow = false;
  uint64_t reader = 0;  // see OutputCursor
};

// Writes the job's status, then its output as the client takes it, then the end. It holds one response at a time, so a
// client that stalls costs that: a chunk (see Journal::kChunkMemory), or nothing where others have the same one.
class Follower final : public CallHandler, public OutputReader, public std::enable_shared_from_this<Follower> {
 public:
  Follower(std::shared_ptr<Call> call, const FollowSpec& spec);

  // Exactly one of the two, once, from any thread. `first` becomes the first response; its offset is filled in. False
  // when the call is over already; otherwise `left` is called once it is, on another thread.
  bool Follow(std::shared_ptr<const JobView> job, WorkerResponse first, std::function<void()> left);
  void Refuse(const grpc::Status& status);

  void OutputReady() override { Advance(); }
  void OnWritten() override;
  void OnOver() override;

 private:
  struct Step {
    enum { kNothing, kWrite, kLast, kFail } what = kNothing;
    grpc::ByteBuffer message;
    grpc::Status status;
  };
  void Advance();
  Step Next();

  const FollowSpec spec_;
  std::mutex mutex_;            // guards the rest
  std::shared_ptr<Call> call_;  // none once it is over
  std::shared_ptr<const JobView> job_;
  std::function<void()> left_;
  OutputCursor cursor_;
  bool writing_ = false;
  std::optional<grpc::ByteBuffer> first_;  // until it is on its way
};

}  // namespace jobworker
