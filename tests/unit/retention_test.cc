#include "daemon/retention.h"

#include <gtest/gtest.h>

#include <deque>

#include "tests/unit/test_journal.h"

namespace jobworker {
namespace {

using Verdict = Retention::Verdict;
constexpr uint64_t kKiB = 1024;
constexpr uint64_t kPerJob = 128 * kKiB, kPerUser = 256 * kKiB, kInAll = 512 * kKiB;

class RetentionTest : public testing::Test {
 protected:
  struct Held {
    explicit Held(std::string of) : user(std::move(of)) {}
    std::string user;
    JournalMemory memory;
    std::shared_ptr<Journal> journal = memory.Open();
    OutputCursor cursor;
    [[nodiscard]] uint64_t bytes() const { return journal->range().end - journal->range().first; }
  };

  explicit RetentionTest(OutputPolicy policy = OutputPolicy::kDropOldest)
      : retention_({kPerJob, kPerUser, kInAll, policy}) {}

  Held& Add(const std::string& user) {
    Held& held = all_.emplace_back(user);
    retention_.Add(user, *held.journal);
    return held;
  }
  // So many bytes of one stream in one turn, whatever that takes.
  Verdict Put(Held& held, uint64_t bytes) {
    while (bytes > 0) {
      const uint64_t size = std::min<uint64_t>(bytes, 60'000);
      pipe_.Put(std::string(size, 'x'));
      EXPECT_EQ(held.journal->Take(OutputStream::kStdout, pipe_.read.Get(), size), static_cast<ssize_t>(size));
      bytes -= size;
    }
    return retention_.Check(held.user, *held.journal);
  }
  // Until so much is held. What comes in a tenth of a second has one mark, and more marks when it is late.
  Verdict FillTo(Held& held, uint64_t wanted) {
    Verdict verdict = Verdict::kGoOn;
    while (held.journal->held() < wanted) {
      // The mark may come with the bytes, or be there already.
      verdict = Put(held, std::max<uint64_t>(
                              1, wanted - held.journal->held() - std::min(wanted - held.journal->held(), kMarkHeld)));
    }
    return verdict;
  }
  void ReadAllOf(Held& held) {
    while (held.journal->Read(held.cursor, nullptr).outcome == Journal::Outcome::kBytes) continue;
  }
  // The sums are what the journals hold.
  void ExpectSums() {
    uint64_t sum = 0;
    std::map<std::string, uint64_t> of;
    for (const Held& held : all_) {
      sum += held.journal->held();
      of[held.user] += held.journal->held();
    }
    EXPECT_EQ(retention_.held(), sum);
    for (const auto& [user, bytes] : of) EXPECT_EQ(retention_.HeldBy(user), bytes) << user;
  }

  TestPipe pipe_;
  std::deque<Held> all_;
  Retention retention_;
};

TEST_F(RetentionTest, NothingIsHeldOfNobody) {
  EXPECT_EQ(retention_.held(), 0U);
  EXPECT_EQ(retention_.HeldBy("alice"), 0U);
  const auto unreadable = Journal::Unreadable("");
  retention_.Remove("alice", *unreadable);  // that was never there
  retention_.Add("alice", *unreadable);
  EXPECT_EQ(retention_.Check("alice", *unreadable), Verdict::kGoOn);
  EXPECT_EQ(retention_.HeldBy("alice"), 0U);
  retention_.Ended("alice", *unreadable);
  retention_.Remove("alice", *unreadable);
  EXPECT_EQ(retention_.held(), 0U);
}

TEST_F(RetentionTest, WhatIsRemovedNoLongerCounts) {
  Held& first = Add("alice");
  Held& second = Add("bob");
  Put(first, 1000);
  Put(second, 2000);
  ExpectSums();
  retention_.Remove("alice", *first.journal);
  retention_.Remove("alice", *first.journal);
  EXPECT_EQ(retention_.held(), second.journal->held());
  EXPECT_EQ(retention_.HeldBy("alice"), 0U);
}

TEST_F(RetentionTest, AJobAtItsLimitKeepsAllAndOnePastItDrops) {
  Held& held = Add("alice");
  EXPECT_EQ(FillTo(held, kPerJob), Verdict::kGoOn);
  ASSERT_EQ(held.journal->held(), kPerJob);
  EXPECT_EQ(held.journal->range().first, 0U);
  EXPECT_EQ(Put(held, 1), Verdict::kGoOn);
  EXPECT_GT(held.journal->range().first, 0U);
  EXPECT_LE(held.journal->held(), kPerJob - kPerJob / 16);
  EXPECT_GE(held.journal->held(), kPerJob - kPerJob / 8);  // and no more than that
  ExpectSums();
}

TEST_F(RetentionTest, TheBiggestOfTheUserGivesWay) {
  Held& big = Add("alice");
  Held& small = Add("alice");
  Held& others = Add("bob");
  FillTo(big, kPerJob);
  FillTo(others, kPerJob);
  FillTo(small, kPerUser - kPerJob - kKiB);
  EXPECT_EQ(big.journal->range().first, 0U);
  FillTo(small, kPerUser - kPerJob);
  ASSERT_EQ(retention_.HeldBy("alice"), kPerUser);
  EXPECT_EQ(big.journal->range().first, 0U);
  Put(small, 1);
  EXPECT_LE(retention_.HeldBy("alice"), kPerUser);
  EXPECT_GT(big.journal->range().first + small.journal->range().first, 0U);
  EXPECT_EQ(others.journal->range().first, 0U);
  ExpectSums();
}

TEST_F(RetentionTest, AnEndedJobThatIsSmallerDoesNotGiveWayToABiggerOne) {
  Held& ended = Add("alice");
  Put(ended, 1000);
  retention_.Ended("alice", *ended.journal);
  Held& first = Add("alice");
  Held& second = Add("alice");
  FillTo(first, kPerJob);
  FillTo(second, kPerJob);
  EXPECT_EQ(ended.bytes(), 1000U);
  EXPECT_LE(retention_.HeldBy("alice"), kPerUser);
  ExpectSums();
}

TEST_F(RetentionTest, TheBiggestOfAllGivesWayAtTheCeiling) {
  Held& small = Add("zoe");
  Put(small, 1000);
  for (const char* user : {"alice", "alice", "bob", "bob", "carl", "carl"}) {
    FillTo(Add(user), kPerJob - 2 * kKiB);
    EXPECT_LE(retention_.held(), kInAll);
  }
  EXPECT_EQ(small.bytes(), 1000U);
  EXPECT_GE(retention_.held(), kInAll - kInAll / 4);
  ExpectSums();
}

// Journals that are empty cost something too, and nothing more can be had from them.
TEST_F(RetentionTest, AlthoughNothingCanBeDroppedItComesToAnEnd) {
  while (retention_.held() < 2 * kInAll) Add("alice");
  Held& held = Add("alice");
  EXPECT_EQ(Put(held, 1), Verdict::kGoOn);
  EXPECT_EQ(held.bytes(), 0U);
  ExpectSums();
}

TEST_F(RetentionTest, AJournalThatIsTakenOverCountsAtOnce) {
  JournalMemory memory;
  const auto first = memory.Open();
  for (int i = 0; i < 40; ++i) {
    pipe_.Put(std::string(50'000, 'x'));
    ASSERT_EQ(first->Take(OutputStream::kStdout, pipe_.read.Get(), 50'000), 50'000);
  }
  const auto again = memory.Open();
  retention_.Add("alice", *again);
  EXPECT_LE(retention_.held(), kInAll);
  EXPECT_EQ(retention_.held(), again->held());
  EXPECT_LE(again->held(), kInAll);
  EXPECT_EQ(retention_.Check("alice", *again), Verdict::kGoOn);
  EXPECT_LE(again->held(), kPerJob);
}

TEST_F(RetentionTest, NewLimitsTakeEffectAsAJournalGrows) {
  Held& held = Add("alice");
  FillTo(held, kPerJob);
  OutputLimits limits = retention_.limits();
  limits.per_job = 64 * kKiB;
  retention_.SetLimits(limits);
  EXPECT_EQ(held.journal->range().first, 0U);
  Put(held, 1);
  EXPECT_LE(held.journal->held(), 64 * kKiB);
  limits.per_job = kPerJob;
  retention_.SetLimits(limits);
  FillTo(held, kPerJob);
  EXPECT_EQ(held.journal->held(), kPerJob);
}

TEST_F(RetentionTest, TurnsBetweenTheStreamsCostWhatTheyTake) {
  Held& held = Add("alice");
  for (int i = 0; i < 20'000; ++i) {
    pipe_.Put("x");
    ASSERT_EQ(held.journal->Take(static_cast<OutputStream>(i % 2), pipe_.read.Get(), 1), 1);
    (void)retention_.Check("alice", *held.journal);
    ASSERT_LE(held.journal->held(), kPerJob);
  }
  EXPECT_LE(held.memory.Memory(), kPerJob);
}

// --- Those that do not drop. ---

class KillRetentionTest : public RetentionTest {
 protected:
  KillRetentionTest() : RetentionTest(OutputPolicy::kKill) {}
};

TEST_F(KillRetentionTest, OneByteBelowTheLimitGoesOnAndAtItIsKilled) {
  Held& held = Add("alice");
  EXPECT_EQ(FillTo(held, kPerJob - 1), Verdict::kGoOn);
  ASSERT_EQ(held.journal->held(), kPerJob - 1);
  EXPECT_EQ(Put(held, 1), Verdict::kKill);
  EXPECT_EQ(Put(held, 1), Verdict::kKill);
  EXPECT_EQ(held.journal->range().first, 0U);
  ExpectSums();
}

TEST_F(KillRetentionTest, EndedJobsGiveWayBeforeARunningOneIsKilled) {
  Held& ended = Add("alice");
  FillTo(ended, kPerJob - kKiB);
  retention_.Ended("alice", *ended.journal);
  Held& running = Add("alice");
  FillTo(running, kPerJob - kKiB);
  Held& last = Add("alice");
  EXPECT_EQ(FillTo(last, 20 * kKiB), Verdict::kGoOn);
  EXPECT_GT(ended.journal->range().first, 0U);
  EXPECT_EQ(running.journal->range().first, 0U);
  EXPECT_EQ(last.journal->range().first, 0U);
  ExpectSums();
}

TEST_F(KillRetentionTest, TheUsersLimitKillsTheOneThatPassesIt) {
  Held& first = Add("alice");
  Held& second = Add("alice");
  Held& third = Add("alice");
  EXPECT_EQ(FillTo(first, kPerJob - kKiB), Verdict::kGoOn);
  EXPECT_EQ(FillTo(second, kPerJob - 20 * kKiB), Verdict::kGoOn);
  EXPECT_EQ(FillTo(third, 40 * kKiB), Verdict::kKill);
  EXPECT_EQ(first.journal->range().first, 0U);
}

TEST_F(KillRetentionTest, TheCeilingHoldsAllTheSame) {
  for (const char* user : {"alice", "bob", "carl", "dora", "eve", "fay"}) FillTo(Add(user), kPerJob - kKiB);
  EXPECT_LE(retention_.held(), kInAll);
  ExpectSums();
}

class BlockRetentionTest : public RetentionTest {
 protected:
  BlockRetentionTest() : RetentionTest(OutputPolicy::kBlock) {}
};

TEST_F(BlockRetentionTest, WithoutAFollowerItWaitsAtTheLimit) {
  Held& held = Add("alice");
  EXPECT_EQ(FillTo(held, kPerJob - 1), Verdict::kGoOn);
  EXPECT_EQ(Put(held, 1), Verdict::kWait);
  EXPECT_EQ(held.journal->range().first, 0U);
  EXPECT_EQ(retention_.Check("alice", *held.journal), Verdict::kWait);
}

TEST_F(BlockRetentionTest, WhatTheSlowestFollowerHasReadGoesButForHalf) {
  Held& held = Add("alice");
  held.journal->Attach(&held.cursor);
  OutputCursor slow{kPerJob / 2, {}};
  held.journal->Attach(&slow);
  FillTo(held, kPerJob);
  ReadAllOf(held);
  EXPECT_EQ(retention_.Check("alice", *held.journal), Verdict::kWait);
  EXPECT_EQ(held.journal->range().first, 0U);
  ++slow.offset;
  EXPECT_EQ(retention_.Check("alice", *held.journal), Verdict::kGoOn);
  EXPECT_EQ(held.journal->range().first, 1U);
  EXPECT_EQ(Put(held, kKiB), Verdict::kWait);
  held.journal->Detach(&slow);
  EXPECT_EQ(retention_.Check("alice", *held.journal), Verdict::kGoOn);
  EXPECT_LE(held.journal->held(), kPerJob - kPerJob / 16);
  EXPECT_GE(held.bytes(), kPerJob / 2);
  held.journal->Detach(&held.cursor);
  ExpectSums();
}

TEST_F(BlockRetentionTest, EndedJobsGiveWayAtTheUsersLimitItself) {
  Held& ended = Add("alice");
  FillTo(ended, kPerJob - kKiB);
  retention_.Ended("alice", *ended.journal);
  Held& first = Add("alice");
  Held& second = Add("alice");
  EXPECT_EQ(FillTo(first, 60 * kKiB), Verdict::kGoOn);
  EXPECT_EQ(FillTo(second, kPerUser - ended.journal->held() - first.journal->held()), Verdict::kGoOn);
  EXPECT_GT(ended.journal->range().first, 0U);
}

TEST_F(BlockRetentionTest, WhatArrivedGoesToTheLastByteWhenAFollowerSaysSo) {
  Held& held = Add("alice");
  held.cursor.reader = 1;
  held.journal->Attach(&held.cursor);
  FillTo(held, kPerJob);
  ReadAllOf(held);
  EXPECT_EQ(retention_.Check("alice", *held.journal), Verdict::kWait);
  EXPECT_EQ(held.journal->range().first, 0U);
  held.journal->Detach(&held.cursor);
  held.cursor.needed = held.cursor.offset;
  held.journal->Attach(&held.cursor);
  EXPECT_EQ(retention_.Check("alice", *held.journal), Verdict::kGoOn);
  EXPECT_GT(held.journal->range().first, 0U);
  held.journal->Detach(&held.cursor);
  ExpectSums();
}

TEST_F(BlockRetentionTest, AnEndedJobKeepsWhatAFollowerStillNeedsAndAnotherGivesWay) {
  Held& read = Add("alice");
  Held& unread = Add("alice");
  FillTo(read, kPerJob - kKiB);
  FillTo(unread, kPerJob - 8 * kKiB);
  read.cursor.reader = 1;
  read.journal->Attach(&read.cursor);
  for (Held* ended : {&read, &unread}) retention_.Ended("alice", *ended->journal);
  Held& running = Add("alice");
  EXPECT_EQ(FillTo(running, 40 * kKiB), Verdict::kGoOn);
  EXPECT_EQ(read.journal->range().first, 0U);
  EXPECT_GT(unread.journal->range().first, 0U);
  EXPECT_EQ(FillTo(running, kPerJob + kEmptyHeld + kKiB), Verdict::kWait);
  read.journal->Detach(&read.cursor);
  EXPECT_EQ(read.journal->range().first, 0U);
  ExpectSums();
}

// Whoever reads everything must not wait for ever, however many jobs there are.
TEST_F(BlockRetentionTest, ManyJobsWhoseOutputIsReadGoOn) {
  for (int i = 0; i < 8; ++i) {
    Held& held = Add("alice");
    held.journal->Attach(&held.cursor);
  }
  for (int round = 0; round < 20; ++round) {
    for (Held& held : all_) {
      (void)Put(held, 8 * kKiB);
      ReadAllOf(held);
      ASSERT_EQ(retention_.Check("alice", *held.journal), Verdict::kGoOn) << round;
    }
  }
  for (Held& held : all_) held.journal->Detach(&held.cursor);
}

TEST_F(BlockRetentionTest, AUsersLimitBelowThatOfAJobStillMoves) {
  retention_.SetLimits({4 * kPerUser, kPerUser, 8 * kPerUser, OutputPolicy::kBlock});
  Held& held = Add("alice");
  held.journal->Attach(&held.cursor);
  for (int round = 0; round < 20; ++round) {
    (void)Put(held, 32 * kKiB);
    ReadAllOf(held);
    ASSERT_EQ(retention_.Check("alice", *held.journal), Verdict::kGoOn) << round;
  }
  held.journal->Detach(&held.cursor);
}

TEST(OutputPolicy, HasANameEach) {
  EXPECT_EQ(PolicyName(OutputPolicy::kDropOldest), "drop-oldest");
  EXPECT_EQ(PolicyName(OutputPolicy::kBlock), "block");
  EXPECT_EQ(PolicyName(OutputPolicy::kKill), "kill");
}

}  // namespace
}  // namespace jobworker
