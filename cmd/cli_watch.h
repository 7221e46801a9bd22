// Looks after what the main thread waits for: Ctrl-C, SIGHUP and SIGTERM, and a notice when it takes long.
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
  // Blocks SIGINT, SIGHUP and SIGTERM, but for those that are ignored, in this thread and in those it starts later; so
  // it is made before gRPC's threads. Each says what SetLeaveText() gave last and ends the process with 128 and its
  // number; the job is not touched.
  explicit CallWatch(std::string leave_text);
  ~CallWatch();
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

  // From now on something is waited for: `notice` is said, on a terminal, when it has not come after a second.
  void Expect(std::string notice);
  // It has come.
  void Answered();
  void SetLeaveText(std::string text);
  // What Ctrl-C does instead, on another thread; false lets it end the process after all.
  void OnInterrupt(std::function<bool()> handler);

 private:
  void Run();
  void Signalled();
  void Wake();
  UniqueFd signals_;
  UniqueFd wake_;
  std::mutex mutex_;
  std::string leave_text_;
  std::string notice_;  // empty: nothing is waited for
  std::function<bool()> on_interrupt_;
  std::atomic<bool> ended_ = false;
  std::thread thread_;
};

}  // namespace jobworker
