// Looks after what the main thread waits for: Ctrl-C, and a notice when it takes long.
#pragma once
#include <atomic>
#include <mutex>
#include <string>
#include <thread>

#include "common/unique_fd.h"

namespace jobworker {

class CallWatch {
 public:
  // Blocks SIGINT in this thread and in those it starts later, so it is made before gRPC's threads. Ctrl-C says what
  // SetInterruptText() gave last and ends the process with 130; the job is not touched.
  explicit CallWatch(std::string interrupt_text);
  ~CallWatch();
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

  // From now on something is waited for: `notice` is said, on a terminal, when it has not come after a second.
  void Expect(std::string notice);
  // It has come.
  void Answered();
  void SetInterruptText(std::string text);

 private:
  void Run();
  void Interrupt();
  void Wake();
  UniqueFd interrupts_;
  UniqueFd wake_;
  std::mutex mutex_;
  std::string interrupt_text_;
  std::string notice_;  // empty: nothing is waited for
  std::atomic<bool> ended_ = false;
  std::thread thread_;
};

}  // namespace jobworker
