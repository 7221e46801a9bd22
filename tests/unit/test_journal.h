// A job's journal as the broker makes it, and keeps when the front end is gone.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "daemon/journal.h"
#include "tests/unit/fake_broker.h"

namespace jobworker {

// Words of the index that belong to the front end; the encoded Exited is at kEndAt.
enum IndexWord : uint64_t { kMagicWord, kFirstWord, kStopWord, kSinceWord, kForgottenWord };
constexpr uint64_t kEndAt = 64;
constexpr uint64_t kMarkBytes = 16;
// What an empty one is said to hold, and each turn from one stream to the other.
constexpr uint64_t kEmptyHeld = 12 * 1024, kMarkHeld = 32;

struct JournalMemory {
  JournalMemory() : JournalMemory(Start{{"alice", 1}, {}, {"echo", "hi"}, {"A=b"}}) {}
  explicit JournalMemory(const Start& start) {
    ByteIo writer;
    writer.Bytes(Encode(start), 0);
    const std::string text = writer.Take();
    marks_at = (kJournalStart + text.size() + kMarkBytes - 1) / kMarkBytes * kMarkBytes;
    PokeBytes(kJournalStart, text);
  }

  static UniqueFd Dup(const UniqueFd& fd) { return UniqueFd(fcntl(fd.Get(), F_DUPFD_CLOEXEC, 0)); }
  // As a new front end does it; the one before may be alive or not.
  [[nodiscard]] std::shared_ptr<Journal> Open() const {
    auto journal = Journal::Open(Dup(data), Dup(index));
    if (!journal) ADD_FAILURE() << journal.error();
    return journal ? *journal : Journal::Unreadable("");
  }

  void PokeBytes(uint64_t at, std::string_view bytes) const {
    EXPECT_EQ(pwrite(index.Get(), bytes.data(), bytes.size(), static_cast<off_t>(at)),
              static_cast<ssize_t>(bytes.size()));
  }
  void Poke(uint64_t word, uint64_t value) const {
    PokeBytes(word * 8, {reinterpret_cast<const char*>(&value), sizeof(value)});
  }
  [[nodiscard]] uint64_t Peek(uint64_t word) const {
    uint64_t value = 0;
    EXPECT_EQ(pread(index.Get(), &value, sizeof(value), static_cast<off_t>(word * 8)), 8);
    return value;
  }
  void PokeMark(uint64_t number, uint64_t offset, OutputStream stream, uint64_t time_us) const {
    Poke((marks_at + number * kMarkBytes) / 8, offset << 1 | static_cast<uint64_t>(stream));
    Poke((marks_at + number * kMarkBytes) / 8 + 1, time_us);
  }
  [[nodiscard]] uint64_t IndexBytes() const { return static_cast<uint64_t>(Look(index).st_size); }
  [[nodiscard]] uint64_t DataMemory() const { return static_cast<uint64_t>(Look(data).st_blocks) * 512; }
  [[nodiscard]] uint64_t Memory() const { return DataMemory() + static_cast<uint64_t>(Look(index).st_blocks) * 512; }
  static struct stat Look(const UniqueFd& fd) {
    struct stat info {};
    EXPECT_EQ(fstat(fd.Get(), &info), 0);
    return info;
  }

  UniqueFd data{memfd_create("test", MFD_CLOEXEC)}, index{memfd_create("test", MFD_CLOEXEC)};
  uint64_t marks_at = 0;
};

// A front end in another process, which holds the journal as long as this lives.
class OtherFrontEnd {
 public:
  explicit OtherFrontEnd(const JournalMemory& memory) : pid_(fork()) {
    if (pid_ == 0) {
      // A broker's end of a connection that was left open here would keep it up.
      for (int fd = 3; fd < 1024; ++fd) {
        if (fd != memory.data.Get() && fd != memory.index.Get() && fd != ready_.write.Get()) close(fd);
      }
      const auto journal = memory.Open();
      ready_.Put("+");
      for (;;) pause();
    }
    pollfd ready{ready_.read.Get(), POLLIN, 0};
    EXPECT_EQ(poll(&ready, 1, -1), 1);
  }
  OtherFrontEnd(const OtherFrontEnd&) = delete;
  ~OtherFrontEnd() {
    EXPECT_EQ(kill(pid_, SIGKILL), 0);
    EXPECT_EQ(waitpid(pid_, nullptr, 0), pid_);
  }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  const TestPipe ready_;
  const pid_t pid_;
};

class CountingReader : public OutputReader {
 public:
  void OutputReady() override { ++told; }
  std::atomic<int> told = 0;
};

// All that there is for the cursor, as "o'abc' e'error' <5> o'x'": bytes of a stream, and gaps. What a second turn
// begins with only because it came later goes on.
inline std::string ReadAll(Journal& journal, OutputCursor cursor = {}) {
  std::string all;
  uint64_t next = cursor.offset;
  for (char last = 0;;) {
    const Journal::Chunk chunk = journal.Read(cursor, nullptr);
    if (chunk.outcome != Journal::Outcome::kBytes) break;
    if (chunk.dropped != 0) {
      all += (all.empty() ? "<" : " <") + std::to_string(chunk.dropped) + ">";
      last = 0;
    }
    if (chunk.bytes == nullptr) continue;
    const char stream = chunk.stream == OutputStream::kStdout ? 'o' : 'e';
    if (stream == last && chunk.offset == next) {
      all.pop_back();
    } else {
      all += (all.empty() ? "" : " ") + std::string(1, stream) + "'";
    }
    all.append(*chunk.bytes) += '\'';
    last = stream;
    next = chunk.offset + chunk.bytes->size();
    EXPECT_EQ(cursor.offset, next);
  }
  return all;
}

}  // namespace jobworker
