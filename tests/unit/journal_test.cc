#include "daemon/journal.h"

#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <ctime>
#include <random>
#include <thread>

#include "tests/unit/test_journal.h"

namespace jobworker {
namespace {

using namespace std::chrono_literals;
using Outcome = Journal::Outcome;
constexpr OutputStream kOut = OutputStream::kStdout, kErr = OutputStream::kStderr;
constexpr size_t kChunk = Journal::kMaxChunk;
constexpr uint64_t kPage = 4096;

class JournalTest : public testing::Test {
 protected:
  JournalTest() { EXPECT_GE(fcntl(pipe_.write.Get(), F_SETPIPE_SZ, 1 << 20), 1 << 20); }

  void Put(std::string_view bytes, OutputStream stream = kOut) { PutInto(*journal_, bytes, stream); }
  void PutInto(Journal& journal, std::string_view bytes, OutputStream stream = kOut) {
    pipe_.Put(bytes);
    for (size_t taken = 0; taken < bytes.size();) {
      const ssize_t size = journal.Take(stream, pipe_.read.Get(), 1 << 20);
      ASSERT_GT(size, 0) << strerror(errno);
      taken += static_cast<size_t>(size);
    }
  }
  // Turns from one stream to the other, a byte each.
  void Alternate(int turns) {
    for (int i = 0; i < turns; ++i) Put(i % 2 == 0 ? "o" : "e", i % 2 == 0 ? kOut : kErr);
  }
  // The front end dies, and a new one takes over.
  void Reopen() {
    journal_ = nullptr;
    journal_ = memory_.Open();
  }
  [[nodiscard]] std::string All(uint64_t from = 0) const { return ReadAll(*journal_, {from, {}}); }
  Journal::Chunk Read(OutputCursor& cursor) { return journal_->Read(cursor, reader_); }

  JournalMemory memory_;
  TestPipe pipe_;
  std::shared_ptr<CountingReader> reader_ = std::make_shared<CountingReader>();
  std::shared_ptr<Journal> journal_ = memory_.Open();
};

void ExpectRange(const Journal& journal, uint64_t first, uint64_t end) {
  EXPECT_EQ(journal.range().first, first);
  EXPECT_EQ(journal.range().end, end);
}

// --- Nothing in it, and nothing to be had. ---

TEST_F(JournalTest, AnEmptyOneHasNothingButTheStart) {
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(journal_->start().argv, (std::vector<std::string>{"echo", "hi"}));
  ExpectRange(*journal_, 0, 0);
  EXPECT_EQ(journal_->held(), kEmptyHeld);
  EXPECT_EQ(All(), "");
  EXPECT_EQ(journal_->TailBytes({}, 10), 0U);
  EXPECT_EQ(journal_->TailLines({}, 10), 0U);
  EXPECT_EQ(journal_->DropTo(0), 0U);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 0U);
  EXPECT_EQ(journal_->stop().kind, StopKind::kNone);
  EXPECT_FALSE(journal_->end());
  EXPECT_FALSE(journal_->forgotten());
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  journal_->Close();
  OutputCursor cursor;
  EXPECT_EQ(Read(cursor).outcome, Outcome::kEnd);
  EXPECT_EQ(cursor.offset, 0U);
}

TEST_F(JournalTest, TakeFailsAsSpliceDoes) {
  EXPECT_EQ(journal_->Take(kOut, pipe_.read.Get(), 1), -1);
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_EQ(journal_->Take(kOut, -1, 1), -1);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(journal_->Take(kOut, memory_.data.Get(), 1), -1);  // no pipe
  EXPECT_EQ(errno, EINVAL);
  pipe_.Put("last");
  pipe_.write.Reset();
  EXPECT_EQ(journal_->Take(kErr, pipe_.read.Get(), 100), 4);
  EXPECT_EQ(journal_->Take(kErr, pipe_.read.Get(), 100), 0);
  EXPECT_EQ(All(), "e'last'");
}

// The kernel refuses to make a file longer, as it does when memory is short: the bytes stay in the pipe.
TEST_F(JournalTest, WhatCannotBeTakenStaysInThePipe) {
  Put("abc");
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  (void)signal(SIGXFSZ, SIG_IGN);
  const rlimit full{3, old.rlim_max};
  pipe_.Put("def");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  EXPECT_EQ(journal_->Take(kErr, pipe_.read.Get(), 100), -1);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_EQ(All(), "o'abc'");
  Reopen();
  EXPECT_EQ(All(), "o'abc'");
  EXPECT_EQ(journal_->Take(kErr, pipe_.read.Get(), 100), 3);
  EXPECT_EQ(All(), "o'abc' e'def'");
}

TEST_F(JournalTest, TakesNoMoreThanIsAskedFor) {
  pipe_.Put("abcdef");
  EXPECT_EQ(journal_->Take(kOut, pipe_.read.Get(), 1), 1);
  EXPECT_EQ(journal_->Take(kErr, pipe_.read.Get(), 2), 2);
  EXPECT_EQ(All(), "o'a' e'bc'");
}

TEST(Journal, AnUnreadableOneTakesNothingAndTellsNothing) {
  const auto journal = Journal::Unreadable("why");
  const TestPipe pipe;
  pipe.Put("x");
  EXPECT_EQ(journal->damage(), "why");
  EXPECT_EQ(journal->Take(kOut, pipe.read.Get(), 1), -1);
  EXPECT_TRUE(journal->start().argv.empty());
  EXPECT_EQ(journal->held(), 0U);
  journal->SetStop({StopKind::kAsked, 15, false, 1, 2});
  journal->SetEnd(Exited{{"alice", 1}});
  journal->Forget();
  EXPECT_EQ(journal->stop().kind, StopKind::kNone);
  EXPECT_FALSE(journal->end());
  EXPECT_FALSE(journal->forgotten());
  EXPECT_EQ(journal->TailLines({}, 1), 0U);
  OutputCursor cursor;
  EXPECT_EQ(journal->Read(cursor, nullptr).outcome, Outcome::kWait);
  journal->Close();
  EXPECT_EQ(journal->Read(cursor, nullptr).outcome, Outcome::kEnd);
}

TEST(Journal, NoJournalWithoutMemory) {
  JournalMemory memory;
  EXPECT_FALSE(Journal::Open({}, JournalMemory::Dup(memory.index)));
  EXPECT_FALSE(Journal::Open(JournalMemory::Dup(memory.data), {}));
}

// --- Bytes, streams, offsets. ---

TEST_F(JournalTest, KeepsTheOrderAndTellsTheStreamsApart) {
  Put("ab");
  Put("c");
  Put("error", kErr);
  Put(std::string("\0\xff", 2));
  const std::string all = std::string("o'abc' e'error' o'\0\xff'", 21);
  EXPECT_EQ(All(), all);
  EXPECT_EQ(All(1), all.substr(0, 2) + all.substr(3));
  EXPECT_EQ(All(4), "e'rror'" + all.substr(15));
  EXPECT_EQ(All(10), "");
  EXPECT_EQ(All(11), "");
  ExpectRange(*journal_, 0, 10);
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(All(), all);
  Put("d");
  Put("e", kErr);
  EXPECT_EQ(All(8), std::string("o'\0\xff", 4) + "d' e'e'");
}

TEST_F(JournalTest, OffsetAndTimeComeWithTheBytes) {
  const auto before = static_cast<uint64_t>(time(nullptr)) * 1'000'000;
  Put("abc");
  Put("d", kErr);
  OutputCursor cursor{1, {}};
  const Journal::Chunk chunk = Read(cursor);
  EXPECT_EQ(chunk.offset, 1U);
  EXPECT_GE(chunk.time_us, before);
  EXPECT_LE(chunk.time_us, static_cast<uint64_t>(time(nullptr) + 1) * 1'000'000);
  EXPECT_EQ(cursor.offset, 3U);
  EXPECT_GE(Read(cursor).time_us, chunk.time_us);
}

// At most ten marks a second of one stream; the first one here seems to be from 1970.
TEST_F(JournalTest, WhatComesLaterHasALaterTime) {
  Put("abc");
  memory_.PokeMark(0, 0, kOut, 1);
  Reopen();
  Put("def");
  Put("ghi");
  OutputCursor cursor;
  Journal::Chunk chunk = Read(cursor);
  EXPECT_EQ(*chunk.bytes, "abc");
  EXPECT_EQ(chunk.time_us, 1U);
  chunk = Read(cursor);
  EXPECT_EQ(chunk.bytes->substr(0, 3), "def");
  EXPECT_GT(chunk.time_us, 1U);
}

TEST_F(JournalTest, ChunksEndAtMultiplesOfTheirSize) {
  for (const size_t size : {kChunk - 1, kChunk, kChunk + 1}) {
    JournalMemory memory;
    const auto journal = memory.Open();
    pipe_.Put(std::string(size, 'x'));
    ASSERT_EQ(journal->Take(kOut, pipe_.read.Get(), 1 << 20), static_cast<ssize_t>(size));
    OutputCursor cursor;
    EXPECT_EQ(journal->Read(cursor, nullptr).bytes->size(), std::min(size, kChunk));
    EXPECT_EQ(cursor.offset, std::min(size, kChunk));
    EXPECT_EQ(ReadAll(*journal, {kChunk, {}}), size > kChunk ? "o'x'" : "");
    cursor.offset = 1;
    EXPECT_EQ(journal->Read(cursor, nullptr).bytes->size(), std::min(size, kChunk) - 1);
    cursor.offset = size - 1;
    EXPECT_EQ(journal->Read(cursor, nullptr).bytes->size(), 1U);
  }
}

TEST_F(JournalTest, ReadersShareAChunkWhileSomebodyHasIt) {
  Put(std::string(2 * kChunk, 'x'));
  OutputCursor first, second, third{1, {}};
  const auto bytes = Read(first).bytes;
  EXPECT_EQ(Read(second).bytes, bytes);
  (void)Read(third);
  EXPECT_EQ(Read(third).bytes, Read(first).bytes);  // who began elsewhere has caught up
  Put("y", kErr);
  EXPECT_EQ(*bytes, std::string(kChunk, 'x'));
}

// What followers hold who do not go on is bounded: once there is much of it, chunks are small, until it is let go.
TEST_F(JournalTest, ChunksAreSmallWhileManyAreHeld) {
  std::vector<std::shared_ptr<const std::string_view>> held;
  OutputCursor cursor;
  for (size_t i = 0; i < Journal::kChunkMemory / kChunk; ++i) {
    Put(std::string(kChunk, 'x'));
    held.push_back(Read(cursor).bytes);
    ASSERT_EQ(held.back()->size(), kChunk);
  }
  Put(std::string(2 * kChunk, 'y'));
  const auto small = Read(cursor).bytes;
  EXPECT_EQ(*small, std::string(Journal::kSmallChunk, 'y'));
  held.pop_back();
  EXPECT_EQ(*Read(cursor).bytes, std::string(kChunk - Journal::kSmallChunk, 'y'));
  EXPECT_EQ(*Read(cursor).bytes, std::string(kChunk, 'y'));
}

TEST_F(JournalTest, AChunkThatHasGrownIsReadAnew) {
  Put("abc");
  OutputCursor first, second;
  const auto bytes = Read(first).bytes;
  Put("def");
  std::string all;
  while (second.offset < 6) all += *Read(second).bytes;
  EXPECT_EQ(all, "abcdef");
  EXPECT_EQ(*bytes, "abc");
}

// Several who wait get the same chunk, though none of them has it before.
TEST_F(JournalTest, WhoWaitedTogetherShares) {
  struct Follower : OutputReader {
    explicit Follower(Journal& from) : journal(from) {}
    void OutputReady() override { bytes = journal.Read(cursor, nullptr).bytes; }
    Journal& journal;
    OutputCursor cursor;
    std::shared_ptr<const std::string_view> bytes;
  };
  std::vector<std::shared_ptr<Follower>> followers;
  for (int i = 0; i < 3; ++i) {
    followers.push_back(std::make_shared<Follower>(*journal_));
    EXPECT_EQ(journal_->Read(followers.back()->cursor, followers.back()).outcome, Outcome::kWait);
  }
  Put("together");
  ASSERT_NE(followers[0]->bytes, nullptr);
  EXPECT_EQ(*followers[0]->bytes, "together");
  for (const auto& follower : followers) EXPECT_EQ(follower->bytes, followers[0]->bytes);
}

// --- Waiting and the end. ---

TEST_F(JournalTest, TellsAWaitingReaderOnce) {
  OutputCursor cursor;
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  EXPECT_EQ(reader_->told, 0);
  Put("a");
  Put("b", kErr);
  EXPECT_EQ(reader_->told, 1);
  EXPECT_EQ(*Read(cursor).bytes, "a");
  EXPECT_EQ(*Read(cursor).bytes, "b");
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  journal_->Close();
  EXPECT_EQ(reader_->told, 2);
  EXPECT_EQ(Read(cursor).outcome, Outcome::kEnd);
  EXPECT_EQ(reader_.use_count(), 1);
}

TEST_F(JournalTest, NobodyIsToldOfNothing) {
  OutputCursor cursor;
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  EXPECT_EQ(journal_->Take(kOut, pipe_.read.Get(), 1), -1);
  pipe_.write.Reset();
  EXPECT_EQ(journal_->Take(kOut, pipe_.read.Get(), 1), 0);
  EXPECT_EQ(reader_->told, 0);
}

TEST_F(JournalTest, ForgetsAReaderThatLeaves) {
  OutputCursor cursor;
  journal_->Leave(reader_);
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  journal_->Leave(reader_);
  EXPECT_EQ(reader_.use_count(), 1);
  Put("a");
  journal_->Close();
  EXPECT_EQ(reader_->told, 0);
}

TEST_F(JournalTest, TheFirstEndCounts) {
  Put("a");
  journal_->Abandon();
  journal_->Close();
  OutputCursor cursor;
  EXPECT_EQ(*Read(cursor).bytes, "a");
  EXPECT_EQ(Read(cursor).outcome, Outcome::kAbandoned);
  Reopen();
  journal_->Close();
  journal_->Abandon();
  EXPECT_EQ(Read(cursor).outcome, Outcome::kEnd);
  EXPECT_EQ(reader_.use_count(), 1);
}

// A client may ask for a byte that does not exist yet.
TEST_F(JournalTest, AReaderAheadOfTheOutputWaitsForIt) {
  Put("abc");
  OutputCursor cursor{5, {}}, far{UINT64_MAX, {}};
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  EXPECT_EQ(Read(far).outcome, Outcome::kWait);
  Put("de");
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  Put("fgh", kErr);
  const Journal::Chunk chunk = Read(cursor);
  EXPECT_EQ(chunk.offset, 5U);
  EXPECT_EQ(*chunk.bytes, "fgh");
  journal_->Close();
  EXPECT_EQ(Read(far).outcome, Outcome::kEnd);
  EXPECT_EQ(far.offset, UINT64_MAX);
}

TEST_F(JournalTest, AReaderOfOneStreamSkipsTheOther) {
  Put("ab");
  Put("12", kErr);
  Put("cd");
  Put("34", kErr);
  EXPECT_EQ(ReadAll(*journal_, {0, kOut}), "o'ab' o'cd'");
  EXPECT_EQ(ReadAll(*journal_, {0, kErr}), "e'12' e'34'");
  EXPECT_EQ(ReadAll(*journal_, {3, kErr}), "e'2' e'34'");
  EXPECT_EQ(ReadAll(*journal_, {7, kOut}), "");
  OutputCursor cursor{6, kOut};
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  EXPECT_EQ(cursor.offset, 8U);
  Put("5", kErr);
  EXPECT_EQ(reader_->told, 1);
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  Put("e");
  EXPECT_EQ(reader_->told, 2);
  const Journal::Chunk chunk = Read(cursor);
  EXPECT_EQ(*chunk.bytes, "e");
  EXPECT_EQ(chunk.offset, 9U);
  journal_->Close();
  EXPECT_EQ(Read(cursor).outcome, Outcome::kEnd);
}

// --- The last bytes and lines. ---

TEST_F(JournalTest, TailBytesCountsTheStreamsThatAreAskedFor) {
  Put("abc");
  Put("12", kErr);
  Put("def");
  EXPECT_EQ(journal_->TailBytes({}, 0), 8U);
  EXPECT_EQ(journal_->TailBytes({}, 1), 7U);
  EXPECT_EQ(journal_->TailBytes({}, 4), 4U);
  EXPECT_EQ(journal_->TailBytes({}, 8), 0U);
  EXPECT_EQ(journal_->TailBytes({}, 9), 0U);
  EXPECT_EQ(journal_->TailBytes({}, UINT64_MAX), 0U);
  EXPECT_EQ(ReadAll(*journal_, {journal_->TailBytes(kOut, 4), kOut}), "o'c' o'def'");
  EXPECT_EQ(ReadAll(*journal_, {journal_->TailBytes(kOut, 6), kOut}), "o'abc' o'def'");
  EXPECT_EQ(ReadAll(*journal_, {journal_->TailBytes(kErr, 1), kErr}), "e'2'");
  EXPECT_EQ(ReadAll(*journal_, {journal_->TailBytes(kErr, 3), kErr}), "e'12'");
  EXPECT_EQ(ReadAll(*journal_, {journal_->TailBytes(kErr, 0), kErr}), "");
}

TEST_F(JournalTest, TailLinesCountsAsTailDoes) {
  Put("a\nb\n\nc");
  EXPECT_EQ(journal_->TailLines({}, 0), 6U);
  EXPECT_EQ(journal_->TailLines({}, 1), 5U);
  EXPECT_EQ(journal_->TailLines({}, 2), 4U);
  EXPECT_EQ(journal_->TailLines({}, 3), 2U);
  EXPECT_EQ(journal_->TailLines({}, 4), 0U);
  EXPECT_EQ(journal_->TailLines({}, 5), 0U);
  Put("\n");
  EXPECT_EQ(journal_->TailLines({}, 1), 5U);
  EXPECT_EQ(journal_->TailLines({}, 4), 0U);
  EXPECT_EQ(journal_->TailLines({}, UINT64_MAX), 0U);
}

TEST_F(JournalTest, ALineMayBeInSeveralSegmentsAndChunks) {
  const std::string longer(kChunk + 10, 'x');
  Put("1\n" + longer);
  Put("e1\ne2", kErr);
  Put(longer + "\n2");
  const uint64_t second = 2 + longer.size() + 5 + longer.size() + 1;
  EXPECT_EQ(journal_->TailLines(kOut, 1), second);
  EXPECT_EQ(journal_->TailLines(kOut, 2), 2U);
  EXPECT_EQ(journal_->TailLines(kOut, 3), 0U);
  EXPECT_EQ(journal_->TailLines(kErr, 1), 2 + longer.size() + 3);
  EXPECT_EQ(ReadAll(*journal_, {journal_->TailLines(kErr, 2), kErr}), "e'e1\ne2'");
  EXPECT_EQ(journal_->TailLines({}, 2), 2 + longer.size() + 3);
}

// A newline as the last byte of one chunk, as the first of the next, and on either side of the border.
TEST_F(JournalTest, NewlinesAtTheBordersOfChunks) {
  for (const size_t size : {kChunk - 1, kChunk, kChunk + 1}) {
    JournalMemory memory;
    const auto journal = memory.Open();
    PutInto(*journal, std::string(size - 1, 'x') + "\n" + std::string(kChunk, 'y'));
    EXPECT_EQ(journal->TailLines({}, 1), size);
    EXPECT_EQ(journal->TailLines({}, 2), 0U);
    PutInto(*journal, "\n");
    EXPECT_EQ(journal->TailLines({}, 1), size);
  }
}

TEST_F(JournalTest, TheTailEndsAtWhatRetentionHasLeft) {
  Put("a\nb\n");
  Put("e\n", kErr);
  Put("c\n");
  journal_->DropTo(journal_->held() - 3);
  ASSERT_EQ(journal_->range().first, 3U);
  EXPECT_EQ(journal_->TailBytes({}, 100), 3U);
  EXPECT_EQ(journal_->TailLines({}, 100), 3U);
  EXPECT_EQ(journal_->TailLines({}, 2), 4U);
  EXPECT_EQ(journal_->TailBytes(kOut, 3), 3U);
}

// --- Retention. ---

TEST_F(JournalTest, DropsTheOldestAndSaysHowMuch) {
  Put("first", kErr);
  Put(std::string(1'000'000, 'x'));
  const uint64_t held = journal_->held();
  EXPECT_GE(held, kEmptyHeld + 2 * kMarkHeld + 1'000'005);
  EXPECT_EQ(journal_->DropTo(held), 0U);
  EXPECT_EQ(journal_->DropTo(held + 1), 0U);
  const uint64_t before = memory_.DataMemory();
  EXPECT_GE(journal_->DropTo(held - 600'000), 600'000U);
  EXPECT_LE(journal_->held(), held - 600'000);
  EXPECT_LE(memory_.DataMemory(), before - 600'000 + 2 * kPage);
  const uint64_t first = journal_->range().first;
  EXPECT_GE(first, 600'000U);
  ExpectRange(*journal_, first, 1'000'005);
  EXPECT_EQ(All(), "<" + std::to_string(first) + "> o'" + std::string(1'000'005 - first, 'x') + "'");
  EXPECT_EQ(All(first - 1).substr(0, 4), "<1> ");
  EXPECT_EQ(All(first).substr(0, 4), "o'xx");
  EXPECT_EQ(ReadAll(*journal_, {0, kErr}), "<" + std::to_string(first) + ">");
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  ExpectRange(*journal_, first, 1'000'005);
  EXPECT_EQ(All(999'999), "o'xxxxxx'");
  Put("y");
  EXPECT_EQ(All(1'000'004), "o'xy'");
}

TEST_F(JournalTest, DroppingAllLeavesTheOffset) {
  Put("abc");
  Put("def", kErr);
  EXPECT_GT(journal_->DropTo(0), 0U);
  ExpectRange(*journal_, 6, 6);
  EXPECT_EQ(All(), "<6>");
  EXPECT_LE(journal_->held(), kEmptyHeld + kMarkHeld);
  EXPECT_EQ(journal_->DropTo(0), 0U);
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  ExpectRange(*journal_, 6, 6);
  Put("ghi", kErr);
  Put("j");
  EXPECT_EQ(All(1), "<5> e'ghi' o'j'");
}

TEST_F(JournalTest, AGapIsToldWhenThereIsNothingAfterIt) {
  Put("abc");
  journal_->DropTo(0);
  journal_->Close();
  OutputCursor cursor{1, {}};
  const Journal::Chunk chunk = Read(cursor);
  EXPECT_EQ(chunk.outcome, Outcome::kBytes);
  EXPECT_EQ(chunk.bytes, nullptr);
  EXPECT_EQ(chunk.dropped, 2U);
  EXPECT_EQ(chunk.offset, 3U);
  EXPECT_EQ(Read(cursor).outcome, Outcome::kEnd);
}

TEST_F(JournalTest, AReaderInTheMiddleKeepsWhatItHas) {
  Put("abcdefghij");
  OutputCursor cursor{2, {}};
  const Journal::Chunk chunk = Read(cursor);
  Put("klm", kErr);
  journal_->DropTo(0);
  EXPECT_EQ(*chunk.bytes, "cdefghij");
  EXPECT_EQ(Read(cursor).dropped, 3U);
}

TEST_F(JournalTest, WhatWasReadGoesAndWhatWasNotStays) {
  Put("abcdefghij");
  const uint64_t held = journal_->held();
  EXPECT_EQ(journal_->DropReadTo(0, 0), 0U);  // nobody has read anything
  OutputCursor slow{4, {}}, fast{10, {}};
  journal_->Attach(&slow);
  journal_->Attach(&fast);
  EXPECT_EQ(journal_->followers(), 2U);
  EXPECT_EQ(journal_->DropReadTo(held, 0), 0U);
  EXPECT_EQ(journal_->DropReadTo(0, 4), 0U);
  EXPECT_EQ(journal_->DropReadTo(0, UINT64_MAX), 0U);
  EXPECT_EQ(journal_->DropReadTo(0, 3), 1U);
  EXPECT_EQ(journal_->DropReadTo(held - 2, 0), 1U);
  ExpectRange(*journal_, 2, 10);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 2U);
  ExpectRange(*journal_, 4, 10);
  journal_->Detach(&slow);
  EXPECT_EQ(journal_->DropReadTo(0, 1), 5U);
  journal_->Detach(&fast);
  EXPECT_EQ(journal_->followers(), 0U);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 0U);
  OutputCursor ahead{UINT64_MAX, {}};
  journal_->Attach(&ahead);
  EXPECT_GT(journal_->DropReadTo(0, 0), 0U);
  ExpectRange(*journal_, 10, 10);
}

TEST_F(JournalTest, OfOneThatComesBackNothingGoesThatItMayAskForAgain) {
  Put("abcdefghij");
  OutputCursor cursor{2, {}, 1, 2};
  journal_->Attach(&cursor);
  (void)Read(cursor);
  EXPECT_EQ(cursor.offset, 10U);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 2U);
  journal_->Detach(&cursor);
  OutputCursor other{10, {}}, new_one{3, {}, 2, 3};
  for (OutputCursor* each : {&other, &new_one}) journal_->Attach(each);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 0U);
  EXPECT_EQ(journal_->DropUnneededTo(0, 0), 0U);
  OutputCursor again{7, {}, 1, 7};
  journal_->Attach(&again);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 1U);
  new_one.needed = 9;  // as if it had come back
  EXPECT_EQ(journal_->DropReadTo(0, 5), 2U);
  ExpectRange(*journal_, 5, 10);  // the other's margin
  EXPECT_EQ(journal_->DropReadTo(0, 0), 2U);
  ExpectRange(*journal_, 7, 10);
  for (OutputCursor* each : {&other, &new_one, &again}) journal_->Detach(each);
}

// A connection that is gone may take long to be noticed.
TEST_F(JournalTest, WhoComesBackTakesThePlaceOfTheOneBefore) {
  Put("abcdefghij");
  OutputCursor before{2, {}, 1, 2}, after{6, {}, 1, 6};
  journal_->Attach(&before);
  journal_->Attach(&after);
  EXPECT_EQ(journal_->followers(), 1U);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 6U);
  journal_->Detach(&before);
  EXPECT_EQ(journal_->LookAgainAt(), Journal::Clock::time_point::max());
  journal_->Detach(&after);
  EXPECT_LT(journal_->LookAgainAt(), Journal::Clock::time_point::max());
}

TEST_F(JournalTest, WhoOnlyHasALookKeepsWhatItNeedsAndReadsForNobody) {
  Put("abcdefghij");
  OutputCursor look{4, {}, 0, 0, false}, cursor{7, {}};
  journal_->Attach(&look);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 0U);
  journal_->Attach(&cursor);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 4U);
  journal_->Detach(&look);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 3U);
  journal_->Detach(&cursor);
}

TEST_F(JournalTest, WhoDoesNotComeBackIsNotWaitedForForEver) {
  auto journal = *Journal::Open(JournalMemory::Dup(memory_.data), JournalMemory::Dup(memory_.index), 0ms);
  PutInto(*journal, "abcdefghij");
  EXPECT_EQ(journal->LookAgainAt(), Journal::Clock::time_point::max());
  OutputCursor cursor{0, {}, 1}, other{10, {}};
  for (OutputCursor* each : {&cursor, &other}) journal->Attach(each);
  EXPECT_EQ(journal->DropReadTo(0, 0), 0U);
  journal->Detach(&cursor);
  EXPECT_EQ(journal->DropReadTo(0, 0), 10U);
  EXPECT_EQ(journal->LookAgainAt(), Journal::Clock::time_point::max());
  journal->Detach(&other);
}

TEST_F(JournalTest, TheNextFrontEndWaitsForThoseOfTheOneBefore) {
  Put("abcdefghij");
  OutputCursor present{4, {}, 1, 4}, left{5, {}, UINT64_MAX, 5}, not_back{6, {}};
  for (OutputCursor* each : {&present, &left, &not_back}) journal_->Attach(each);
  journal_->Detach(&left);
  EXPECT_GT(journal_->DropReadTo(0, 2), 0U);
  const auto before = Journal::Clock::now();
  Reopen();
  EXPECT_GE(journal_->LookAgainAt(), before + Journal::kComesBackWithin);
  OutputCursor new_one{10, {}, 3, 10}, one{10, {}, 1, 10}, two{8, {}, UINT64_MAX, 8};
  for (OutputCursor* each : {&new_one, &one}) journal_->Attach(each);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 0U);
  ExpectRange(*journal_, 4, 10);
  journal_->Attach(&two);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 4U);
  for (OutputCursor* each : {&new_one, &one, &two}) journal_->Detach(each);
}

// The list of them lies behind the end.
TEST_F(JournalTest, ManyReadersDoNotHurtTheEnd) {
  Exited exited{{std::string(kMaxUserName, 'a'), UINT64_MAX}};
  exited.counters.fill(UINT64_MAX);
  journal_->SetEnd(exited);
  std::vector<OutputCursor> cursors;
  for (uint64_t i = 0; i < 100; ++i) cursors.push_back({0, {}, UINT64_MAX - i});
  for (const OutputCursor& cursor : cursors) journal_->Attach(&cursor);
  Reopen();
  EXPECT_EQ(journal_->end()->counters, exited.counters);
  EXPECT_EQ(journal_->start().argv.size(), 2U);
}

// Whoever opens and breaks off streams without end does not make it keep a list of them.
TEST_F(JournalTest, WhoeverNeedsTheMostIsRemembered) {
  Put(std::string(1000, 'x'));
  for (uint64_t i = 1000; i > 0; --i) {
    OutputCursor cursor{i, {}, i, i};
    journal_->Attach(&cursor);
    journal_->Detach(&cursor);
  }
  OutputCursor other{1000, {}};
  journal_->Attach(&other);
  EXPECT_EQ(journal_->DropReadTo(0, 0), 1U);
  std::vector<OutputCursor> back;
  for (uint64_t i = 1; i <= 64; ++i) back.push_back({1000, {}, i, 1000});
  for (const OutputCursor& cursor : back) journal_->Attach(&cursor);
  EXPECT_EQ(journal_->LookAgainAt(), Journal::Clock::time_point::max());  // the rest was forgotten
  for (const OutputCursor& cursor : back) journal_->Detach(&cursor);
  journal_->Detach(&other);
}

TEST_F(JournalTest, WhoHasReadAllIsCalledBackOnce) {
  Put("abc");
  OutputCursor cursor{0, {}, 1}, not_back;
  EXPECT_EQ(Read(cursor).outcome, Outcome::kBytes);
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  EXPECT_EQ(reader_->told, 0);
  journal_->CallBack(true);
  EXPECT_EQ(reader_->told, 1);
  EXPECT_EQ(Read(cursor).outcome, Outcome::kResume);
  EXPECT_EQ(Read(not_back).outcome, Outcome::kBytes);
  EXPECT_EQ(Read(not_back).outcome, Outcome::kWait);
  OutputCursor again{3, {}, 1, 3};
  EXPECT_EQ(Read(again).outcome, Outcome::kWait);  // there is nothing that it could say
  journal_->CallBack(false);
  EXPECT_EQ(Read(cursor).outcome, Outcome::kWait);
  journal_->CallBack(true);
  journal_->Close();
  EXPECT_EQ(Read(cursor).outcome, Outcome::kEnd);
}

TEST_F(JournalTest, WhoOnlyPassedOverTheOtherStreamIsCalledBackToo) {
  Put("abc", kErr);
  OutputCursor cursor{0, kOut, 1};
  journal_->CallBack(true);
  const Journal::Chunk chunk = Read(cursor);
  EXPECT_EQ(chunk.outcome, Outcome::kResume);
  EXPECT_EQ(chunk.offset, 3U);
}

TEST_F(JournalTest, ProgressIsToldByWhoeverReads) {
  int told = 0;
  journal_->OnProgress([&] { ++told; });
  OutputCursor cursor;
  (void)Read(cursor);
  Put("a");
  EXPECT_EQ(told, 1);
  (void)Read(cursor);
  EXPECT_EQ(told, 2);
  journal_->OnProgress(nullptr);
  (void)Read(cursor);
  EXPECT_EQ(told, 2);
}

// One byte of each stream in turn is the most that a job can make us keep for what it writes.
TEST_F(JournalTest, TurnsBetweenTheStreamsAreAccountedFor) {
  constexpr int kTurns = 20'000;
  Alternate(kTurns);
  EXPECT_GE(journal_->held(), kEmptyHeld + kTurns * (1 + kMarkHeld));
  EXPECT_LE(memory_.Memory() + kTurns * kMarkBytes, journal_->held());
  const uint64_t half = journal_->held() / 2;
  EXPECT_GE(journal_->DropTo(half), half);
  const auto [first, end] = journal_->range();
  EXPECT_EQ(end, static_cast<uint64_t>(kTurns));
  std::string expected = "<" + std::to_string(first) + ">";
  for (uint64_t i = first; i < end; ++i) expected += i % 2 == 0 ? " o'o'" : " e'e'";
  EXPECT_EQ(All(), expected);
  EXPECT_LE(memory_.Memory() + (end - first) * kMarkBytes, journal_->held());
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(All(), expected);
  EXPECT_LE(memory_.Memory() + (end - first) * kMarkBytes, journal_->held());
  Put("xyz");
  EXPECT_EQ(All(end), "o'xyz'");
}

// Killed between the holes of two pages: those in front are zeros, those behind still marks.
TEST_F(JournalTest, MarksThatWerePunchedInPart) {
  Alternate(3000);
  memory_.Poke(kFirstWord, 2500);
  const auto second = static_cast<off_t>((memory_.marks_at + kPage - 1) / kPage * kPage);
  for (const off_t at : {second, second + static_cast<off_t>(kPage)}) {
    ASSERT_EQ(fallocate(memory_.index.Get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, kPage), 0);
    Reopen();
    EXPECT_EQ(journal_->damage(), "");
    ExpectRange(*journal_, 2500, 3000);
    EXPECT_EQ(All(2998), "o'o' e'e'");
  }
}

TEST_F(JournalTest, TheLeastThatCanBeKeptIsNotExceededByWhatIsNotYetPunched) {
  constexpr uint64_t kLeast = 64 * 1024;
  for (int i = 0; i < 100; ++i) {
    Put(std::string(5000, 'x'));
    if (journal_->held() > kLeast) journal_->DropTo(kLeast - kLeast / 16);
    EXPECT_LE(memory_.Memory(), kLeast + 2 * kPage);
  }
}

// --- A new front end. ---

TEST_F(JournalTest, AMarkWithoutBytesIsNotYetTrue) {
  Put("abc");
  EXPECT_EQ(journal_->Take(kErr, pipe_.read.Get(), 1), -1);  // as if killed between the mark and the bytes
  EXPECT_EQ(memory_.IndexBytes(), memory_.marks_at + 2 * kMarkBytes);
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(All(), "o'abc'");
  Put("def");
  EXPECT_EQ(memory_.IndexBytes(), memory_.marks_at + 2 * kMarkBytes);
  Put("ghi", kErr);
  EXPECT_EQ(All(), "o'abcdef' e'ghi'");
  Reopen();
  EXPECT_EQ(All(), "o'abcdef' e'ghi'");
}

// Killed between the bytes and anything else: the file's length is all that tells of them.
TEST_F(JournalTest, BytesAfterTheLastMarkAreItsStreams) {
  Put("abc", kErr);
  ASSERT_EQ(pwrite(memory_.data.Get(), "def", 3, 3), 3);
  Reopen();
  EXPECT_EQ(All(), "e'abcdef'");
}

TEST_F(JournalTest, TheFirstMarkWithoutBytes) {
  EXPECT_EQ(journal_->Take(kErr, pipe_.read.Get(), 1), -1);
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(All(), "");
  Put("o");
  EXPECT_EQ(All(), "o'o'");
}

// Killed when the new beginning was written and nothing was punched.
TEST_F(JournalTest, ABeginningWithoutItsHoles) {
  Put("abc");
  Put("def", kErr);
  memory_.Poke(kFirstWord, 4);
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(All(), "<4> e'ef'");
  memory_.Poke(kFirstWord, 6);
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(All(), "<6>");
}

TEST_F(JournalTest, ManyMarksComeBack) {
  Alternate(3000);
  const std::string all = All();
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(All(), all);
  journal_->DropTo(journal_->held() - 10);
  const std::string rest = All();
  Reopen();
  EXPECT_EQ(All(), rest);
}

TEST_F(JournalTest, StopStateAtItsExtremes) {
  const StopState states[] = {{},
                              {StopKind::kAsked, 15, false, 5000, 1'700'000'000'000'000},
                              {StopKind::kTimeout, 0, true, 0, 0},
                              {StopKind::kLease, 64, false, UINT32_MAX, UINT64_MAX},
                              {StopKind::kOutputLimit, UINT8_MAX, true, UINT32_MAX, 1}};
  for (const StopState& state : states) {
    journal_->SetStop(state);
    Reopen();
    const StopState got = journal_->stop();
    EXPECT_EQ(got.kind, state.kind);
    EXPECT_EQ(got.signal, state.signal);
    EXPECT_EQ(got.killed, state.killed);
    EXPECT_EQ(got.grace_ms, state.grace_ms);
    EXPECT_EQ(got.since_us, state.since_us);
  }
  memory_.Poke(kStopWord, 0xff);  // of a later version
  EXPECT_EQ(journal_->stop().kind, StopKind::kOutputLimit);
}

void ExpectSame(const Exited& a, const Exited& b) { EXPECT_EQ(Encode(a), Encode(b)); }

TEST_F(JournalTest, TheEndAtItsExtremes) {
  Exited largest{{std::string(kMaxUserName, 'a'), UINT64_MAX}, EndCause::kUnknown, 255, 255, OomLevel::kUser};
  largest.oom_kills = largest.leftovers = UINT32_MAX;
  largest.ended_us = UINT64_MAX;
  largest.counters.fill(UINT64_MAX);
  Exited signalled{{"bob", 7}, EndCause::kSignalled, 9};
  for (const Exited& exited : {Exited{{"a", 1}}, signalled, largest}) {
    journal_->SetEnd(exited);
    Reopen();
    ASSERT_TRUE(journal_->end());
    ExpectSame(*journal_->end(), exited);
  }
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(journal_->start().argv.at(0), "echo");
}

TEST_F(JournalTest, ADamagedEndIsNone) {
  journal_->SetEnd(Exited{{"alice", 1}});
  memory_.Poke(kEndAt / 8, UINT64_MAX);  // its length
  EXPECT_FALSE(journal_->end());
  memory_.Poke(kEndAt / 8, 0);
  EXPECT_FALSE(journal_->end());
  memory_.PokeBytes(kEndAt, std::string_view("\1\0\0\0\377", 5));
  EXPECT_FALSE(journal_->end());
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
}

TEST_F(JournalTest, ForgettingGivesUpTheOutput) {
  Put(std::string(100'000, 'x'));
  journal_->SetEnd(Exited{{"alice", 1}});
  journal_->Forget();
  EXPECT_LE(memory_.DataMemory(), kPage);
  EXPECT_LE(journal_->held(), kEmptyHeld + kMarkHeld);
  Reopen();
  EXPECT_TRUE(journal_->forgotten());
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_TRUE(journal_->end());
  ExpectRange(*journal_, 100'000, 100'000);
}

TEST_F(JournalTest, TheStartComesBackWhole) {
  Start start{{"bob", UINT64_MAX}, {}, {}, {"A=b", "C="}, "/tmp", std::string("\0note\xff", 6), 1};
  start.limits.fill(UINT64_MAX);
  start.argv.assign(kMaxArguments, std::string(kMaxArgumentBytes / kMaxArguments, 'x'));
  start.note.resize(kMaxNoteBytes, '\xff');
  const JournalMemory memory(start);
  const auto journal = memory.Open();
  EXPECT_EQ(journal->damage(), "");
  EXPECT_EQ(Encode(journal->start()), Encode(start));
  PutInto(*journal, "abc");
  EXPECT_EQ(ReadAll(*journal), "o'abc'");
  EXPECT_EQ(ReadAll(*memory.Open()), "o'abc'");
}

// --- Damage. ---

class DamagedJournalTest : public JournalTest {
 protected:
  DamagedJournalTest() {
    Put("abc");
    Put("def", kErr);
    Put("ghi");
  }
  // It is said, and nothing of what was there is shown; then it goes on where it was.
  void ExpectDamage(const std::string& words) {
    Reopen();
    EXPECT_NE(journal_->damage().find(words), std::string::npos) << journal_->damage();
    ExpectRange(*journal_, 9, 9);
    EXPECT_EQ(journal_->TailBytes({}, 3), 9U);
    EXPECT_EQ(All(), "<9>");
    Put("jkl", kErr);
    Put("mno");
    EXPECT_EQ(All(), "<9> e'jkl' o'mno'");
    Reopen();  // the damage is done: what came after it is whole
    EXPECT_EQ(journal_->damage(), "");
    EXPECT_EQ(All(), "<9> e'jkl' o'mno'");
    EXPECT_LE(journal_->held(), kEmptyHeld + 6 + 4 * kMarkHeld);
  }
};

TEST_F(DamagedJournalTest, AnotherVersion) {
  memory_.Poke(kMagicWord, memory_.Peek(kMagicWord) + 1);
  ExpectDamage("another version");
  EXPECT_EQ(journal_->start().argv.at(0), "echo");
}

TEST_F(DamagedJournalTest, NoVersion) {
  memory_.Poke(kMagicWord, 0);
  ExpectDamage("another version");
}

TEST_F(DamagedJournalTest, ABeginningAtTheEndIsNoDamageButOnePastItIs) {
  memory_.Poke(kFirstWord, 9);
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  memory_.Poke(kFirstWord, 10);
  ExpectDamage("begins after its end");
}

TEST_F(DamagedJournalTest, NoStart) {
  memory_.PokeBytes(kJournalStart, std::string(4, '\0'));
  ExpectDamage("the request that made the job");
  EXPECT_EQ(journal_->start().argv, std::vector<std::string>{"?"});
}

TEST_F(DamagedJournalTest, AStartThatIsTooLong) {
  memory_.PokeBytes(kJournalStart, std::string(4, '\xff'));
  ExpectDamage("the request that made the job");
}

TEST_F(DamagedJournalTest, AStartThatIsAnotherMessage) {
  ByteIo writer;
  writer.Bytes(Encode(Kill{{"alice", 1}}), 0);
  memory_.PokeBytes(kJournalStart, writer.Take());
  ExpectDamage("the request that made the job");
}

TEST_F(DamagedJournalTest, AnIndexThatWasCutOff) {
  ASSERT_EQ(ftruncate(memory_.index.Get(), kJournalStart + 3), 0);
  ExpectDamage("the request that made the job");
}

TEST_F(DamagedJournalTest, AnIndexOfNothing) {
  ASSERT_EQ(ftruncate(memory_.index.Get(), 0), 0);
  ExpectDamage("another version");
}

TEST_F(DamagedJournalTest, MarksOutOfOrder) {
  memory_.PokeMark(2, 2, kOut, 1);
  ExpectDamage("not in order");
}

TEST_F(DamagedJournalTest, AMarkAtTheEndIsNoDamageButOnePastItIs) {
  memory_.PokeMark(3, 9, kErr, 1);
  Reopen();
  EXPECT_EQ(journal_->damage(), "");
  EXPECT_EQ(All(), "o'abc' e'def' o'ghi'");
  memory_.PokeMark(3, 10, kErr, 1);
  ExpectDamage("not in order");
}

TEST_F(DamagedJournalTest, NoMarkForTheFirstByte) {
  memory_.PokeMark(0, 1, kOut, 1);
  ExpectDamage("whose its bytes are");
}

TEST_F(DamagedJournalTest, NoMarks) {
  ASSERT_EQ(ftruncate(memory_.index.Get(), static_cast<off_t>(memory_.marks_at)), 0);
  ExpectDamage("whose its bytes are");
}

TEST_F(DamagedJournalTest, RandomBytesInTheIndexNeverBreakIt) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 500; ++round) {
    JournalMemory memory;
    auto journal = memory.Open();
    PutInto(*journal, "abc");
    PutInto(*journal, "def", kErr);
    const uint64_t size = memory.IndexBytes();
    for (uint64_t hits = random() % 8 + 1; hits > 0; --hits) {
      const uint64_t bits = random();
      memory.PokeBytes(random() % size, {reinterpret_cast<const char*>(&bits), random() % sizeof(bits) + 1});
    }
    journal = memory.Open();
    ASSERT_EQ(journal->range().end, 6U);
    (void)ReadAll(*journal);
    (void)journal->TailLines(kErr, 3);
    (void)journal->stop();
    (void)journal->end();
    PutInto(*journal, "ghi");
    const std::string all = ReadAll(*journal, {6, {}});
    ASSERT_TRUE(all == "o'ghi'" || journal->damage().empty()) << all;
  }
}

// --- At any instant. ---

// Bytes whose values tell the stream and, but for whole turns, the position in it.
char Numbered(OutputStream stream, uint64_t position) {
  return static_cast<char>(stream == kOut ? position % 101 : 128 + position % 103);
}

class KilledFrontEnd {
 public:
  static constexpr OutputStream kStreams[] = {kOut, kErr};
  KilledFrontEnd() {
    for (const TestPipe& pipe : pipes_) EXPECT_EQ(fcntl(pipe.write.Get(), F_SETFL, O_NONBLOCK), 0);
  }

  // Lets a process take, drop and write down as fast as it can, until the kernel kills it.
  void Round(uint64_t seed) {
    for (const OutputStream stream : kStreams) Fill(stream);
    const pid_t child = fork();
    if (child == 0) Work(seed);
    ASSERT_GT(child, 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    Check();
  }
  [[nodiscard]] uint64_t taken() const { return memory_.Open()->range().end; }

 private:
  void Fill(OutputStream stream) {
    const auto i = static_cast<size_t>(stream);
    for (ssize_t size = 0; size >= 0; written_[i] += static_cast<uint64_t>(size)) {
      std::string bytes;
      for (uint64_t at = 0; at < kPage; ++at) bytes += Numbered(stream, written_[i] + at);
      size = write(pipes_[i].write.Get(), bytes.data(), bytes.size());
      if (size < 0) break;
    }
  }
  [[noreturn]] void Work(uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto journal = memory_.Open();
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGKILL;
    timer_t timer{};
    itimerspec when{};
    when.it_value.tv_nsec = static_cast<long>(random() % 2'000'000) + 1;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &when, nullptr) != 0) _exit(1);
    for (;;) {
      const uint64_t choice = random();
      const size_t stream = choice & 1;
      (void)journal->Take(kStreams[stream], pipes_[stream].read.Get(), (choice >> 8) % 100 + 1);
      if (choice % 16 == 0) (void)journal->DropTo(journal->held() - std::min(journal->held(), (choice >> 32) % 20'000));
      if (choice % 64 == 1) journal->SetStop({StopKind::kAsked, 15, false, 1, 2});
    }
  }
  void Check() {
    const auto journal = memory_.Open();
    ASSERT_EQ(journal->damage(), "");
    uint64_t left = 0;
    for (const TestPipe& pipe : pipes_) {
      int bytes = 0;
      ASSERT_EQ(ioctl(pipe.read.Get(), FIONREAD, &bytes), 0);
      left += static_cast<uint64_t>(bytes);
    }
    ASSERT_EQ(journal->range().end + left, written_[0] + written_[1]);
    OutputCursor cursor;
    std::array<std::optional<char>, 2> last;
    for (;;) {
      const Journal::Chunk chunk = journal->Read(cursor, nullptr);
      if (chunk.outcome != Outcome::kBytes) break;
      ASSERT_TRUE(chunk.bytes != nullptr || chunk.dropped != 0);
      if (chunk.bytes == nullptr) continue;
      std::optional<char>& before = last[static_cast<size_t>(chunk.stream)];
      for (const char byte : *chunk.bytes) {
        ASSERT_EQ(chunk.stream == kErr, (byte & 0x80) != 0) << chunk.offset;
        ASSERT_EQ(byte, before ? Next(chunk.stream, *before) : byte) << chunk.offset;
        before = byte;
      }
    }
    ASSERT_EQ(cursor.offset, journal->range().end);
  }
  static char Next(OutputStream stream, char byte) {
    return Numbered(stream, static_cast<uint64_t>(stream == kOut ? byte : (byte & 0x7f)) + 1);
  }

  JournalMemory memory_;
  std::array<TestPipe, 2> pipes_;
  std::array<uint64_t, 2> written_{};
};

TEST(JournalOfAKilledFrontEnd, IsWholeAtAnyInstant) {
  KilledFrontEnd front_end;
  for (uint64_t seed = 0; seed < 300 && !testing::Test::HasFatalFailure(); ++seed) front_end.Round(seed);
  EXPECT_GT(front_end.taken(), 0U);
}

// --- Readers on other threads. ---

TEST_F(JournalTest, ReadersOnOtherThreadsSeeEveryByteOrItsGap) {
  const auto follow = [journal = journal_](std::optional<OutputStream> only, uint64_t& seen) {
    OutputCursor cursor{0, only};
    const auto reader = std::make_shared<CountingReader>();
    journal->Attach(&cursor);
    for (Journal::Chunk chunk; chunk.outcome != Outcome::kEnd;) {
      const uint64_t before = cursor.offset;
      const int told = reader->told;
      chunk = journal->Read(cursor, reader);
      if (chunk.outcome == Outcome::kWait) {
        while (reader->told == told) std::this_thread::yield();
      }
      if (chunk.outcome == Outcome::kBytes && !only) {
        EXPECT_EQ(cursor.offset, before + chunk.dropped + (chunk.bytes != nullptr ? chunk.bytes->size() : 0));
      }
    }
    seen = cursor.offset;
    journal->Detach(&cursor);
  };
  uint64_t ends[3] = {};
  std::thread both(follow, std::nullopt, std::ref(ends[0])), out(follow, kOut, std::ref(ends[1])),
      err(follow, kErr, std::ref(ends[2]));
  for (int i = 0; i < 2000; ++i) {
    Put(std::string(1000, 'x'), i % 3 == 0 ? kErr : kOut);
    if (i % 7 == 0) journal_->DropTo(kEmptyHeld + 100'000);
    if (i % 11 == 0) journal_->DropReadTo(kEmptyHeld + 10'000, 1000);
  }
  journal_->Close();
  for (std::thread* thread : {&both, &out, &err}) thread->join();
  for (const uint64_t end : ends) EXPECT_EQ(end, 2'000'000U);
  EXPECT_EQ(journal_->followers(), 0U);
}

TEST(JournalHold, NobodyElseOpensItUntilItsFrontEndEnds) {
  const JournalMemory memory;
  EXPECT_EQ(Journal::Holder(memory.index.Get()), std::nullopt);
  {
    const OtherFrontEnd other(memory);
    EXPECT_EQ(Journal::Holder(memory.index.Get()), other.pid());
    EXPECT_FALSE(Journal::Open(JournalMemory::Dup(memory.data), JournalMemory::Dup(memory.index)));
  }
  EXPECT_EQ(Journal::Holder(memory.index.Get()), std::nullopt);
  EXPECT_TRUE(Journal::Open(JournalMemory::Dup(memory.data), JournalMemory::Dup(memory.index)));
}

}  // namespace
}  // namespace jobworker
