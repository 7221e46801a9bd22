// The output of one job, and what is known of it, in two memfds that the broker keeps too: a front end that dies at any
// instant leaves all of it to the next one. Filled by the event loop, read by any number of followers.
//
// Data: the bytes of both streams, in the order in which they were read from the job; what is at offset N of the job's
// output is at offset N of the file, always. The front is punched away (fallocate(2)) as retention asks for it.
//
// Index: kJournalStart bytes that belong to the front end (see Header in journal.cc); the Start that made the job, as
// the broker wrote it; then, from the next multiple of 16 on, one Mark of 16 bytes after the other: from its offset on
// the bytes are of its stream. A mark is written before the bytes that it tells of, so there is no instant at which a
// byte is without one. Marks that are no longer needed are punched away too, and read as zeros.
#pragma once
#include <sys/types.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

#include "common/broker_protocol.h"
#include "common/unique_fd.h"

namespace jobworker {

enum class OutputStream : uint8_t { kStdout, kStderr };

// Told once, on the loop's thread, that there is something to read, after a Read that said kWait.
class OutputReader {
 public:
  virtual ~OutputReader() = default;
  virtual void OutputReady() = 0;
};

// Where a reader is: the next byte that it wants, of both streams or of one. Belongs to the reader, who alone moves it,
// by Read.
struct OutputCursor {
  uint64_t offset = 0;
  std::optional<OutputStream> only;
  // Of one that comes back: who it is, and from where on it may ask again, for only that proves what has arrived. 0: it
  // does not, and what was read counts as such.
  uint64_t reader = 0;
  uint64_t needed = 0;
  bool follows = true;  // false: one who only has a look, and reads for nobody
};

// Why a job is being ended, kept in its journal so that the next front end carries it out and tells it.
enum class StopKind : uint8_t { kNone, kAsked, kTimeout, kLease, kOutputLimit };
struct StopState {
  StopKind kind = StopKind::kNone;
  uint8_t signal = 0;     // sent first; 0: cgroup.kill at once
  bool killed = false;    // the grace period ran out, and cgroup.kill followed
  uint32_t grace_ms = 0;  // from the signal to cgroup.kill
  uint64_t since_us = 0;  // when it began, UTC
};

// What has become of a job's standard input, in the order of InputState in the API.
enum class InputPhase : uint8_t { kOpen, kClosed, kRefused, kLost };
struct InputProgress {
  uint64_t taken = 0;  // bytes that are in its pipe, or were
  InputPhase phase = InputPhase::kOpen;
  bool operator==(const InputProgress&) const = default;
};

class Journal {
 public:
  using Clock = std::chrono::steady_clock;
  // Fewer and larger messages cost less; small ones, once chunks of all journals together take kChunkMemory, bound what
  // followers that do not go on can hold.
  static constexpr size_t kMaxChunk = 256 * 1024, kSmallChunk = 64 * 1024;
  static constexpr size_t kChunkMemory = 16 * 1024 * 1024;
  static constexpr std::chrono::milliseconds kTryAgain{100};  // after the kernel had no memory, or so
  // So long a reader that has left and may come back is waited for.
  static constexpr std::chrono::milliseconds kComesBackWithin{30'000};
  static constexpr size_t kReadersKept = 16;

  enum class Outcome {
    kBytes,      // some bytes, or a gap, or a gap and bytes
    kWait,       // nothing yet; the reader will be told
    kEnd,        // all was read, and no more will come
    kAbandoned,  // all was read; more may exist, but this front end will not have it
    kResume,     // all was read; the reader, who comes back, is to do so, because somebody waits for room
  };
  struct Chunk {
    Outcome outcome = Outcome::kWait;
    OutputStream stream = OutputStream::kStdout;
    uint64_t offset = 0;   // of the first byte; without bytes, the reader's new position
    uint64_t time_us = 0;  // when they were read from the job, UTC, to a tenth of a second
    uint64_t dropped = 0;  // bytes before `offset` that the reader asked for and retention has removed
    std::shared_ptr<const std::string_view> bytes;  // at most kMaxChunk; shared among readers; null without any
  };

  // Takes the memfds over, empty ones or those that another front end has left, and holds them until this process ends:
  // with two that write, bytes would be lost. `damage` says what could not be read: such a journal begins anew at the
  // offset that it had reached. Fails only when the kernel does, or while another process holds it.
  static tl::expected<std::shared_ptr<Journal>, std::string> Open(
      UniqueFd data, UniqueFd index, std::chrono::milliseconds comes_back_within = kComesBackWithin);
  // Of a job whose memfds this front end could not receive or read: it holds nothing and takes nothing.
  static std::shared_ptr<Journal> Unreadable(std::string why);
  // The other process, if there is one, that holds the journal with this index.
  static std::optional<pid_t> Holder(int index);
  // Open does it. False when another process holds it. To be called again when another descriptor of the same index was
  // closed by this process, for then the kernel lets go of it (fcntl(2), record locks).
  bool Hold() const;
  Journal(const Journal&) = delete;
  [[nodiscard]] const std::string& damage() const { return damage_; }
  // False for an Unreadable one, whose output is elsewhere.
  [[nodiscard]] bool readable() const { return data_.IsOpen(); }
  // The request that made the job; argv is empty when the journal was damaged.
  [[nodiscard]] const Start& start() const { return start_; }

  // --- On the loop's thread. ---

  // Moves up to `most` bytes from the pipe. Returns as splice(2) does: 0 at the end of the pipe, -1 with errno.
  ssize_t Take(OutputStream stream, int pipe, size_t most);
  // Removes the oldest bytes until `held` bytes or less are held. Returns how many bytes of memory that freed.
  uint64_t DropTo(uint64_t held);
  // The same, but nothing that an attached cursor, or one that may come back, still needs: what is less than `margin`
  // bytes behind it, where it does not say.
  uint64_t DropUnneededTo(uint64_t held, uint64_t margin);
  // The same, and nothing at all without an attached cursor that follows.
  uint64_t DropReadTo(uint64_t held, uint64_t margin);
  // Whether those who come back are to do so (kResume) as soon as they have read all.
  void CallBack(bool wanted);
  // When more may be dropped though nobody reads: the next of those who have left and may come back is waited for no
  // longer, or what the kernel refused is tried again. max(): never.
  Clock::time_point LookAgainAt();
  // Memory of data, marks and what a journal costs at least.
  [[nodiscard]] uint64_t held() const { return held_; }
  // Nothing comes any more. The first of the two counts.
  void Close() { Finish(Outcome::kEnd); }
  void Abandon() { Finish(Outcome::kAbandoned); }

  [[nodiscard]] StopState stop() const;
  void SetStop(const StopState& stop);
  // For the next front end, which cannot go on with the input, but can tell of it.
  [[nodiscard]] InputProgress input() const;
  void SetInput(const InputProgress& input);
  // The end, once it is known.
  [[nodiscard]] std::optional<Exited> end() const;
  void SetEnd(const Exited& exited);
  // Gives up all output, and is as forgotten to whoever takes it over later.
  void Forget();
  [[nodiscard]] bool forgotten() const;

  // --- From any thread. ---

  struct Range {
    uint64_t first = 0, end = 0;  // what is held: [first, end)
  };
  [[nodiscard]] Range range() const;
  // Moves the cursor. With kWait the reader is kept, and told once.
  Chunk Read(OutputCursor& cursor, const std::shared_ptr<OutputReader>& reader);
  // Takes back a kWait, if there is one.
  void Leave(const std::shared_ptr<OutputReader>& reader);
  // Where the last `count` bytes or lines of the cursor's streams begin.
  [[nodiscard]] uint64_t TailBytes(std::optional<OutputStream> only, uint64_t count) const;
  [[nodiscard]] uint64_t TailLines(std::optional<OutputStream> only, uint64_t count) const;
  // DropReadTo heeds attached cursors, and for a while those that were detached and may come back; what is known of
  // some of them (kReadersKept) outlives this front end. One of the same reader takes the place of the one before.
  // `progress`, if set, is called by whichever thread reads or lets go, after it has; one that is replaced may be in a
  // call that has begun.
  void Attach(const OutputCursor* cursor);
  void Detach(const OutputCursor* cursor);
  [[nodiscard]] size_t followers() const;
  // Bytes from the attached cursor that is farthest behind to the end.
  [[nodiscard]] uint64_t lag() const;
  void OnProgress(std::function<void()> progress);

 private:
  struct Mark {
    uint64_t offset_and_stream = 0;
    uint64_t time_us = 0;  // never 0 in a mark that counts
    [[nodiscard]] uint64_t offset() const { return offset_and_stream >> 1; }
    [[nodiscard]] OutputStream stream() const { return static_cast<OutputStream>(offset_and_stream & 1); }
  };
  // One that has left and may come back.
  struct Absent {
    uint64_t reader = 0, needed = 0;
    Clock::time_point until;
  };
  struct Segment {
    uint64_t begin = 0, end = 0;
    OutputStream stream = OutputStream::kStdout;
    uint64_t time_us = 0;
  };

  Journal(UniqueFd data, UniqueFd index, std::chrono::milliseconds comes_back_within)
      : data_(std::move(data)), index_(std::move(index)), comes_back_within_(comes_back_within) {}
  tl::expected<void, std::string> Load();
  std::string LoadStart(uint64_t index_size, int& error);
  std::string LoadMarks(uint64_t index_size, int& error);
  bool BeginAnew();
  void DropMarks();
  bool Put(OutputStream stream);
  bool WriteMark(size_t number, const Mark& mark);
  void Drop(uint64_t first);
  void Account();
  [[nodiscard]] std::optional<Segment> SegmentAt(uint64_t offset) const;
  static uint64_t ChunkEnd(const Segment& segment, uint64_t begin);
  std::shared_ptr<const std::string_view> Share(uint64_t begin, uint64_t end);
  Chunk ReadLocked(OutputCursor& cursor);
  void WalkBack(std::optional<OutputStream> only, const std::function<bool(uint64_t begin, uint64_t end)>& more) const;
  void Finish(Outcome outcome);
  // With the lock held, as the next ones.
  uint64_t DropLocked(uint64_t held, uint64_t margin);
  void Expect(const OutputCursor& left);
  void CeaseToExpect();
  void WriteReaders();
  void LoadReaders(int& error);

  const UniqueFd data_, index_;
  const std::chrono::milliseconds comes_back_within_;
  std::string damage_;
  Start start_;
  uint64_t marks_at_ = 0;                     // where in the index the marks begin
  uint64_t marks_dropped_ = 0;                // how many are no longer in marks_
  uint64_t punched_ = 0, index_punched_ = 0;  // up to where the files are holes
  std::atomic<uint64_t> held_ = 0;

  mutable std::mutex mutex_;  // guards the rest
  std::deque<Mark> marks_;    // the first one tells of first_
  uint64_t first_ = 0, end_ = 0;
  Outcome at_end_ = Outcome::kWait;
  std::vector<std::shared_ptr<OutputReader>> waiting_;
  std::vector<const OutputCursor*> cursors_;
  std::vector<Absent> absent_;
  bool called_back_ = false, drop_failed_ = false;
  std::function<void()> progress_;
  // What was read last, for whoever comes to the same place while somebody still has it.
  uint64_t shared_begin_ = 0;
  std::weak_ptr<const std::string_view> shared_;
};

}  // namespace jobworker
