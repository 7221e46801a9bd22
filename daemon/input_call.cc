#include "daemon/input_call.h"

#include <fmt/format.h>

#include <algorithm>

#include "daemon/api.h"
#include "daemon/requests.h"

namespace jobworker {

namespace {

constexpr size_t kMaxData = 64 * 1024;

grpc::Status Invalid(const std::string& why) { return {grpc::StatusCode::INVALID_ARGUMENT, why}; }

}  // namespace

void InputCall::Received(const std::optional<grpc::ByteBuffer>& message) {
  if (!message) {
    client_ended_ = true;
    if (input_ == nullptr) return Finish(Invalid("no chunk came; the first one must name the job in pid"));
    return writing() ? void(unanswered_ = true) : Finish(grpc::Status::OK);
  }
  InputChunk chunk;
  if (!FromBuffer(*message, chunk)) return Finish(Invalid("the request is not a message of this method"));
  const bool first = input_ == nullptr;
  if (first) {
    const grpc::Status begun = Begin(chunk);
    if (!begun.ok()) return Finish(begun);
  }
  const grpc::Status good = Check(chunk);
  if (!good.ok()) return Finish(good);
  Put(chunk);
  if (first && input_->busy()) Answer();
}

grpc::Status InputCall::Begin(const InputChunk& chunk) {
  const auto id = ReadJobId(chunk.pid());
  if (!id) return Invalid(id.error());
  const auto job = jobs_.Find({user_, *id});
  if (!job) return NoJobStatus(job.error());
  if ((*job)->input == nullptr) {
    return {grpc::StatusCode::FAILED_PRECONDITION, "the job was started without want_stdin: its input is /dev/null"};
  }
  pid_ = chunk.pid();
  input_ = (*job)->input;
  input_->TakeOver(std::static_pointer_cast<InputCall>(shared_from_this()));
  return grpc::Status::OK;
}

grpc::Status InputCall::Check(const InputChunk& chunk) const {
  const size_t size = chunk.data().size();
  if (!chunk.pid().empty() && chunk.pid() != pid_) return Invalid("pid: a later chunk names another job");
  if (size > kMaxData) return Invalid(fmt::format("data: it has {} bytes; at most {} are taken", size, kMaxData));
  const auto& [taken, phase] = input_->progress();
  if (phase != InputPhase::kOpen) return grpc::Status::OK;
  if (chunk.offset() > taken) {
    return {grpc::StatusCode::OUT_OF_RANGE,
            fmt::format("offset: {} leaves a gap; the job has taken {} bytes so far", chunk.offset(), taken)};
  }
  if (chunk.eof() && chunk.offset() + size < taken) {
    return Invalid(
        fmt::format("eof: it comes at {}, but the job has taken {} bytes already", chunk.offset() + size, taken));
  }
  return grpc::Status::OK;
}

void InputCall::Put(const InputChunk& chunk) {
  const uint64_t taken = input_->progress().taken;
  const uint64_t known = std::min<uint64_t>(taken - std::min(taken, chunk.offset()), chunk.data().size());
  input_->Put(chunk.data().substr(static_cast<size_t>(known)), chunk.eof());
}

void InputCall::OnInputReady() {
  taken_ = true;
  Answer();
}

void InputCall::Answer() {
  if (done()) return;
  if (writing()) return void(unanswered_ = true);
  unanswered_ = false;
  const InputResult result = ToInputResult(input_->progress());
  if (result.state() != INPUT_OPEN || client_ended_) return WriteAndFinish(result);
  Write(result);
  if (std::exchange(taken_, false)) ReadNext();
}

void InputCall::Written() {
  if (unanswered_) Answer();
}

void InputCall::OnSuperseded() {
  Finish({grpc::StatusCode::ABORTED, "another JobInput has taken over the input of this job"});
}

void InputCall::OnAbandoned() {
  Finish({grpc::StatusCode::UNAVAILABLE, "the server is being stopped; the input of this job is closed"});
}

void InputCall::Over() {
  if (input_ != nullptr) input_->Leave(this);
}

}  // namespace jobworker
