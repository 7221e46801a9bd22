// Looks after the call that the main thread sits in: Ctrl-C, a server that takes long, one that never answers.
#pragma once
#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "common/unique_fd.h"

namespace jobworker {

class CallWatch {
 public:
  struct Hooks {
    std::function<bool()> connected;      // asked when time has passed
    std::function<void()> cancel;         // ends the call: the server could not be reached in time
    std::function<void()> still_waiting;  // after a second
  };
  // Blocks SIGINT in this thread and in those it starts later, so it is made before gRPC's threads. Ctrl-C says what
  // SetInterruptText() gave last and ends the process with 130; the job is not touched.
  explicit CallWatch(std::string interrupt_text);
  ~CallWatch();
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

  void Begin(Hooks hooks);
  // The server has answered: no more notice, no more deadline.
  void Answered();
  void SetInterruptText(std::string text);
  [[nodiscard]] bool TimedOut() const { return timed_out_; }

 private:
  void Run();
  void Interrupt();
  UniqueFd interrupts_;
  UniqueFd wake_;
  Hooks hooks_;
  std::mutex mutex_;
  std::string interrupt_text_;
  std::atomic<bool> answered_ = false;
  std::atomic<bool> ended_ = false;
  std::atomic<bool> timed_out_ = false;
  std::thread thread_;
};

}  // namespace jobworker
