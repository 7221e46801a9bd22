#include "daemon/output_collector.h"

#include <gtest/gtest.h>
#include <sys/ioctl.h>

#include "tests/unit/test_journal.h"

namespace jobworker {
namespace {

using Collector = OutputCollector;

class OutputCollectorTest : public testing::Test {
 protected:
  struct Job {
    explicit Job(uint64_t id) : key{"alice", id}, memory(Start{key, {}, {"echo"}, {}}) {}
    const JobKey key;
    const JournalMemory memory;
    const TestPipe out, err;
    const std::shared_ptr<Journal> journal = memory.Open();
    [[nodiscard]] int Capacity() const { return fcntl(out.write.Get(), F_GETPIPE_SZ); }
    [[nodiscard]] int Left() const {
      int left = 0;
      EXPECT_EQ(ioctl(out.read.Get(), FIONREAD, &left), 0);
      return left;
    }
    // As much as there is room for, as a process that has more to write.
    void FillPipe() const {
      const std::string bytes(static_cast<size_t>(Capacity()), 'x');
      EXPECT_EQ(write(out.write.Get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    }
  };

  explicit OutputCollectorTest(const OutputLimits& limits = {})
      : collector_(loop_, limits, [](const JobKey&) { ADD_FAILURE() << "to be killed"; }) {}

  // With `left` bytes in its pipe, it is one that was flooding an earlier front end.
  Job& Begin(size_t left = 0) {
    Job& job = jobs_.emplace_back(jobs_.size() + 1);
    if (left > 0) {
      EXPECT_EQ(fcntl(job.out.write.Get(), F_SETPIPE_SZ, Collector::kFloodedPipe), Collector::kFloodedPipe);
      job.out.Put(std::string(left, 'x'));
    }
    EXPECT_TRUE(
        collector_.Add(job.key, job.journal, {JournalMemory::Dup(job.out.read), JournalMemory::Dup(job.err.read)}));
    return job;
  }
  void RunUntilTaken(const Job& job) {
    while (job.Left() != 0) loop_.RunOnce();
  }
  void Flood(const Job& job) {
    for (int i = 0; i < 4; ++i) {
      job.FillPipe();
      RunUntilTaken(job);
    }
  }
  void Finish(const Job& job) {
    EXPECT_TRUE(collector_.Finish(job.key));
    job.journal->Close();
    collector_.Ended(job.key);
  }

  EventLoop loop_;
  std::deque<Job> jobs_;
  Collector collector_;
};

TEST_F(OutputCollectorTest, ThePipesOfAQuietJobAreSmall) {
  const Job& job = Begin();
  EXPECT_EQ(fcntl(job.err.write.Get(), F_GETPIPE_SZ), Collector::kQuietPipe);
  job.out.Put(std::string(Collector::kQuietPipe - 1, 'x'));
  RunUntilTaken(job);
  EXPECT_EQ(job.Capacity(), Collector::kQuietPipe);
}

TEST_F(OutputCollectorTest, APipeThatIsFullIsWidenedStepByStep) {
  const Job& job = Begin();
  for (const int capacity : {Collector::kBusyPipe, Collector::kFloodedPipe, Collector::kFloodedPipe}) {
    job.FillPipe();
    RunUntilTaken(job);
    EXPECT_EQ(job.Capacity(), capacity);
  }
  EXPECT_EQ(fcntl(job.err.write.Get(), F_GETPIPE_SZ), Collector::kQuietPipe);
  Finish(job);
  EXPECT_EQ(job.Capacity(), Collector::kQuietPipe);
}

TEST_F(OutputCollectorTest, WhatIsInAPipeThatIsTakenOverStays) {
  const Job& job = Begin(100'000);
  EXPECT_EQ(job.Capacity(), Collector::kFloodedPipe);
  RunUntilTaken(job);
  EXPECT_EQ(job.journal->range().end, 100'000U);
  EXPECT_EQ(Begin(4000).Capacity(), Collector::kQuietPipe);
}

TEST_F(OutputCollectorTest, AFewFloodsDoNotTakeTheRoomOfAll) {
  for (size_t i = 0; i < Collector::kMostFlooded; ++i) {
    const Job& job = Begin();
    Flood(job);
    EXPECT_EQ(job.Capacity(), Collector::kFloodedPipe);
  }
  const Job& late = Begin();
  Flood(late);
  EXPECT_EQ(late.Capacity(), Collector::kBusyPipe);
  Finish(jobs_.front());
  Flood(late);
  EXPECT_EQ(late.Capacity(), Collector::kFloodedPipe);
  collector_.Remove(late.key);
  const Job& later = Begin();
  Flood(later);
  EXPECT_EQ(later.Capacity(), Collector::kFloodedPipe);
}

TEST_F(OutputCollectorTest, FloodsThatAreTakenOverCount) {
  for (size_t i = 0; i < Collector::kMostFlooded; ++i) Begin(100'000);
  const Job& late = Begin();
  Flood(late);
  EXPECT_EQ(late.Capacity(), Collector::kBusyPipe);
}

class FullUserTest : public OutputCollectorTest {
 protected:
  static constexpr uint64_t kPerUser = 64 * 1024;
  FullUserTest() : OutputCollectorTest({1 << 20, kPerUser, 1 << 20, OutputPolicy::kBlock, std::chrono::hours(1)}) {}
};

// What has ended was being read, slowly.
TEST_F(FullUserTest, AJobThatIsForgottenMakesRoom) {
  const Job& ended = Begin();
  const Job& waits = Begin();
  OutputCursor cursor{0, {}, 1};
  ended.journal->Attach(&cursor);
  ended.out.Put(std::string(kPerUser - 2 * kEmptyHeld, 'x'));
  RunUntilTaken(ended);
  Finish(ended);
  waits.out.Put(std::string(1000, 'x'));
  RunUntilTaken(waits);
  waits.out.Put("more");
  collector_.SetLimits(collector_.retention().limits());
  EXPECT_NE(waits.Left(), 0);
  collector_.Remove(ended.key);
  RunUntilTaken(waits);
  ended.journal->Detach(&cursor);
}

}  // namespace
}  // namespace jobworker
