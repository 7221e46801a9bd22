#include "daemon/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <system_error>

namespace jobworker {

namespace {

int OrThrow(int fd, const char* what) {
  if (fd < 0) throw std::system_error(errno, std::generic_category(), what);
  return fd;
}

epoll_event Event(int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  return event;
}

}  // namespace

EventLoop::EventLoop()
    : epoll_(OrThrow(epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      wakeup_(OrThrow(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")),
      timer_(OrThrow(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create")) {
  if (!Watch(wakeup_.Get(), EPOLLIN, [this] { RunPosted(); }) ||
      !Watch(timer_.Get(), EPOLLIN, [this] { RunTimers(); })) {
    OrThrow(-1, "epoll_ctl");
  }
}

bool EventLoop::Watch(int fd, uint32_t events, Work ready) {
  epoll_event event = Event(fd, events);
  if (epoll_ctl(epoll_.Get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    // An Unwatch that failed has left it there: without this, it could never be watched again.
    if (errno != EEXIST || epoll_ctl(epoll_.Get(), EPOLL_CTL_MOD, fd, &event) != 0) return false;
  }
  watches_[fd] = std::make_shared<const Work>(std::move(ready));
  return true;
}

void EventLoop::Rearm(int fd, uint32_t events) {
  epoll_event event = Event(fd, events);
  (void)epoll_ctl(epoll_.Get(), EPOLL_CTL_MOD, fd, &event);  // of a watched descriptor: cannot fail
}

void EventLoop::Unwatch(int fd) {
  if (watches_.erase(fd) == 1) (void)epoll_ctl(epoll_.Get(), EPOLL_CTL_DEL, fd, nullptr);
}

EventLoop::Timer EventLoop::At(Clock::time_point when, Work due) {
  const Timer timer(when, ++timer_count_);
  timers_.emplace(timer, std::move(due));
  if (timers_.begin()->first == timer) ArmTimer();
  return timer;
}

void EventLoop::Cancel(const Timer& timer) {
  const auto found = timers_.find(timer);
  if (found == timers_.end()) return;
  const bool next = found == timers_.begin();
  timers_.erase(found);
  if (next) ArmTimer();
}

void EventLoop::ArmTimer() {
  itimerspec spec{};
  if (!timers_.empty()) {
    // To the kernel a time before boot is an error, and 0 is no time at all.
    const auto since = std::max(timers_.begin()->first.first.time_since_epoch(), Clock::duration(1));
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since);
    spec.it_value.tv_sec = seconds.count();
    spec.it_value.tv_nsec = std::chrono::duration_cast<std::chrono::nanoseconds>(since - seconds).count();
  }
  (void)timerfd_settime(timer_.Get(), TFD_TIMER_ABSTIME, &spec, nullptr);
}

void EventLoop::Post(Work work) {
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(work));
    if (posted_.size() > 1) return;  // the wake-up for the first is still unread
  }
  while (eventfd_write(wakeup_.Get(), 1) != 0 && errno == EINTR) continue;
}

void EventLoop::Stop() {
  Post([this] { running_ = false; });
}

void EventLoop::Run() {
  while (running_) RunOnce();
}

void EventLoop::RunOnce() {
  // One at a time: a callback may close a descriptor that another event of the same batch would name.
  epoll_event event{};
  if (epoll_wait(epoll_.Get(), &event, 1, -1) != 1) return;
  const auto watch = watches_.find(event.data.fd);
  if (watch == watches_.end()) return;
  const std::shared_ptr<const Work> ready = watch->second;  // it may unwatch itself
  (*ready)();
}

void EventLoop::RunPosted() {
  eventfd_t count = 0;
  (void)eventfd_read(wakeup_.Get(), &count);
  std::vector<Work> work;
  {
    const std::lock_guard lock(mutex_);
    work.swap(posted_);
  }
  for (const Work& each : work) each();
}

void EventLoop::RunTimers() {
  uint64_t expirations = 0;
  (void)!read(timer_.Get(), &expirations, sizeof(expirations));
  while (!timers_.empty() && timers_.begin()->first.first <= Clock::now()) {
    const auto due = timers_.extract(timers_.begin());
    due.mapped()();
  }
  ArmTimer();
}

}  // namespace jobworker
