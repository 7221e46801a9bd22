// The standard input of one job, from the write end of its pipe on.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "common/unique_fd.h"
#include "daemon/event_loop.h"
#include "daemon/journal.h"

namespace jobworker {

// Whoever fills it; told on the loop's thread.
class InputSource {
 public:
  virtual ~InputSource() = default;
  // All that was put is in the pipe, or no more can be.
  virtual void OnInputReady() = 0;
  // Another one has taken over.
  virtual void OnSuperseded() = 0;
  // This server is ending.
  virtual void OnAbandoned() = 0;
};

// On the loop's thread, as is its end.
class JobInput {
 public:
  // Takes the pipe's end, which is O_NONBLOCK; a closed one is of a job that an earlier front end has started. Progress
  // is kept in the journal.
  JobInput(EventLoop& loop, UniqueFd pipe, std::shared_ptr<Journal> journal);
  ~JobInput();
  JobInput(const JobInput&) = delete;

  [[nodiscard]] const InputProgress& progress() const { return progress_; }

  // One source at a time; what the one before had put and is not in the pipe yet is dropped.
  void TakeOver(std::shared_ptr<InputSource> source);
  void Leave(const InputSource* source);
  // What comes next, and whether it is the last; by the source, once it was told that it is ready. OnInputReady
  // follows, at once when there is room.
  void Put(std::string bytes, bool eof);
  [[nodiscard]] bool busy() const { return busy_; }
  // The job has ended.
  void End();
  // This server is ending; the next one tells that the input was lost.
  void Abandon();

 private:
  void Write();
  void Finish(InputPhase phase);
  void Tell();

  EventLoop& loop_;
  UniqueFd pipe_;
  const std::shared_ptr<Journal> journal_;
  InputProgress progress_;
  std::shared_ptr<InputSource> source_;
  std::string bytes_;
  size_t written_ = 0;  // of bytes_
  bool eof_ = false, busy_ = false;
};

}  // namespace jobworker
