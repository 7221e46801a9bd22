// One JobInput call: chunks from a client into a job's standard input, one at a time.
#pragma once
#include "daemon/job_input.h"
#include "daemon/job_table.h"
#include "daemon/loop_call.h"
#include "jobworker.pb.h"

namespace jobworker {

class InputCall final : public LoopCall, public InputSource {
 public:
  InputCall(EventLoop& loop, std::shared_ptr<Call> call, JobTable& jobs, std::string user)
      : LoopCall(loop, std::move(call)), jobs_(jobs), user_(std::move(user)) {}

  void OnInputReady() override;
  void OnSuperseded() override;
  void OnAbandoned() override;

 private:
  void Received(const std::optional<grpc::ByteBuffer>& message) override;
  void Written() override;
  void Over() override;

  // OK when the chunk may go on to Put.
  grpc::Status Begin(const InputChunk& chunk);
  [[nodiscard]] grpc::Status Check(const InputChunk& chunk) const;
  void Put(const InputChunk& chunk);
  void Answer();

  JobTable& jobs_;
  const std::string user_;
  std::string pid_;
  std::shared_ptr<JobInput> input_;  // from the first chunk on
  bool taken_ = false;               // the last chunk is in the pipe: the next one may be read, once that is answered
  bool unanswered_ = false, client_ended_ = false;
};

}  // namespace jobworker
