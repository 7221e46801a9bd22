// One thread that waits for everything the front end waits for: descriptors, timers, and work from other threads.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "common/unique_fd.h"

namespace jobworker {

// All but Post and Stop belong to the thread that calls Run (or to whoever prepares the loop before that).
class EventLoop {
 public:
  using Clock = std::chrono::steady_clock;

  // Throws std::system_error when the kernel gives no epoll, eventfd or timerfd.
  EventLoop();

  // Calls `ready` whenever `fd` has one of `events` (epoll_ctl(2)). The descriptor stays the caller's; Unwatch it
  // before closing it.
  void Watch(int fd, uint32_t events, std::function<void()> ready);
  void Rearm(int fd, uint32_t events);
  void Unwatch(int fd);

  // Calls `due` once, not before `when`.
  void At(Clock::time_point when, std::function<void()> due);

  // From any thread: runs `work` on the loop's thread, in the order of the calls. Nothing runs after Stop.
  void Post(std::function<void()> work);
  void Stop();

  void Run();

 private:
  void RunPosted();
  void RunTimers();
  void ArmTimer();

  UniqueFd epoll_, wakeup_, timer_;
  bool running_ = true;
  std::unordered_map<int, std::function<void()>> watches_;
  std::multimap<Clock::time_point, std::function<void()>> timers_;
  std::mutex mutex_;  // guards posted_
  std::vector<std::function<void()>> posted_;
};

}  // namespace jobworker
