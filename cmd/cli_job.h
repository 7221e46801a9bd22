// A stream of responses turned into the job's output on two descriptors, words on stderr and an exit status.
#pragma once
#include <jobworker.pb.h>

#include <cstdint>
#include <optional>
#include <string>

namespace jobworker {

inline constexpr int kOurFailure = 125;
inline constexpr int kCannotExecute = 126;
inline constexpr int kNotFound = 127;

// Says on stderr which limits the response reports as not enforced, if any.
void WarnUnenforced(const WorkerResponse& response);

class JobView {
 public:
  // `out` and `err` stay the caller's.
  JobView(std::string user, int out, int err) : user_(std::move(user)), out_(out), err_(err) {}

  // Writes what the response holds, but for bytes that were shown already. 0, or the errno of a write that failed.
  int Show(const WorkerResponse& response);
  [[nodiscard]] const std::string& Id() const { return id_; }
  // Where a stream that was broken off goes on; nothing when the server tells no offsets.
  [[nodiscard]] std::optional<uint64_t> Position() const { return position_; }
  [[nodiscard]] bool Ended() const { return end_.has_value(); }
  // Only once it has ended: the job's own status, 128+N for signal N.
  [[nodiscard]] int ExitStatus() const;
  // How it ended, for people; empty when it simply exited and left nothing behind.
  [[nodiscard]] std::string DescribeEnd() const;

 private:
  std::string user_;
  int out_;
  int err_;
  std::string id_;
  std::optional<uint64_t> position_;
  std::optional<JobEnd> end_;
};

}  // namespace jobworker
