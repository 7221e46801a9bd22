// The output of one job: appended by the event loop, read by any number of followers at their own positions.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace jobworker {

enum class OutputStream : uint8_t { kStdout, kStderr };

// Told once that something new can be read, after a Read that found nothing.
class OutputReader {
 public:
  virtual ~OutputReader() = default;
  virtual void OutputReady() = 0;
};

// A position counts the job's output bytes of both streams together, in the order in which they were read from the job.
// It never shifts: what retention drops leaves a gap that Read reports.
class OutputStore {
 public:
  enum class Outcome { kBytes, kEnd, kWait };
  struct Piece {
    Outcome outcome = Outcome::kWait;
    OutputStream stream = OutputStream::kStdout;
    std::string bytes;     // at most kMaxPiece
    uint64_t dropped = 0;  // bytes lost between the position asked for and the first of these
  };
  static constexpr size_t kMaxPiece = 64 * 1024;

  virtual ~OutputStore() = default;
  virtual void Append(OutputStream stream, std::string_view bytes) = 0;
  // Nothing will be appended any more.
  virtual void Close() = 0;
  // Reads at `position` and moves it. kWait: nothing there yet; `reader` is told once when there is.
  virtual Piece Read(uint64_t& position, const std::shared_ptr<OutputReader>& reader) = 0;
};

// Bounds the bytes that all stores of the process hold together. Whoever writes beyond it drops its own oldest bytes.
struct MemoryBudget {
  const uint64_t per_job;
  const uint64_t in_all;
  std::mutex mutex{};
  uint64_t used = 0;
};

// Keeps the newest bytes in memory.
class MemoryOutputStore : public OutputStore {
 public:
  explicit MemoryOutputStore(std::shared_ptr<MemoryBudget> budget) : budget_(std::move(budget)) {}
  ~MemoryOutputStore() override;
  void Append(OutputStream stream, std::string_view bytes) override;
  void Close() override;
  Piece Read(uint64_t& position, const std::shared_ptr<OutputReader>& reader) override;

 private:
  struct Segment {
    uint64_t position;
    OutputStream stream;
    std::string bytes;
  };
  void Keep(OutputStream stream, std::string_view bytes);
  void DropOldest();
  void Tell();

  const std::shared_ptr<MemoryBudget> budget_;
  std::mutex mutex_;  // guards the rest
  std::deque<Segment> segments_;
  uint64_t end_ = 0;   // position after the last byte
  uint64_t held_ = 0;  // bytes in segments_
  bool closed_ = false;
  std::vector<std::shared_ptr<OutputReader>> waiting_;
};

}  // namespace jobworker
