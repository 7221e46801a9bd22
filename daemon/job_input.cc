#include "daemon/job_input.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace jobworker {

JobInput::JobInput(EventLoop& loop, UniqueFd pipe, std::shared_ptr<Journal> journal)
    : loop_(loop), pipe_(std::move(pipe)), journal_(std::move(journal)), progress_(journal_->input()) {
  if (!pipe_.IsOpen()) {
    // The write end died with the front end that had it.
    if (progress_.phase == InputPhase::kOpen) progress_.phase = InputPhase::kLost;
    return;
  }
  // Without events epoll still tells of an error: nobody can read from the pipe any more.
  if (!loop_.Watch(pipe_.Get(), 0, [this] { busy_ ? Write() : Finish(InputPhase::kRefused); })) {
    pipe_.Reset();
    progress_.phase = InputPhase::kLost;
  }
}

JobInput::~JobInput() {
  if (pipe_.IsOpen()) loop_.Unwatch(pipe_.Get());
}

void JobInput::TakeOver(std::shared_ptr<InputSource> source) {
  const std::shared_ptr<InputSource> former = std::exchange(source_, std::move(source));
  if (former == nullptr) return;
  if (std::exchange(busy_, false)) loop_.Rearm(pipe_.Get(), 0);
  bytes_.clear();
  former->OnSuperseded();
}

void JobInput::Leave(const InputSource* source) {
  if (source_.get() != source) return;
  if (std::exchange(busy_, false)) loop_.Rearm(pipe_.Get(), 0);
  bytes_.clear();
  source_ = nullptr;
}

void JobInput::Put(std::string bytes, bool eof) {
  if (!pipe_.IsOpen()) return Tell();
  bytes_ = std::move(bytes);
  written_ = 0;
  eof_ = eof;
  Write();
}

void JobInput::Write() {
  const uint64_t before = progress_.taken;
  ssize_t size = 0;
  while (written_ < bytes_.size()) {
    size = write(pipe_.Get(), bytes_.data() + written_, bytes_.size() - written_);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) break;
    written_ += static_cast<size_t>(size);
    progress_.taken += static_cast<uint64_t>(size);
  }
  if (size < 0 && errno != EAGAIN) return Finish(InputPhase::kRefused);  // EPIPE: the job has closed it
  if (progress_.taken != before) journal_->SetInput(progress_);
  const bool wait = size < 0;
  if (wait != busy_) loop_.Rearm(pipe_.Get(), wait ? uint32_t{EPOLLOUT} : 0);
  busy_ = wait;
  if (wait) return;
  bytes_ = {};
  if (eof_) return Finish(InputPhase::kClosed);
  Tell();
}

void JobInput::End() {
  if (pipe_.IsOpen()) Finish(InputPhase::kRefused);
}

void JobInput::Abandon() {
  const std::shared_ptr<InputSource> source = std::exchange(source_, nullptr);
  if (source != nullptr) source->OnAbandoned();
}

void JobInput::Finish(InputPhase phase) {
  loop_.Unwatch(pipe_.Get());
  pipe_.Reset();
  busy_ = false;
  bytes_ = {};
  progress_.phase = phase;
  journal_->SetInput(progress_);
  Tell();
}

void JobInput::Tell() {
  const std::shared_ptr<InputSource> source = source_;
  if (source != nullptr) source->OnInputReady();
}

}  // namespace jobworker
