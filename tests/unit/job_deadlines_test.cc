#include "daemon/job_deadlines.h"

#include <gtest/gtest.h>

#include "daemon/clock.h"

namespace jobworker {
namespace {

constexpr uint64_t kHourMs = 3'600'000;

JobNote Note(uint64_t timeout_ms, uint64_t lease_ms) {
  JobNote note;
  note.set_timeout_ms(timeout_ms);
  note.set_lease_ms(lease_ms);
  return note;
}

class JobDeadlinesTest : public testing::Test {
 protected:
  // Until `count` jobs were to be stopped.
  void RunUntil(size_t count) {
    while (stopped_.size() < count) loop_.RunOnce();
  }

  EventLoop loop_;
  std::vector<std::pair<uint64_t, StopKind>> stopped_;
  JobDeadlines deadlines_{loop_, [this](const JobKey& key, StopKind kind) { stopped_.emplace_back(key.id, kind); }};
  const JobKey one_{"alice", 1}, two_{"alice", 2};
};

TEST_F(JobDeadlinesTest, ATimeoutCountsFromTheStart) {
  deadlines_.Add(one_, Note(kHourMs, 0), NowUs());
  deadlines_.Add(two_, Note(kHourMs, 0), NowUs() - kHourMs * 1000);  // by a front end that came later
  RunUntil(1);
  EXPECT_EQ(stopped_, (std::vector{std::pair{uint64_t{2}, StopKind::kTimeout}}));
}

TEST_F(JobDeadlinesTest, AClockThatWasSetBackDoesNotLengthenATimeout) {
  deadlines_.Add(one_, Note(1, 0), NowUs() + kHourMs * 1000);
  RunUntil(1);
}

TEST_F(JobDeadlinesTest, AJobThatEndsIsNotStopped) {
  deadlines_.Add(one_, Note(1, 1), NowUs());
  deadlines_.Remove(one_);
  deadlines_.Remove(one_);
  deadlines_.Add(two_, Note(2, 0), NowUs());
  RunUntil(1);
  EXPECT_EQ(stopped_.front().first, 2U);
}

TEST_F(JobDeadlinesTest, ALeaseThatNobodyTakesUpIsLost) {
  deadlines_.Add(one_, Note(0, 1), NowUs() - kHourMs * 1000);
  RunUntil(1);
  EXPECT_EQ(stopped_.front(), std::pair(uint64_t{1}, StopKind::kLease));
}

TEST_F(JobDeadlinesTest, ALeaseIsHeldUntilTheLastFollowerLeaves) {
  deadlines_.Add(one_, Note(0, 1), NowUs());
  deadlines_.Follow(one_);
  deadlines_.Follow(one_);
  deadlines_.Leave(one_);
  deadlines_.Add(two_, Note(5, 0), NowUs());
  RunUntil(1);
  EXPECT_EQ(stopped_.front().first, 2U);
  deadlines_.Leave(one_);
  RunUntil(2);
  EXPECT_EQ(stopped_.back(), std::pair(uint64_t{1}, StopKind::kLease));
}

TEST_F(JobDeadlinesTest, AFollowerThatComesBackInTimeKeepsTheJob) {
  deadlines_.Add(one_, Note(0, 1), NowUs());
  deadlines_.Follow(one_);
  deadlines_.Leave(one_);
  deadlines_.Follow(one_);
  deadlines_.Add(two_, Note(5, 0), NowUs());
  RunUntil(1);
  EXPECT_EQ(stopped_.front().first, 2U);
}

TEST_F(JobDeadlinesTest, JobsWithoutADeadlineAreNotMinded) {
  deadlines_.Add(one_, Note(0, 0), NowUs());
  deadlines_.Follow(one_);
  deadlines_.Leave(one_);
  deadlines_.Leave(two_);
  deadlines_.Add(two_, Note(kHourMs, 0), NowUs());
  deadlines_.Leave(two_);
  deadlines_.Follow(two_);
  deadlines_.Leave(two_);
  deadlines_.Add({"bob", 3}, Note(1, 0), NowUs());
  RunUntil(1);
  EXPECT_EQ(stopped_.front().first, 3U);
}

}  // namespace
}  // namespace jobworker
