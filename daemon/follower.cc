#include "daemon/follower.h"

namespace jobworker {

std::shared_ptr<Follower> Follower::Make() {
  const std::shared_ptr<Follower> follower(new Follower);
  follower->self_ = follower;
  return follower;
}

void Follower::Follow(std::shared_ptr<const JobView> job) {
  {
    const std::lock_guard lock(mutex_);
    if (finished_) return;
    job_ = std::move(job);
    response_.set_pid(std::to_string(job_->key.id));
    constexpr std::pair<Controller, const char*> kNames[] = {
        {kCpu, "cpu"}, {kIo, "io"}, {kMemory, "memory"}, {kPids, "pids"}};
    for (const auto& [bit, name] : kNames) {
      if ((job_->missing & bit) != 0) response_.add_unenforced(name);
    }
    writing_ = true;
  }
  StartWrite(&response_);
}

void Follower::Refuse(const grpc::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(finished_, true)) return;
  }
  Finish(status);
}

void Follower::OutputReady() { Advance(); }

void Follower::OnWriteDone(bool ok) {
  {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    cancelled_ = cancelled_ || !ok;
  }
  Advance();
}

void Follower::OnCancel() {
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  Advance();
}

void Follower::OnDone() { self_.reset(); }

// gRPC may call back on this very thread before StartWrite or Finish returns, so neither is called with the lock held.
void Follower::Advance() {
  switch (Prepare()) {
    case Step::kNothing: return;
    case Step::kWrite: return StartWrite(&response_);
    case Step::kWriteEnd: return StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    case Step::kCancelled:
      return Finish({grpc::StatusCode::CANCELLED, "the client is gone, or the server is being stopped"});
    case Step::kAbandoned:
      return Finish(
          {grpc::StatusCode::UNAVAILABLE, "the server is being stopped, or its broker is gone; try again later"});
  }
}

Follower::Step Follower::Prepare() {
  const std::lock_guard lock(mutex_);
  if (writing_ || finished_) return Step::kNothing;
  if (cancelled_) {
    finished_ = true;
    if (job_ != nullptr) job_->output->Leave(shared_from_this());
    return Step::kCancelled;
  }
  if (job_ == nullptr) return Step::kNothing;  // the start is still under way
  OutputStore::Segment segment = job_->output->Read(offset_, shared_from_this());
  if (segment.outcome == OutputStore::Outcome::kWait) return Step::kNothing;
  finished_ = segment.outcome != OutputStore::Outcome::kBytes;
  if (segment.outcome == OutputStore::Outcome::kAbandoned) return Step::kAbandoned;
  response_.clear_unenforced();
  response_.clear_log();
  response_.set_dropped(segment.dropped);
  if (finished_) {
    *response_.mutable_end() = ToJobEnd(job_->result);
    return Step::kWriteEnd;
  }
  response_.set_log(std::move(segment.bytes));
  response_.set_stream(segment.stream == OutputStream::kStdout ? STDOUT : STDERR);
  writing_ = true;
  return Step::kWrite;
}

JobEnd ToJobEnd(const JobResult& result) {
  const Exited& exited = result.exited;
  JobEnd end;
  const bool coded = exited.cause == EndCause::kExited;
  end.set_cause(coded ? JobEnd::EXITED : JobEnd::SIGNALLED);
  if (coded) end.set_exit_code(exited.value);
  if (!coded) end.set_signal(exited.value);
  end.set_core_dumped(exited.core_dumped != 0);
  end.set_stopped(result.stopped);
  end.set_oom_level(exited.oom_level == OomLevel::kNone  ? JobEnd::NONE
                    : exited.oom_level == OomLevel::kJob ? JobEnd::JOB
                                                         : JobEnd::USER);
  end.set_oom_kills(exited.oom_kills);
  end.set_leftovers(exited.leftovers);
  end.set_cpu_user_us(exited.counters[kCpuUser]);
  end.set_cpu_system_us(exited.counters[kCpuSystem]);
  end.set_memory_peak(exited.counters[kMemoryPeak]);
  end.set_read_bytes(exited.counters[kReadBytes]);
  end.set_write_bytes(exited.counters[kWriteBytes]);
  end.set_pids_peak(exited.counters[kPidsPeak]);
  return end;
}

}  // namespace jobworker
