#include "daemon/output_store.h"

#include <unistd.h>

#include <algorithm>

namespace jobworker {

namespace {

void Tell(const std::set<std::shared_ptr<OutputReader>>& readers) {
  for (const std::shared_ptr<OutputReader>& reader : readers) reader->OutputReady();
}

}  // namespace

void OutputMemory::Enter(MemoryOutputStore* store) {
  const std::lock_guard lock(mutex_);
  stores_.insert(store);
}

void OutputMemory::Exit(MemoryOutputStore* store) {
  const std::lock_guard lock(mutex_);
  stores_.erase(store);
}

// Some more than is needed each time: looking for the biggest takes a look at all of them.
void OutputMemory::Shrink() {
  constexpr size_t kSlack = 1 << 20;
  const std::lock_guard lock(mutex_);
  while (used_ > in_all_) {
    MemoryOutputStore* const biggest = *std::max_element(
        stores_.begin(), stores_.end(), [](const auto* a, const auto* b) { return a->held_ < b->held_; });
    const std::lock_guard store_lock(biggest->mutex_);
    const size_t excess = used_ - in_all_ + std::min(kSlack, in_all_ / 16);
    biggest->DropUntil(biggest->held_ - std::min<size_t>(biggest->held_, excess));
  }
}

MemoryOutputStore::MemoryOutputStore(std::shared_ptr<OutputMemory> memory) : memory_(std::move(memory)) {
  memory_->Enter(this);
}

MemoryOutputStore::~MemoryOutputStore() {
  memory_->Exit(this);
  memory_->used_ -= held_;
}

ssize_t MemoryOutputStore::Take(OutputStream stream, int pipe) {
  std::vector<char>& buffer = memory_->buffer_;
  const ssize_t size = read(pipe, buffer.data(), buffer.size());
  if (size <= 0) return size;
  Readers ready;
  {
    const std::lock_guard lock(mutex_);
    Append(stream, {buffer.data(), static_cast<size_t>(size)});
    DropUntil(memory_->per_job_);
    ready.swap(waiting_);
  }
  if (memory_->used_ > memory_->in_all_) memory_->Shrink();
  Tell(ready);  // without the lock: they read at once
  return size;
}

void MemoryOutputStore::Append(OutputStream stream, std::string_view bytes) {
  while (!bytes.empty()) {
    if (blocks_.empty() || blocks_.back().stream != stream || blocks_.back().bytes.size() >= kMaxSegment) {
      blocks_.push_back({end_, stream, {}});
      Account(held_ + Cost(blocks_.back()));
    }
    Block& last = blocks_.back();
    const size_t before = Cost(last);
    const std::string_view part = bytes.substr(0, kMaxSegment - last.bytes.size());
    last.bytes += part;
    end_ += part.size();
    bytes.remove_prefix(part.size());
    Account(held_ + Cost(last) - before);
  }
}

void MemoryOutputStore::DropUntil(size_t held) {
  while (held_ > held) {
    Account(held_ - Cost(blocks_.front()));
    blocks_.pop_front();
  }
}

void MemoryOutputStore::Account(size_t held) {
  memory_->used_ += held - held_;  // modulo 2^64, so downwards too
  held_ = held;
}

void MemoryOutputStore::Finish(Outcome outcome) {
  Readers ready;
  {
    const std::lock_guard lock(mutex_);
    if (at_end_ == Outcome::kWait) at_end_ = outcome;
    ready.swap(waiting_);
  }
  Tell(ready);
}

OutputStore::Segment MemoryOutputStore::Read(uint64_t& offset, const std::shared_ptr<OutputReader>& reader) {
  const std::lock_guard lock(mutex_);
  if (offset >= end_) {
    if (at_end_ == Outcome::kWait) waiting_.insert(reader);
    return {.outcome = at_end_, .bytes = {}};
  }
  auto block = std::upper_bound(blocks_.begin(), blocks_.end(), offset,
                                [](uint64_t wanted, const Block& each) { return wanted < each.offset; });
  if (block != blocks_.begin()) --block;
  const uint64_t available = block == blocks_.end() ? end_ : std::max(offset, block->offset);
  Segment segment{Outcome::kBytes, OutputStream::kStdout, {}, available - offset};
  if (block != blocks_.end()) {
    segment.stream = block->stream;
    segment.bytes = block->bytes.substr(available - block->offset);
  }
  offset = available + segment.bytes.size();
  return segment;
}

void MemoryOutputStore::Leave(const std::shared_ptr<OutputReader>& reader) {
  const std::lock_guard lock(mutex_);
  waiting_.erase(reader);
}

}  // namespace jobworker
