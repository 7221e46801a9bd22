// One thread that waits for all that the front end waits for: descriptors, timers, and work from other threads.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/unique_fd.h"

namespace jobworker {

// All but Post and Stop belong to the thread that calls Run (or to whoever prepares the loop before that).
class EventLoop {
 public:
  using Clock = std::chrono::steady_clock;
  using Work = std::function<void()>;

  // Throws std::system_error when the kernel gives no epoll, eventfd or timerfd.
  EventLoop();

  // Calls `ready` whenever `fd` has one of `events` (epoll_ctl(2)). The descriptor stays the caller's; Unwatch it
  // before closing it. One that is watched already is watched for these from now on. False when the kernel has no room
  // for it.
  [[nodiscard]] bool Watch(int fd, uint32_t events, Work ready);
  void Rearm(int fd, uint32_t events);
  void Unwatch(int fd);

  // Calls `due` once, not before `when`. Cancel takes that back, if it is not too late.
  using Timer = std::pair<Clock::time_point, uint64_t>;
  Timer At(Clock::time_point when, Work due);
  void Cancel(const Timer& timer);

  // From any thread: runs `work` on the loop's thread, in the order of the calls. Nothing runs after Stop.
  void Post(Work work);
  void Stop();

  void Run();
  // Waits for one descriptor and handles it; timers and posted work have one of their own each.
  void RunOnce();

 private:
  void RunPosted();
  void RunTimers();
  void ArmTimer();

  UniqueFd epoll_, wakeup_, timer_;
  bool running_ = true;
  std::unordered_map<int, std::shared_ptr<const Work>> watches_;
  std::map<Timer, Work> timers_;
  uint64_t timer_count_ = 0;
  std::mutex mutex_;  // guards posted_
  std::vector<Work> posted_;
};

}  // namespace jobworker
