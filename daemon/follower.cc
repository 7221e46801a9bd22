#include "daemon/follower.h"

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>

#include "daemon/api.h"
#include "daemon/metrics.h"

namespace jobworker {

namespace {

// As protobuf writes it, but the output's bytes stay where they are: they are shared by all followers of the job.
grpc::ByteBuffer WithLog(const WorkerResponse& response, std::shared_ptr<const std::string_view> log) {
  using Output = google::protobuf::io::CodedOutputStream;
  constexpr uint32_t kTag = WorkerResponse::kLogFieldNumber << 3 | 2;  // length-delimited
  const auto size = static_cast<uint32_t>(log->size());
  const size_t head_size = response.ByteSizeLong();
  grpc::Slice head(head_size + Output::VarintSize32(kTag) + Output::VarintSize32(size));
  uint8_t* at = response.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(head.begin()));
  at = Output::WriteVarint32ToArray(kTag, at);
  (void)Output::WriteVarint32ToArray(size, at);
  using Owner = std::shared_ptr<const std::string_view>;
  auto* const owner = new Owner(std::move(log));
  const auto drop = [](void* owned) { delete static_cast<Owner*>(owned); };
  const grpc::Slice slices[] = {std::move(head),
                                grpc::Slice(const_cast<char*>((*owner)->data()), (*owner)->size(), drop, owner)};
  return {slices, 2};
}

}  // namespace

Follower::Follower(std::shared_ptr<Call> call, const FollowSpec& spec) : spec_(spec), call_(std::move(call)) {
  cursor_.only = spec.only;
  cursor_.follows = !spec.no_follow;
  if (cursor_.follows) cursor_.reader = spec.reader;
}

bool Follower::Follow(std::shared_ptr<const JobView> job, WorkerResponse first, std::function<void()> left) {
  {
    const std::lock_guard lock(mutex_);
    if (call_ == nullptr) return false;
    left_ = std::move(left);
    job_ = std::move(job);
    const Journal& journal = *job_->journal;
    cursor_.offset = spec_.tail_bytes   ? journal.TailBytes(spec_.only, *spec_.tail_bytes)
                     : spec_.tail_lines ? journal.TailLines(spec_.only, *spec_.tail_lines)
                                        : spec_.offset;
    cursor_.needed = cursor_.offset;
    first.set_offset(cursor_.offset);
    first_ = ToBuffer(first);
    job_->journal->Attach(&cursor_);  // from here on others look at the cursor too
  }
  Advance();
  return true;
}

void Follower::Refuse(const grpc::Status& status) {
  std::shared_ptr<Call> call;
  {
    const std::lock_guard lock(mutex_);
    call = call_;
  }
  if (call != nullptr) call->Finish(status);
}

void Follower::OnWritten() {
  {
    const std::lock_guard lock(mutex_);
    writing_ = false;
  }
  Advance();
}

void Follower::OnOver() {
  std::shared_ptr<Call> call;  // let go after the lock
  const std::lock_guard lock(mutex_);
  call.swap(call_);
  if (job_ == nullptr) return;
  job_->journal->Detach(&cursor_);
  job_->journal->Leave(shared_from_this());
  left_();
}

// gRPC may send at once, on this thread, so it is not called with the lock held.
void Follower::Advance() {
  Step step;
  std::shared_ptr<Call> call;
  {
    const std::lock_guard lock(mutex_);
    if (writing_ || call_ == nullptr || job_ == nullptr) return;
    step = Next();
    writing_ = step.what != Step::kNothing;
    call = call_;
  }
  switch (step.what) {
    case Step::kNothing: return;
    case Step::kWrite: return call->Write(step.message);
    case Step::kLast: return call->WriteAndFinish(step.message);
    case Step::kFail: return call->Finish(step.status);
  }
}

Follower::Step Follower::Next() {
  if (first_) return {Step::kWrite, *std::exchange(first_, std::nullopt), {}};
  const Journal::Chunk chunk = job_->journal->Read(cursor_, spec_.no_follow ? nullptr : shared_from_this());
  WorkerResponse response;
  response.set_offset(chunk.offset);
  switch (chunk.outcome) {
    case Journal::Outcome::kWait:
      if (!spec_.no_follow) return {};
      response.set_partial(true);
      return {Step::kLast, ToBuffer(response), {}};
    case Journal::Outcome::kEnd:
      *response.mutable_end() = ToJobEnd(job_->result, job_->started_us);
      return {Step::kLast, ToBuffer(response), {}};
    case Journal::Outcome::kAbandoned:
      return {Step::kFail,
              {},
              {grpc::StatusCode::UNAVAILABLE,
               "the server is being stopped, or cannot read this job's output now; try again later"}};
    case Journal::Outcome::kResume: response.set_resume(true); return {Step::kLast, ToBuffer(response), {}};
    case Journal::Outcome::kBytes: break;
  }
  response.set_dropped(chunk.dropped);
  if (chunk.bytes == nullptr) return {Step::kWrite, ToBuffer(response), {}};
  response.set_stream(chunk.stream == OutputStream::kStdout ? STDOUT : STDERR);
  metrics::OutputSent(chunk.bytes->size());
  response.set_time_us(static_cast<int64_t>(chunk.time_us));
  return {Step::kWrite, WithLog(response, chunk.bytes), {}};
}

}  // namespace jobworker
