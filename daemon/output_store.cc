#include "daemon/output_store.h"

#include <algorithm>

namespace jobworker {

MemoryOutputStore::~MemoryOutputStore() {
  const std::lock_guard lock(budget_->mutex);
  budget_->used -= held_;
}

void MemoryOutputStore::Append(OutputStream stream, std::string_view bytes) {
  {
    const std::lock_guard lock(mutex_);
    Keep(stream, bytes);
    DropOldest();
  }
  Tell();
}

void MemoryOutputStore::Keep(OutputStream stream, std::string_view bytes) {
  while (!bytes.empty()) {
    if (segments_.empty() || segments_.back().stream != stream || segments_.back().bytes.size() >= kMaxPiece) {
      segments_.push_back({end_, stream, {}});
    }
    std::string& last = segments_.back().bytes;
    const std::string_view part = bytes.substr(0, kMaxPiece - last.size());
    last += part;
    end_ += part.size();
    bytes.remove_prefix(part.size());
    held_ += part.size();
    const std::lock_guard lock(budget_->mutex);
    budget_->used += part.size();
  }
}

void MemoryOutputStore::DropOldest() {
  const std::lock_guard lock(budget_->mutex);
  while (segments_.size() > 1 && (held_ > budget_->per_job || budget_->used > budget_->in_all)) {
    const size_t size = segments_.front().bytes.size();
    held_ -= size;
    budget_->used -= size;
    segments_.pop_front();
  }
}

void MemoryOutputStore::Close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  Tell();
}

// Readers are called without the lock: they read again at once.
void MemoryOutputStore::Tell() {
  std::vector<std::shared_ptr<OutputReader>> waiting;
  {
    const std::lock_guard lock(mutex_);
    waiting.swap(waiting_);
  }
  for (const auto& reader : waiting) reader->OutputReady();
}

OutputStore::Piece MemoryOutputStore::Read(uint64_t& position, const std::shared_ptr<OutputReader>& reader) {
  const std::lock_guard lock(mutex_);
  if (position >= end_) {
    if (!closed_) waiting_.push_back(reader);
    return Piece{closed_ ? Outcome::kEnd : Outcome::kWait, OutputStream::kStdout, {}, 0};
  }
  auto segment = std::upper_bound(segments_.begin(), segments_.end(), position,
                                  [](uint64_t wanted, const Segment& each) { return wanted < each.position; });
  if (segment != segments_.begin()) --segment;
  const uint64_t dropped = segment->position > position ? segment->position - position : 0;
  const size_t skip = position + dropped - segment->position;
  Piece piece{Outcome::kBytes, segment->stream, segment->bytes.substr(skip), dropped};
  position += dropped + piece.bytes.size();
  return piece;
}

}  // namespace jobworker
