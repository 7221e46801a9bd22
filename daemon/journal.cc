#include "daemon/journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "daemon/because.h"
#include "daemon/clock.h"

namespace jobworker {

namespace {

// The front end's part of the index: eight words; the Exited with its length in front, 0 while there is none; and, as
// its end, the readers that may come back, a word each, 0 for none.
enum Header : uint64_t { kMagic, kFirst, kStopState, kStopSince, kForgotten, kInputTaken, kInputPhase, kEnd = 8 };
constexpr uint64_t kMagicNumber = 0x31304c414e52554a;  // "JURNAL01"
constexpr uint64_t kWord = sizeof(uint64_t);
constexpr uint64_t kPage = 4096;
constexpr uint64_t kMarkCost = 32;            // in the index, and in marks_
constexpr uint64_t kJournalCost = 12 * 1024;  // two inodes, a page each
constexpr uint64_t kMarkEveryUs = 100'000;    // at most; so that times are good enough
constexpr size_t kMostAbsent = 64;            // of one job
constexpr uint64_t kReaders = kJournalStart - Journal::kReadersKept * kWord;

// All of it, or false with errno. Nothing here crosses a page, so a kill leaves all of it or none.
bool WriteAt(int fd, uint64_t offset, const void* bytes, size_t size) {
  ssize_t written;
  do {
    written = pwrite(fd, bytes, size, static_cast<off_t>(offset));
  } while (written < 0 && errno == EINTR);
  return written == static_cast<ssize_t>(size);
}

bool WriteWord(int fd, Header word, uint64_t value) { return WriteAt(fd, word * kWord, &value, kWord); }

// As much as there is; less than that only when it fails, and then `error` is the errno.
size_t ReadInto(int fd, uint64_t offset, char* bytes, size_t size, int* error = nullptr) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = pread(fd, bytes + done, size - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && error != nullptr) *error = errno;
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

std::string ReadAt(int fd, uint64_t offset, size_t size, int* error = nullptr) {
  std::string bytes(size, '\0');
  bytes.resize(ReadInto(fd, offset, bytes.data(), size, error));
  return bytes;
}

uint64_t ReadWord(int fd, Header word, int* error = nullptr) {
  uint64_t value = 0;
  const std::string bytes = ReadAt(fd, word * kWord, kWord, error);
  std::memcpy(&value, bytes.data(), bytes.size());
  return value;
}

// A message with its length in front; empty when there is none of at most `most` bytes.
std::string ReadSized(int fd, uint64_t offset, uint32_t most, int* error = nullptr) {
  uint32_t size = 0;
  const std::string length = ReadAt(fd, offset, sizeof(size), error);
  std::memcpy(&size, length.data(), length.size());
  return size <= most ? ReadAt(fd, offset + sizeof(size), size, error) : "";
}

// Where the marks begin behind a Start of that many bytes.
uint64_t MarksAfter(uint64_t start_size) { return (kJournalStart + sizeof(uint32_t) + start_size + 15) / 16 * 16; }

void PunchHole(int fd, uint64_t& from, uint64_t to) {
  to -= to % kPage;
  if (to < from + kPage) return;
  int result;
  do {
    result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from),
                       static_cast<off_t>(to - from));
  } while (result != 0 && errno == EINTR);
  if (result == 0) from = to;  // else the next one tries again
}

std::atomic<size_t> chunk_memory = 0;  // that all Blocks take

// What a chunk's bytes are in.
struct Block {
  Block(int fd, uint64_t begin, size_t most)
      : size(most),
        memory(std::make_unique_for_overwrite<char[]>(most)),
        bytes(memory.get(), ReadInto(fd, begin, memory.get(), most)) {
    chunk_memory += size;
  }
  Block(const Block&) = delete;
  ~Block() { chunk_memory -= size; }
  const size_t size;
  const std::unique_ptr<char[]> memory;
  const std::string_view bytes;
};

void Tell(const std::vector<std::shared_ptr<OutputReader>>& readers) {
  for (const std::shared_ptr<OutputReader>& reader : readers) reader->OutputReady();
}

}  // namespace

tl::expected<std::shared_ptr<Journal>, std::string> Journal::Open(UniqueFd data, UniqueFd index,
                                                                  std::chrono::milliseconds comes_back_within) {
  std::shared_ptr<Journal> journal(new Journal(std::move(data), std::move(index), comes_back_within));
  if (!journal->Hold()) return Because("another process holds the journal");
  if (const auto loaded = journal->Load(); !loaded) return Because(loaded.error());
  return journal;
}

std::optional<pid_t> Journal::Holder(int index) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  if (fcntl(index, F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return std::nullopt;
  return lock.l_pid;
}

bool Journal::Hold() const {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  return fcntl(index_.Get(), F_SETLK, &lock) == 0;
}

std::shared_ptr<Journal> Journal::Unreadable(std::string why) {
  std::shared_ptr<Journal> journal(new Journal({}, {}, kComesBackWithin));
  journal->damage_ = std::move(why);
  return journal;
}

tl::expected<void, std::string> Journal::Load() {
  struct stat data {
  }, index{};
  if (fstat(data_.Get(), &data) != 0 || fstat(index_.Get(), &index) != 0) {
    return Because(fmt::format("the journal's memory cannot be looked at: {}", strerror(errno)));
  }
  end_ = static_cast<uint64_t>(data.st_size);
  int error = 0;
  damage_ = LoadStart(static_cast<uint64_t>(index.st_size), error);
  const uint64_t magic = ReadWord(index_.Get(), kMagic, &error);
  const bool fresh = magic == 0 && end_ == 0;
  if (magic != kMagicNumber && !fresh) damage_ = "it was written by another version";
  if (damage_.empty() && !fresh) damage_ = LoadMarks(static_cast<uint64_t>(index.st_size), error);
  if (damage_.empty()) LoadReaders(error);
  // What the kernel did not give this time is not damaged.
  if (error != 0) return Because(fmt::format("the journal cannot be read: {}", strerror(error)));
  if (!damage_.empty() && !BeginAnew())
    return Because(fmt::format("the journal cannot be written: {}", strerror(errno)));
  if (fresh && !WriteWord(index_.Get(), kMagic, kMagicNumber)) {
    return Because(fmt::format("the journal cannot be written: {}", strerror(errno)));
  }
  Account();
  return {};
}

std::string Journal::LoadStart(uint64_t index_size, int& error) {
  const std::string message = ReadSized(index_.Get(), kJournalStart, kMaxMessageBytes, &error);
  std::optional<Request> request = Decode<Request>(message);
  Start* const start = request ? std::get_if<Start>(&*request) : nullptr;
  marks_at_ = MarksAfter(start != nullptr ? message.size() : index_size);
  if (start == nullptr) return "the request that made the job is not in it";
  start_ = std::move(*start);
  return "";
}

std::string Journal::LoadMarks(uint64_t index_size, int& error) {
  first_ = ReadWord(index_.Get(), kFirst, &error);
  if (first_ > end_) return "it begins after its end";
  // What was punched away is a hole of whole pages. Marks in front of one, in the page that also has the header and is
  // never punched, no longer count.
  const uint64_t second_page = (marks_at_ + kPage - 1) / kPage * kPage;
  const off_t after_hole = lseek(index_.Get(), static_cast<off_t>(second_page), SEEK_DATA);
  if (after_hole < 0 && errno != ENXIO) error = errno;  // ENXIO: there is no second page
  const bool holed = after_hole > static_cast<off_t>(second_page);
  const uint64_t from = holed ? static_cast<uint64_t>(after_hole) : marks_at_;
  const std::string bytes = ReadAt(index_.Get(), from, from < index_size ? index_size - from : 0, &error);
  marks_dropped_ = (from - marks_at_) / sizeof(Mark);
  for (size_t at = 0; at + sizeof(Mark) <= bytes.size(); at += sizeof(Mark)) {
    Mark mark;
    std::memcpy(&mark, bytes.data() + at, sizeof(mark));
    const bool follows = marks_.empty() || mark.offset() >= marks_.back().offset();
    if (mark.time_us == 0 || !follows || mark.offset() > end_) return "its marks are not in order";
    marks_.push_back(mark);
  }
  if (first_ < end_ && (marks_.empty() || marks_.front().offset() > first_))
    return "it does not say whose its bytes are";
  DropMarks();
  return "";
}

// Those of the front end before. How far each of them had come is not known.
void Journal::LoadReaders(int& error) {
  std::array<uint64_t, kReadersKept> readers{};
  const std::string bytes = ReadAt(index_.Get(), kReaders, sizeof(readers), &error);
  std::memcpy(readers.data(), bytes.data(), bytes.size());
  for (const uint64_t reader : readers) {
    if (reader != 0) absent_.push_back({reader, first_, Clock::now() + comes_back_within_});
  }
}

// What is in the data file is of no use without its marks, so all of it goes. The next byte's offset stays what it was.
// False with errno.
bool Journal::BeginAnew() {
  marks_.clear();
  marks_dropped_ = 0;
  first_ = end_;
  PunchHole(data_.Get(), punched_, end_);
  // In the place of a request that cannot be read: one that the next front end can.
  ByteIo origin;
  origin.Bytes(Encode(start_.argv.empty() ? Start{{"unknown", 1}, {}, {"?"}, {}, "", "", 0} : start_), 0);
  const std::string start = origin.Take();
  marks_at_ = MarksAfter(start.size() - sizeof(uint32_t));
  const std::string header(kJournalStart - kWord, '\0');
  // The magic number last: until then it is as damaged as before.
  return ftruncate(index_.Get(), kJournalStart) == 0 && WriteAt(index_.Get(), kWord, header.data(), header.size()) &&
         WriteAt(index_.Get(), kJournalStart, start.data(), start.size()) && WriteWord(index_.Get(), kFirst, first_) &&
         WriteWord(index_.Get(), kMagic, kMagicNumber);
}

void Journal::DropMarks() {
  while (marks_.size() > 1 && marks_[1].offset() <= first_) {
    marks_.pop_front();
    ++marks_dropped_;
  }
}

void Journal::Account() { held_ = end_ - first_ + kMarkCost * marks_.size() + kJournalCost; }

bool Journal::WriteMark(size_t number, const Mark& mark) {
  return WriteAt(index_.Get(), marks_at_ + number * sizeof(Mark), &mark, sizeof(mark));
}

// Before the bytes: from here on they are of that stream.
bool Journal::Put(OutputStream stream) {
  const Mark mark{end_ << 1 | static_cast<uint64_t>(stream), NowUs()};
  const bool replace = !marks_.empty() && marks_.back().offset() == end_;  // no byte has come since
  if (!marks_.empty() && marks_.back().stream() == stream && mark.time_us - marks_.back().time_us < kMarkEveryUs) {
    return true;
  }
  if (!WriteMark(marks_dropped_ + marks_.size() - (replace ? 1 : 0), mark)) return false;
  if (replace) marks_.pop_back();
  marks_.push_back(mark);
  return true;
}

ssize_t Journal::Take(OutputStream stream, int pipe, size_t most) {
  auto offset = static_cast<off_t>(end_);  // written by this thread alone
  {
    const std::lock_guard lock(mutex_);
    if (!Put(stream)) return -1;
  }
  const ssize_t size = splice(pipe, nullptr, data_.Get(), &offset, most, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (size <= 0) return size;
  std::vector<std::shared_ptr<OutputReader>> ready;
  std::shared_ptr<const std::string_view> shared;  // kept until all who waited have come for it
  {
    const std::lock_guard lock(mutex_);
    const uint64_t begin = end_;
    end_ += static_cast<uint64_t>(size);
    ready.swap(waiting_);
    if (ready.size() > 1) shared = Share(begin, ChunkEnd(*SegmentAt(begin), begin));
    Account();
  }
  Tell(ready);  // without the lock: they read at once
  return size;
}

uint64_t Journal::DropTo(uint64_t held) {
  const uint64_t before = held_;
  if (before <= held) return 0;
  const std::lock_guard lock(mutex_);
  Drop(std::min(end_, first_ + (before - held)));
  return before - held_;
}

uint64_t Journal::DropReadTo(uint64_t held, uint64_t margin) {
  const std::lock_guard lock(mutex_);
  const bool followed =
      std::any_of(cursors_.begin(), cursors_.end(), [](const OutputCursor* cursor) { return cursor->follows; });
  return followed ? DropLocked(held, margin) : 0;
}

uint64_t Journal::DropUnneededTo(uint64_t held, uint64_t margin) {
  const std::lock_guard lock(mutex_);
  return DropLocked(held, margin);
}

uint64_t Journal::DropLocked(uint64_t held, uint64_t margin) {
  const uint64_t before = held_;
  if (before <= held) return 0;
  CeaseToExpect();
  uint64_t needed = UINT64_MAX;
  for (const OutputCursor* cursor : cursors_) {
    const uint64_t handed = cursor->offset - std::min(cursor->offset, margin);
    needed = std::min(needed, cursor->reader != 0 ? cursor->needed : handed);
  }
  for (const Absent& absent : absent_) needed = std::min(needed, absent.needed);
  Drop(std::min({end_, needed, first_ + (before - held)}));
  return before - held_;
}

// The new beginning is written first: a kill in between leaves bytes that nobody misses, not zeros that somebody reads.
void Journal::Drop(uint64_t first) {
  drop_failed_ = first > first_ && !WriteWord(index_.Get(), kFirst, first);
  if (first <= first_ || drop_failed_) return;
  first_ = first;
  DropMarks();
  PunchHole(data_.Get(), punched_, first_);
  uint64_t from = std::max(index_punched_, (marks_at_ + kPage - 1) / kPage * kPage);
  PunchHole(index_.Get(), from, marks_at_ + marks_dropped_ * sizeof(Mark));
  index_punched_ = from;
  Account();
}

StopState Journal::stop() const {
  const uint64_t word = ReadWord(index_.Get(), kStopState);
  const auto kind =
      static_cast<StopKind>(std::min<uint64_t>(word & 0xff, static_cast<uint64_t>(StopKind::kOutputLimit)));
  return {kind, static_cast<uint8_t>(word >> 8), (word >> 16 & 1) != 0, static_cast<uint32_t>(word >> 32),
          ReadWord(index_.Get(), kStopSince)};
}

void Journal::SetStop(const StopState& stop) {
  const uint64_t word = static_cast<uint64_t>(stop.kind) | uint64_t{stop.signal} << 8 |
                        uint64_t{stop.killed ? 1U : 0U} << 16 | uint64_t{stop.grace_ms} << 32;
  (void)(WriteWord(index_.Get(), kStopSince, stop.since_us) && WriteWord(index_.Get(), kStopState, word));
}

InputProgress Journal::input() const {
  const uint64_t phase =
      std::min<uint64_t>(ReadWord(index_.Get(), kInputPhase), static_cast<uint64_t>(InputPhase::kLost));
  return {ReadWord(index_.Get(), kInputTaken), static_cast<InputPhase>(phase)};
}

void Journal::SetInput(const InputProgress& input) {
  (void)(WriteWord(index_.Get(), kInputTaken, input.taken) &&
         WriteWord(index_.Get(), kInputPhase, static_cast<uint64_t>(input.phase)));
}

std::optional<Exited> Journal::end() const {
  const std::optional<Reply> reply = Decode<Reply>(ReadSized(index_.Get(), kEnd * kWord, kReaders - kEnd * kWord));
  const Exited* const exited = reply ? std::get_if<Exited>(&*reply) : nullptr;
  return exited != nullptr ? std::optional(*exited) : std::nullopt;
}

void Journal::SetEnd(const Exited& exited) {
  ByteIo writer;
  writer.Bytes(Encode(exited), 0);
  const std::string bytes = writer.Take();
  static_assert(kEnd * kWord + 4 + 256 < kReaders);
  (void)WriteAt(index_.Get(), kEnd * kWord, bytes.data(), bytes.size());
}

void Journal::Forget() {
  (void)WriteWord(index_.Get(), kForgotten, 1);
  (void)DropTo(0);
}

bool Journal::forgotten() const { return ReadWord(index_.Get(), kForgotten) != 0; }

Journal::Range Journal::range() const {
  const std::lock_guard lock(mutex_);
  return {first_, end_};
}

// Only for a mark that is there: of an offset in [first_, end_).
std::optional<Journal::Segment> Journal::SegmentAt(uint64_t offset) const {
  if (offset < first_ || offset >= end_) return std::nullopt;
  // Of marks with one offset the last counts: there are no bytes between them.
  const auto next = std::upper_bound(marks_.begin(), marks_.end(), offset,
                                     [](uint64_t wanted, const Mark& mark) { return wanted < mark.offset(); });
  const Mark& mark = *std::prev(next);
  return Segment{std::max(mark.offset(), first_), next == marks_.end() ? end_ : next->offset(), mark.stream(),
                 mark.time_us};
}

// Chunks end at multiples of their size, so that readers who began at different places come to share them.
uint64_t Journal::ChunkEnd(const Segment& segment, uint64_t begin) {
  const size_t size = chunk_memory < kChunkMemory ? kMaxChunk : kSmallChunk;
  return std::min(segment.end, (begin / size + 1) * size);
}

std::shared_ptr<const std::string_view> Journal::Share(uint64_t begin, uint64_t end) {
  std::shared_ptr<const std::string_view> bytes = shared_.lock();
  if (bytes != nullptr && shared_begin_ == begin && bytes->size() == end - begin) return bytes;
  const auto block = std::make_shared<const Block>(data_.Get(), begin, end - begin);
  bytes = {block, &block->bytes};
  shared_begin_ = begin;
  shared_ = bytes;
  return bytes;
}

Journal::Chunk Journal::Read(OutputCursor& cursor, const std::shared_ptr<OutputReader>& reader) {
  std::function<void()> progress;
  Chunk chunk;
  {
    const std::lock_guard lock(mutex_);
    chunk = ReadLocked(cursor);
    if (chunk.outcome == Outcome::kWait && reader != nullptr) waiting_.push_back(reader);
    progress = progress_;
  }
  if (progress) progress();
  return chunk;
}

Journal::Chunk Journal::ReadLocked(OutputCursor& cursor) {
  Chunk chunk;
  chunk.outcome = Outcome::kBytes;
  if (cursor.offset < first_) chunk.dropped = first_ - std::exchange(cursor.offset, first_);
  std::optional<Segment> segment = SegmentAt(cursor.offset);
  while (segment && cursor.only && segment->stream != *cursor.only) {
    cursor.offset = segment->end;
    segment = SegmentAt(cursor.offset);
  }
  chunk.offset = cursor.offset;
  if (!segment) {
    if (chunk.dropped != 0) return chunk;
    const bool tells = called_back_ && cursor.reader != 0 && cursor.needed < cursor.offset;
    chunk.outcome = tells && at_end_ == Outcome::kWait ? Outcome::kResume : at_end_;
    return chunk;
  }
  chunk.stream = segment->stream;
  chunk.time_us = segment->time_us;
  chunk.bytes = Share(cursor.offset, ChunkEnd(*segment, cursor.offset));
  cursor.offset += chunk.bytes->size();
  return chunk;
}

void Journal::Leave(const std::shared_ptr<OutputReader>& reader) {
  const std::lock_guard lock(mutex_);
  waiting_.erase(std::remove(waiting_.begin(), waiting_.end(), reader), waiting_.end());
}

// Goes from the end back over what counts, as long as `more` says so.
void Journal::WalkBack(std::optional<OutputStream> only,
                       const std::function<bool(uint64_t begin, uint64_t end)>& more) const {
  uint64_t end = end_;
  for (auto mark = marks_.rbegin(); mark != marks_.rend() && end > first_; ++mark) {
    const uint64_t begin = std::max(mark->offset(), first_);
    if (begin < end && (!only || mark->stream() == *only) && !more(begin, end)) return;
    end = std::min(begin, end);
  }
}

uint64_t Journal::TailBytes(std::optional<OutputStream> only, uint64_t count) const {
  const std::lock_guard lock(mutex_);
  if (count == 0) return end_;
  uint64_t at = first_;
  WalkBack(only, [&](uint64_t begin, uint64_t end) {
    const uint64_t taken = std::min(count, end - begin);
    count -= taken;
    if (count == 0) at = end - taken;
    return count > 0;
  });
  return at;
}

// As tail(1) counts: what follows the last newline is a line too, if it is not empty.
uint64_t Journal::TailLines(std::optional<OutputStream> only, uint64_t count) const {
  const std::lock_guard lock(mutex_);
  if (count == 0) return end_;
  uint64_t at = first_;
  bool last_byte = true;
  // Read in large pieces, whatever the marks cut it into.
  std::string piece;
  uint64_t piece_at = end_;
  WalkBack(only, [&](uint64_t begin, uint64_t end) {
    for (uint64_t next = end; next-- > begin; last_byte = false) {
      if (next < piece_at) {
        piece_at = next + 1 - std::min<uint64_t>(next + 1, kMaxChunk);
        piece = ReadAt(data_.Get(), piece_at, next + 1 - piece_at);
      }
      if (next - piece_at >= piece.size() || piece[next - piece_at] != '\n' || last_byte || --count > 0) continue;
      at = next + 1;
      return false;
    }
    return true;
  });
  return at;
}

void Journal::Attach(const OutputCursor* cursor) {
  const std::lock_guard lock(mutex_);
  if (cursor->reader == 0) return cursors_.push_back(cursor);
  // Nobody may have noticed yet that the connection of the one before is gone.
  const auto former = [cursor](const OutputCursor* other) { return other->reader == cursor->reader; };
  cursors_.erase(std::remove_if(cursors_.begin(), cursors_.end(), former), cursors_.end());
  const auto back = [cursor](const Absent& absent) { return absent.reader == cursor->reader; };
  absent_.erase(std::remove_if(absent_.begin(), absent_.end(), back), absent_.end());
  cursors_.push_back(cursor);
  WriteReaders();
}

void Journal::Detach(const OutputCursor* cursor) {
  std::function<void()> progress;
  {
    const std::lock_guard lock(mutex_);
    const auto left = std::remove(cursors_.begin(), cursors_.end(), cursor);
    if (left != cursors_.end() && cursor->reader != 0) Expect(*cursor);
    cursors_.erase(left, cursors_.end());
    progress = progress_;
  }
  if (progress) progress();
}

void Journal::Expect(const OutputCursor& left) {
  CeaseToExpect();
  // The one that needs the least: what the others need is more.
  const auto least = std::max_element(absent_.begin(), absent_.end(),
                                      [](const Absent& a, const Absent& b) { return a.needed < b.needed; });
  if (absent_.size() == kMostAbsent) absent_.erase(least);
  absent_.push_back({left.reader, left.needed, Clock::now() + comes_back_within_});
}

void Journal::CeaseToExpect() {
  const auto late = [now = Clock::now()](const Absent& absent) { return absent.until <= now; };
  absent_.erase(std::remove_if(absent_.begin(), absent_.end(), late), absent_.end());
}

// For the next front end. If it cannot be written, that one waits for fewer.
void Journal::WriteReaders() {
  std::array<uint64_t, kReadersKept> readers{};
  size_t count = 0;
  const auto add = [&](uint64_t reader) {
    if (reader != 0 && count < readers.size()) readers[count++] = reader;
  };
  for (const OutputCursor* cursor : cursors_) add(cursor->reader);
  for (const Absent& absent : absent_) add(absent.reader);
  (void)WriteAt(index_.Get(), kReaders, readers.data(), sizeof(readers));
}

void Journal::CallBack(bool wanted) {
  std::vector<std::shared_ptr<OutputReader>> ready;
  {
    const std::lock_guard lock(mutex_);
    if (wanted && !called_back_) ready.swap(waiting_);
    called_back_ = wanted;
  }
  Tell(ready);
}

Journal::Clock::time_point Journal::LookAgainAt() {
  const std::lock_guard lock(mutex_);
  CeaseToExpect();
  auto next = drop_failed_ ? Clock::now() + kTryAgain : Clock::time_point::max();
  for (const Absent& absent : absent_) next = std::min(next, absent.until);
  return next;
}

size_t Journal::followers() const {
  const std::lock_guard lock(mutex_);
  return cursors_.size();
}

uint64_t Journal::lag() const {
  const std::lock_guard lock(mutex_);
  uint64_t slowest = end_;
  for (const OutputCursor* cursor : cursors_) slowest = std::min(slowest, cursor->offset);
  return end_ - slowest;
}

void Journal::OnProgress(std::function<void()> progress) {
  const std::lock_guard lock(mutex_);
  progress_ = std::move(progress);
}

void Journal::Finish(Outcome outcome) {
  std::vector<std::shared_ptr<OutputReader>> ready;
  {
    const std::lock_guard lock(mutex_);
    if (at_end_ == Outcome::kWait) at_end_ = outcome;
    ready.swap(waiting_);
  }
  Tell(ready);
}

}  // namespace jobworker
