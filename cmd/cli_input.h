// Our standard input, sent to a job while its output is followed on another thread.
#pragma once
#include <jobworker.pb.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "cmd/cli_session.h"

namespace jobworker {

// Bytes that were read but that the server has not confirmed, so that they can be sent again.
class InputWindow {
 public:
  static constexpr size_t kMost = 1 << 20;
  [[nodiscard]] bool Full() const { return held_.size() >= kMost; }
  void Append(std::string_view bytes) { held_ += bytes; }
  // Nothing before `position` is needed any more. False when that was never sent.
  bool Confirm(uint64_t position);
  // At most `size` bytes from a position on that is held.
  [[nodiscard]] std::string_view From(uint64_t position, size_t size) const;
  [[nodiscard]] uint64_t Begin() const { return begin_; }
  [[nodiscard]] uint64_t End() const { return begin_ + held_.size(); }

 private:
  std::string held_;
  uint64_t begin_ = 0;
};

// Sends all of `fd` to the job, from a thread that ends with the process. The session outlives it. Reads no more than
// the job does, and 1 MiB.
void SendInput(Session& session, const std::string& id, int fd);

}  // namespace jobworker
