#include "daemon/job_input.h"

#include <gtest/gtest.h>

#include <csignal>

#include "tests/unit/test_journal.h"

namespace jobworker {
namespace {

constexpr size_t kPipeBytes = 4096;

class CountingSource : public InputSource {
 public:
  void OnInputReady() override { ++ready; }
  void OnSuperseded() override { ++superseded; }
  void OnAbandoned() override { ++abandoned; }
  int ready = 0, superseded = 0, abandoned = 0;
};

class JobInputTest : public testing::Test {
 protected:
  JobInputTest() {
    (void)signal(SIGPIPE, SIG_IGN);
    int ends[2] = {-1, -1};
    if (pipe2(ends, O_CLOEXEC) != 0 || fcntl(ends[1], F_SETFL, O_NONBLOCK) != 0) abort();
    if (fcntl(ends[1], F_SETPIPE_SZ, kPipeBytes) != kPipeBytes) abort();
    job_.Reset(ends[0]);
    input_ = std::make_unique<JobInput>(loop_, UniqueFd(ends[1]), memory_.Open());
    input_->TakeOver(source_);
  }
  std::string Read(size_t most) const {
    std::string bytes(most, '\0');
    bytes.resize(static_cast<size_t>(std::max<ssize_t>(0, read(job_.Get(), bytes.data(), most))));
    return bytes;
  }
  void RunUntilReady(int times) {
    while (source_->ready < times) loop_.RunOnce();
  }
  // What the next front end knows.
  [[nodiscard]] InputProgress Next() { return JobInput(loop_, {}, memory_.Open()).progress(); }

  const JournalMemory memory_;
  EventLoop loop_;
  UniqueFd job_;
  std::shared_ptr<CountingSource> source_ = std::make_shared<CountingSource>();
  std::unique_ptr<JobInput> input_;
};

TEST_F(JobInputTest, WhatFitsIsTakenAtOnce) {
  input_->Put("abc", false);
  EXPECT_EQ(source_->ready, 1);
  EXPECT_EQ(input_->progress(), (InputProgress{3, InputPhase::kOpen}));
  EXPECT_EQ(Read(10), "abc");
}

TEST_F(JobInputTest, WhatDoesNotFitWaitsForTheJob) {
  const std::string bytes = std::string(kPipeBytes, 'a') + std::string(kPipeBytes, 'b') + "c";
  input_->Put(bytes, false);
  EXPECT_TRUE(input_->busy());
  EXPECT_EQ(input_->progress().taken, kPipeBytes);
  EXPECT_EQ(source_->ready, 0);
  std::string all = Read(kPipeBytes);
  loop_.RunOnce();
  EXPECT_EQ(source_->ready, 0);
  all += Read(kPipeBytes);
  RunUntilReady(1);
  EXPECT_FALSE(input_->busy());
  all += Read(kPipeBytes);
  EXPECT_EQ(all, bytes);
  EXPECT_EQ(input_->progress().taken, bytes.size());
}

TEST_F(JobInputTest, AnEofComesAfterTheLastByte) {
  input_->Put(std::string(kPipeBytes + 1, 'x'), true);
  EXPECT_EQ(input_->progress().phase, InputPhase::kOpen);
  EXPECT_EQ(Read(2 * kPipeBytes).size(), kPipeBytes);
  RunUntilReady(1);
  EXPECT_EQ(input_->progress(), (InputProgress{kPipeBytes + 1, InputPhase::kClosed}));
  EXPECT_EQ(Read(10), "x");
  EXPECT_EQ(Read(10), "");
  EXPECT_EQ(Next(), (InputProgress{kPipeBytes + 1, InputPhase::kClosed}));
}

TEST_F(JobInputTest, AnEofAloneIsOne) {
  input_->Put("", true);
  EXPECT_EQ(input_->progress(), (InputProgress{0, InputPhase::kClosed}));
  EXPECT_EQ(Read(10), "");
  input_->Put("late", false);
  EXPECT_EQ(source_->ready, 2);
  EXPECT_EQ(input_->progress(), (InputProgress{0, InputPhase::kClosed}));
}

TEST_F(JobInputTest, AJobThatClosesItIsNoticedWithoutAByte) {
  job_.Reset();
  RunUntilReady(1);
  EXPECT_EQ(input_->progress(), (InputProgress{0, InputPhase::kRefused}));
}

TEST_F(JobInputTest, AJobThatClosesItWhileBytesWaitIsNoticed) {
  input_->Put(std::string(2 * kPipeBytes, 'x'), true);
  job_.Reset();
  RunUntilReady(1);
  EXPECT_EQ(input_->progress(), (InputProgress{kPipeBytes, InputPhase::kRefused}));
  EXPECT_EQ(Next(), (InputProgress{kPipeBytes, InputPhase::kRefused}));
}

TEST_F(JobInputTest, TheEndOfTheJobIsTheEndOfItsInput) {
  input_->Put(std::string(2 * kPipeBytes, 'x'), false);
  input_->End();
  EXPECT_EQ(source_->ready, 1);
  EXPECT_EQ(input_->progress(), (InputProgress{kPipeBytes, InputPhase::kRefused}));
  input_->End();
  EXPECT_EQ(source_->ready, 1);
}

TEST_F(JobInputTest, TheEndOfTheJobLeavesAClosedInputClosed) {
  input_->Put("abc", true);
  input_->End();
  EXPECT_EQ(input_->progress(), (InputProgress{3, InputPhase::kClosed}));
}

TEST_F(JobInputTest, AnotherSourceGoesOnWhereThePipeIs) {
  input_->Put(std::string(kPipeBytes, 'a') + "never", false);
  const auto other = std::make_shared<CountingSource>();
  input_->TakeOver(other);
  EXPECT_EQ(source_->superseded, 1);
  EXPECT_FALSE(input_->busy());
  EXPECT_EQ(input_->progress().taken, kPipeBytes);
  EXPECT_EQ(Read(2 * kPipeBytes), std::string(kPipeBytes, 'a'));
  input_->Leave(source_.get());  // it is not the source any more
  input_->Put("b", false);
  EXPECT_EQ(other->ready, 1);
  EXPECT_EQ(source_->ready, 0);
  EXPECT_EQ(Read(10), "b");
}

TEST_F(JobInputTest, WithoutASourceItStaysOpen) {
  input_->Put(std::string(kPipeBytes, 'a') + "never", false);
  input_->Leave(source_.get());
  EXPECT_EQ(Read(2 * kPipeBytes).size(), kPipeBytes);
  EXPECT_EQ(source_.use_count(), 1);
  input_->TakeOver(source_);
  input_->Put("b", true);
  EXPECT_EQ(Read(10), "b");
}

TEST_F(JobInputTest, IsLostWithTheFrontEnd) {
  input_->Put("abc", false);
  EXPECT_EQ(Next(), (InputProgress{3, InputPhase::kLost}));
  input_->Abandon();
  EXPECT_EQ(source_->abandoned, 1);
  input_ = nullptr;
  EXPECT_EQ(Read(10), "abc");
  EXPECT_EQ(Read(10), "");
  JobInput next(loop_, {}, memory_.Open());
  next.TakeOver(source_);
  next.Put("more", false);
  EXPECT_EQ(source_->ready, 2);
  EXPECT_EQ(next.progress(), (InputProgress{3, InputPhase::kLost}));
  next.End();
  EXPECT_EQ(next.progress().phase, InputPhase::kLost);
}

}  // namespace
}  // namespace jobworker
