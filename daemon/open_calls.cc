#include "daemon/open_calls.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "daemon/log.h"

namespace jobworker {

OpenCalls::OpenCalls(EventLoop& loop, const Gate& gate)
    : loop_(loop), gate_(gate), timer_(timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK)) {
  const auto due = [this] {
    uint64_t expirations = 0;
    (void)!read(timer_.Get(), &expirations, sizeof(expirations));
    Recheck();
  };
  if (!loop_.Watch(timer_.Get(), EPOLLIN, due)) throw std::system_error(errno, std::generic_category(), "timerfd");
}

void OpenCalls::LetIn(const Identity& caller) {
  const time_t until = caller.validity.until;
  if (until >= due_) return;
  loop_.Post([this, until] {
    if (until < due_) RecheckAt(until);
  });
}

void OpenCalls::Recheck() {
  constexpr std::chrono::seconds kTakesIt{2};
  // Before the calls are counted: one that is let in meanwhile is among them, or sees this and tells of itself.
  due_ = kNever;
  time_t next = kNever;
  std::vector<std::weak_ptr<Call>> ended;
  for (const auto& call : server_->Open()) {
    const MethodRow* const row = FindMethod(call->method());
    if (row == nullptr) continue;
    const auto caller = gate_.Recheck(call->context(), *row);
    if (caller) {
      next = std::min(next, caller->validity.until);
      continue;
    }
    const Gate::Refusal& why = caller.error();
    if (!call->Revoke(why.status)) continue;
    Log("ended", {{"method", row->name}, {"user", why.user}, {"peer", call->context().peer()}, {"reason", why.reason}});
    ended.push_back(call);
  }
  RecheckAt(next);
  if (ended.empty()) return;
  loop_.At(EventLoop::Clock::now() + kTakesIt, [ended = std::move(ended)] {
    for (const auto& each : ended) {
      if (const auto call = each.lock()) call->Cancel();
    }
  });
}

void OpenCalls::RecheckAt(time_t when) {
  due_ = when;
  itimerspec spec{};
  if (when != kNever) spec.it_value.tv_sec = when;
  (void)timerfd_settime(timer_.Get(), TFD_TIMER_ABSTIME, &spec, nullptr);
}

}  // namespace jobworker
