#include "cmd/cli_watch.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <utility>

#include "cmd/cli_text.h"

namespace jobworker {
namespace {

constexpr int kNoticeMs = 1000;
constexpr int kForever = -1;

}  // namespace

CallWatch::CallWatch(std::string interrupt_text) : interrupt_text_(std::move(interrupt_text)) {
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);
  interrupts_.Reset(signalfd(-1, &interrupt, SFD_CLOEXEC));
  wake_.Reset(eventfd(0, EFD_CLOEXEC));
  thread_ = std::thread([this] { Run(); });
}

CallWatch::~CallWatch() {
  ended_ = true;
  Wake();
  thread_.join();
}

void CallWatch::Wake() { eventfd_write(wake_.Get(), 1); }

void CallWatch::Expect(std::string notice) {
  if (isatty(STDERR_FILENO) != 1) return;
  {
    const std::lock_guard lock(mutex_);
    notice_ = std::move(notice);
  }
  Wake();
}

void CallWatch::Answered() {
  const std::lock_guard lock(mutex_);
  notice_.clear();
}

void CallWatch::SetInterruptText(std::string text) {
  const std::lock_guard lock(mutex_);
  interrupt_text_ = std::move(text);
}

void CallWatch::Interrupt() {
  const std::lock_guard lock(mutex_);
  if (isatty(STDERR_FILENO) == 1) static_cast<void>(WriteFully(STDERR_FILENO, "\n"));  // after the terminal's ^C
  Say(interrupt_text_);
  // The main thread may be stuck in a write to a reader that has stopped; nothing is buffered.
  _exit(128 + SIGINT);
}

void CallWatch::Run() {
  int wait = kForever;
  while (!ended_) {
    pollfd events[] = {{interrupts_.Get(), POLLIN, 0}, {wake_.Get(), POLLIN, 0}};
    const int ready = poll(events, 2, wait);
    if (events[0].revents != 0) Interrupt();
    const std::lock_guard lock(mutex_);
    if (events[1].revents != 0) {
      eventfd_t unused;
      eventfd_read(wake_.Get(), &unused);
      wait = kNoticeMs;
    } else if (ready == 0) {
      if (!notice_.empty()) Say(notice_);
      wait = kForever;
    }
  }
}

}  // namespace jobworker
