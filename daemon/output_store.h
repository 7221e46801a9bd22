// The output of one job: filled by the event loop, read by any number of followers, each at its own offset.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace jobworker {

enum class OutputStream : uint8_t { kStdout, kStderr };

// Told once, on the loop's thread, that there is something to read, after a Read that said kWait.
class OutputReader {
 public:
  virtual ~OutputReader() = default;
  virtual void OutputReady() = 0;
};

// An offset counts the job's output bytes of both streams together, in the order in which they were read from the job.
// It never shifts: what retention drops leaves a gap that Read reports.
class OutputStore {
 public:
  enum class Outcome {
    kBytes,      // a segment, or a gap, or a gap and a segment
    kWait,       // nothing yet; the reader will be told
    kEnd,        // all was read, and no more will come
    kAbandoned,  // all was read; more may exist, but this front end will not have it
  };
  struct Segment {
    Outcome outcome = Outcome::kWait;
    OutputStream stream = OutputStream::kStdout;
    std::string bytes;     // at most kMaxSegment
    uint64_t dropped = 0;  // bytes between the offset asked for and these
  };
  static constexpr size_t kMaxSegment = 64 * 1024;

  virtual ~OutputStore() = default;

  // Takes up to kMaxSegment bytes that are in `pipe`. Returns as read(2) does. On the loop's thread, as all that follow
  // but Read and Leave, which any thread may call.
  virtual ssize_t Take(OutputStream stream, int pipe) = 0;
  // Nothing comes any more. The first of the two counts.
  virtual void Close() = 0;
  virtual void Abandon() = 0;

  // Reads at `offset` and moves it on.
  virtual Segment Read(uint64_t& offset, const std::shared_ptr<OutputReader>& reader) = 0;
  // Takes back a kWait, if there is one.
  virtual void Leave(const std::shared_ptr<OutputReader>& reader) = 0;
};

class MemoryOutputStore;

// Bounds the memory that the output of all jobs takes. When it is full the biggest store gives up its oldest bytes,
// so that a flood costs the job that made it, not the others.
class OutputMemory {
 public:
  // In bytes, with what the bookkeeping takes.
  OutputMemory(size_t per_job, size_t in_all) : per_job_(per_job), in_all_(in_all), buffer_(OutputStore::kMaxSegment) {}

 private:
  friend class MemoryOutputStore;
  void Enter(MemoryOutputStore* store);
  void Exit(MemoryOutputStore* store);
  void Shrink();

  const size_t per_job_, in_all_;
  std::atomic<size_t> used_ = 0;
  std::vector<char> buffer_;  // of the loop's thread
  std::mutex mutex_;          // guards stores_; taken before any store's own
  std::set<MemoryOutputStore*> stores_;
};

// Keeps the newest bytes in memory.
class MemoryOutputStore : public OutputStore {
 public:
  explicit MemoryOutputStore(std::shared_ptr<OutputMemory> memory);
  ~MemoryOutputStore() override;
  ssize_t Take(OutputStream stream, int pipe) override;
  void Close() override { Finish(Outcome::kEnd); }
  void Abandon() override { Finish(Outcome::kAbandoned); }
  Segment Read(uint64_t& offset, const std::shared_ptr<OutputReader>& reader) override;
  void Leave(const std::shared_ptr<OutputReader>& reader) override;

 private:
  friend class OutputMemory;
  struct Block {
    uint64_t offset;
    OutputStream stream;
    std::string bytes;
  };
  using Readers = std::set<std::shared_ptr<OutputReader>>;
  static size_t Cost(const Block& block) { return sizeof(Block) + block.bytes.capacity(); }
  void Append(OutputStream stream, std::string_view bytes);
  void DropUntil(size_t held);
  void Account(size_t held);
  void Finish(Outcome outcome);

  const std::shared_ptr<OutputMemory> memory_;
  std::atomic<size_t> held_ = 0;  // the cost of blocks_; written under mutex_
  std::mutex mutex_;              // guards the rest
  std::deque<Block> blocks_;      // adjoining, oldest first
  uint64_t end_ = 0;              // the offset after the last byte
  Outcome at_end_ = Outcome::kWait;
  Readers waiting_;
};

}  // namespace jobworker
