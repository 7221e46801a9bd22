#include "cmd/cli_interrupt.h"

#include <gtest/gtest.h>

namespace jobworker {
namespace {

using Step = InterruptSteps::Step;
using std::chrono::milliseconds;
constexpr InterruptSteps::Clock::time_point kNow{std::chrono::hours(1)};

TEST(InterruptSteps, ASecondOneWithinTwoSecondsStops) {
  InterruptSteps steps;
  EXPECT_EQ(steps.Next(kNow, true), Step::kSignal);
  EXPECT_EQ(steps.Next(kNow + milliseconds(2000), true), Step::kStop);
  EXPECT_EQ(steps.Next(kNow + milliseconds(2001), true), Step::kLeave);
  EXPECT_EQ(steps.Next(kNow + milliseconds(9000), true), Step::kLeave);
}

TEST(InterruptSteps, ALaterOneIsAFirstOneAgain) {
  InterruptSteps steps;
  EXPECT_EQ(steps.Next(kNow, true), Step::kSignal);
  EXPECT_EQ(steps.Next(kNow + milliseconds(2001), true), Step::kSignal);
  EXPECT_EQ(steps.Next(kNow + milliseconds(4001), true), Step::kStop);
}

TEST(InterruptSteps, WithoutAConnectionOrAfterAFailureItLeaves) {
  InterruptSteps steps;
  EXPECT_EQ(steps.Next(kNow, false), Step::kLeave);
  EXPECT_EQ(steps.Next(kNow, true), Step::kSignal);
  steps.Failed();
  EXPECT_EQ(steps.Next(kNow + milliseconds(1), true), Step::kLeave);
}

}  // namespace
}  // namespace jobworker
