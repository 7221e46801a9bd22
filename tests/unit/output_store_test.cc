#include "daemon/output_store.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/unit/fake_broker.h"

namespace jobworker {
namespace {

using Outcome = OutputStore::Outcome;

class CountingReader : public OutputReader {
 public:
  void OutputReady() override { ++told; }
  std::atomic<int> told = 0;
};

class OutputStoreTest : public testing::Test {
 protected:
  explicit OutputStoreTest(size_t per_job = 1 << 20, size_t in_all = 1 << 22)
      : memory_(std::make_shared<OutputMemory>(per_job, in_all)) {}

  void Put(OutputStore& store, std::string_view bytes, OutputStream stream = OutputStream::kStdout) {
    pipe_.Put(bytes);
    ASSERT_EQ(store.Take(stream, pipe_.read.Get()), static_cast<ssize_t>(bytes.size()));
  }
  // All that there is from `offset` on, with each gap as <N>.
  std::string ReadAll(OutputStore& store, uint64_t offset = 0) {
    std::string all;
    for (;;) {
      OutputStore::Segment segment = store.Read(offset, reader_);
      if (segment.outcome != Outcome::kBytes) break;
      if (segment.dropped != 0) all += "<" + std::to_string(segment.dropped) + ">";
      all += segment.bytes;
    }
    store.Leave(reader_);
    return all;
  }

  std::shared_ptr<OutputMemory> memory_;
  TestPipe pipe_;
  std::shared_ptr<CountingReader> reader_ = std::make_shared<CountingReader>();
};

TEST_F(OutputStoreTest, KeepsTheOrderAndTellsTheStreamsApart) {
  MemoryOutputStore store(memory_);
  Put(store, "ab");
  Put(store, "c");
  Put(store, "error", OutputStream::kStderr);
  Put(store, std::string("\0\xff", 2));
  store.Close();
  uint64_t offset = 1;
  auto segment = store.Read(offset, reader_);
  EXPECT_EQ(segment.bytes, "bc");
  EXPECT_EQ(segment.stream, OutputStream::kStdout);
  segment = store.Read(offset, reader_);
  EXPECT_EQ(segment.bytes, "error");
  EXPECT_EQ(segment.stream, OutputStream::kStderr);
  EXPECT_EQ(store.Read(offset, reader_).bytes, std::string("\0\xff", 2));
  EXPECT_EQ(offset, 10U);
  EXPECT_EQ(store.Read(offset, reader_).outcome, Outcome::kEnd);
}

TEST_F(OutputStoreTest, TellsAWaitingReaderOnce) {
  MemoryOutputStore store(memory_);
  uint64_t offset = 0;
  EXPECT_EQ(store.Read(offset, reader_).outcome, Outcome::kWait);
  EXPECT_EQ(store.Read(offset, reader_).outcome, Outcome::kWait);
  Put(store, "a");
  Put(store, "b");
  EXPECT_EQ(reader_->told, 1);
  EXPECT_EQ(store.Read(offset, reader_).bytes, "ab");
  EXPECT_EQ(store.Read(offset, reader_).outcome, Outcome::kWait);
  store.Close();
  EXPECT_EQ(reader_->told, 2);
}

TEST_F(OutputStoreTest, ForgetsAReaderThatLeaves) {
  MemoryOutputStore store(memory_);
  uint64_t offset = 0;
  EXPECT_EQ(store.Read(offset, reader_).outcome, Outcome::kWait);
  store.Leave(reader_);
  EXPECT_EQ(reader_.use_count(), 1);
  Put(store, "a");
  EXPECT_EQ(reader_->told, 0);
}

TEST_F(OutputStoreTest, AnAbandonedStoreNeverClaimsToHaveEnded) {
  MemoryOutputStore store(memory_);
  Put(store, "a");
  store.Abandon();
  store.Close();
  uint64_t offset = 0;
  EXPECT_EQ(store.Read(offset, reader_).bytes, "a");
  EXPECT_EQ(store.Read(offset, reader_).outcome, Outcome::kAbandoned);
}

class SmallOutputStoreTest : public OutputStoreTest {
 protected:
  SmallOutputStoreTest() : OutputStoreTest(256 << 10, 512 << 10) {}
  void Flood(OutputStore& store, size_t kilobytes) {
    for (size_t i = 0; i < kilobytes / 64; ++i) Put(store, std::string(64 << 10, 'x'));
  }
};

TEST_F(SmallOutputStoreTest, DropsTheOldestAndSaysHowMuch) {
  MemoryOutputStore store(memory_);
  Put(store, "first", OutputStream::kStderr);
  Flood(store, 1024);
  uint64_t offset = 0;
  const auto segment = store.Read(offset, reader_);
  EXPECT_GE(segment.dropped, 5U + (768U << 10));
  EXPECT_LE(segment.dropped, 5U + (832U << 10));
  EXPECT_EQ(offset, segment.dropped + segment.bytes.size());
  const std::string rest = ReadAll(store, offset);
  EXPECT_EQ(rest.find('<'), std::string::npos);
  EXPECT_EQ(offset + rest.size(), 5U + (1024U << 10));
}

// A thousand tiny turns between the streams cost far more memory than they have bytes.
TEST_F(SmallOutputStoreTest, CountsWhatTheBookkeepingTakes) {
  MemoryOutputStore store(memory_);
  for (int i = 0; i < 10'000; ++i) Put(store, "x", i % 2 == 0 ? OutputStream::kStdout : OutputStream::kStderr);
  uint64_t offset = 0;
  EXPECT_GT(store.Read(offset, reader_).dropped, 0U);
}

TEST_F(SmallOutputStoreTest, TheBiggestPaysWhenTheMemoryIsFull) {
  MemoryOutputStore small(memory_);
  Put(small, "small");
  std::deque<MemoryOutputStore> floods;
  for (int i = 0; i < 4; ++i) Flood(floods.emplace_back(memory_), 256);
  EXPECT_EQ(ReadAll(small), "small");
  for (MemoryOutputStore& flood : floods) {
    const std::string all = ReadAll(flood);
    EXPECT_GE(all.size(), 64U << 10);
  }
}

TEST_F(SmallOutputStoreTest, ManyJobsStayUnderTheCeilingEvenIfAllIsDropped) {
  std::deque<MemoryOutputStore> stores;
  for (int i = 0; i < 32; ++i) Flood(stores.emplace_back(memory_), 64);
  size_t kept = 0;
  for (MemoryOutputStore& store : stores) {
    const std::string all = ReadAll(store);
    if (all != "<65536>") kept += all.size();
  }
  EXPECT_LE(kept, 512U << 10);
  EXPECT_GE(kept, 384U << 10);
}

TEST_F(SmallOutputStoreTest, AnEndedStoreGivesItsMemoryBack) {
  for (int i = 0; i < 8; ++i) {
    MemoryOutputStore store(memory_);
    Flood(store, 192);
    EXPECT_EQ(ReadAll(store), std::string(192 << 10, 'x'));
  }
}

TEST_F(SmallOutputStoreTest, ReadersOnOtherThreadsSeeEveryByteOrItsGap) {
  auto store = std::make_shared<MemoryOutputStore>(memory_);
  const auto follow = [store] {
    uint64_t offset = 0;
    const auto reader = std::make_shared<CountingReader>();
    OutputStore::Segment segment;
    while (segment.outcome != Outcome::kEnd) {
      const uint64_t before = offset;
      segment = store->Read(offset, reader);
      if (segment.outcome == Outcome::kWait) std::this_thread::yield();
      EXPECT_EQ(offset, before + segment.dropped + segment.bytes.size());
    }
    EXPECT_EQ(offset, 2048U << 10);
  };
  std::thread first(follow), second(follow);
  Flood(*store, 2048);
  store->Close();
  first.join();
  second.join();
}

}  // namespace
}  // namespace jobworker
