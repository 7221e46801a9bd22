#include "daemon/event_loop.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <string>

#include "common/unique_fd.h"

namespace jobworker {
namespace {

using namespace std::chrono_literals;

class TimersTest : public testing::Test {
 protected:
  EventLoop::Timer At(EventLoop::Clock::duration after, char name) {
    return loop_.At(start_ + after, [this, name] { rung_ += name; });
  }
  // Until the last one of those that are set rings.
  void RunUntilRung(char last) {
    while (rung_.find(last) == std::string::npos) loop_.RunOnce();
  }

  EventLoop loop_;
  const EventLoop::Clock::time_point start_ = EventLoop::Clock::now();
  std::string rung_;
};

TEST_F(TimersTest, RingInTheOrderOfTheirTimesAndThenOfTheCalls) {
  At(3ms, 'd');
  At(1ms, 'a');
  At(2ms, 'b');
  At(2ms, 'c');
  RunUntilRung('d');
  EXPECT_EQ(rung_, "abcd");
}

TEST_F(TimersTest, AnEarlierOneIsNotKeptByALaterOne) {
  At(10h, 'z');
  At(-1ms, 'a');
  RunUntilRung('a');
  EXPECT_EQ(rung_, "a");
}

TEST_F(TimersTest, OneFromBeforeTheClockBeganRings) {
  for (const auto when : {EventLoop::Clock::time_point(), EventLoop::Clock::time_point(-1ns),
                          EventLoop::Clock::time_point(-1h), EventLoop::Clock::time_point::min()}) {
    rung_.clear();
    loop_.At(when, [this] { rung_ += 'a'; });
    RunUntilRung('a');
  }
}

TEST_F(TimersTest, ACancelledOneDoesNotRing) {
  const auto first = At(1ms, 'x');
  At(2ms, 'a');
  const auto last = At(3ms, 'y');
  loop_.Cancel(first);
  loop_.Cancel(last);
  loop_.Cancel(last);
  At(4ms, 'b');
  RunUntilRung('b');
  EXPECT_EQ(rung_, "ab");
}

TEST_F(TimersTest, OneThatHasRungCanBeCancelledWithoutHarmToOthers) {
  const auto first = At(1ms, 'a');
  RunUntilRung('a');
  At(1ms, 'b');
  loop_.Cancel(first);
  RunUntilRung('b');
  EXPECT_EQ(rung_, "ab");
}

TEST_F(TimersTest, MayBeSetAndCancelledWhileOneRings) {
  const auto doomed = At(2ms, 'x');
  loop_.At(start_ + 1ms, [this, doomed] {
    loop_.Cancel(doomed);
    At(3ms, 'b');
    At(-1ms, 'a');
  });
  RunUntilRung('b');
  EXPECT_EQ(rung_, "ab");
}

TEST(EventLoopTest, OneThatIsWatchedAlreadyIsWatchedAnew) {
  EventLoop loop;
  const UniqueFd ready(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
  std::string called;
  ASSERT_TRUE(loop.Watch(ready.Get(), EPOLLOUT, [&] { called += 'x'; }));
  ASSERT_TRUE(loop.Watch(ready.Get(), EPOLLIN, [&] { called += 'a'; }));
  loop.RunOnce();
  EXPECT_EQ(called, "a");
  loop.Unwatch(ready.Get());
}

}  // namespace
}  // namespace jobworker
