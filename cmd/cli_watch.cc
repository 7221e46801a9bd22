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

CallWatch::CallWatch(std::string leave_text) : leave_text_(std::move(leave_text)) {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGHUP, SIGTERM}) {
    struct sigaction action {};
    sigaction(number, nullptr, &action);
    // nohup, and a shell's &, ignore some: that is to stay so.
    if (action.sa_handler != SIG_IGN) sigaddset(&set, number);
  }
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signals_.Reset(signalfd(-1, &set, SFD_CLOEXEC));
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

void CallWatch::SetLeaveText(std::string text) {
  const std::lock_guard lock(mutex_);
  leave_text_ = std::move(text);
}

void CallWatch::OnInterrupt(std::function<bool()> handler) {
  const std::lock_guard lock(mutex_);
  on_interrupt_ = std::move(handler);
}

void CallWatch::Signalled() {
  signalfd_siginfo info{};
  if (read(signals_.Get(), &info, sizeof info) != sizeof info) return;
  const int number = static_cast<int>(info.ssi_signo);
  if (number == SIGINT && isatty(STDERR_FILENO) == 1) {
    static_cast<void>(WriteFully(STDERR_FILENO, "\n"));  // after the terminal's ^C
  }
  std::function<bool()> handler;
  {
    const std::lock_guard lock(mutex_);
    if (number == SIGINT) handler = on_interrupt_;
  }
  if (handler && handler()) return;
  const std::lock_guard lock(mutex_);
  Say(leave_text_);
  // The main thread may be stuck in a write to a reader that has stopped; nothing is buffered.
  _exit(128 + number);
}

void CallWatch::Run() {
  int wait = kForever;
  while (!ended_) {
    pollfd events[] = {{signals_.Get(), POLLIN, 0}, {wake_.Get(), POLLIN, 0}};
    const int ready = poll(events, 2, wait);
    if (events[0].revents != 0) Signalled();
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
