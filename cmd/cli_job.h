// A stream of responses turned into the job's output on two descriptors, words on stderr and an exit status.
#pragma once
#include <jobworker.pb.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "cmd/cli_describe.h"

namespace jobworker {

// Says on stderr which limits the response reports as not enforced, if any.
void WarnUnenforced(const WorkerResponse& response);

// How output is shown: as it is; with the time before each line; as JSON, all of it on `out`.
enum class Format { kPlain, kTimestamps, kJson };

class JobView {
 public:
  // `out` and `err` stay the caller's.
  JobView(std::string user, int out, int err, Format format = Format::kPlain)
      : user_(std::move(user)), out_(out), err_(err), format_(format) {}

  // Writes what the response holds, but for bytes that were shown already. 0, or the errno of a write that failed.
  int Show(const WorkerResponse& response);
  [[nodiscard]] const std::string& Id() const { return id_; }
  // Where a stream that was broken off goes on; nothing when the server tells no offsets.
  [[nodiscard]] std::optional<uint64_t> Position() const { return position_; }
  // The job has ended, or all that was there of one that has not has been shown.
  [[nodiscard]] bool Complete() const { return end_.has_value() || partial_; }
  // The stream is over, and goes on at once: the server waits for that.
  [[nodiscard]] bool Resumes() const { return resume_; }
  // Only once it is complete.
  [[nodiscard]] int ExitStatus() const { return end_ ? ExitStatusOf(*end_) : 0; }
  // How it ended, for people; empty when it simply exited and left nothing behind.
  [[nodiscard]] std::string DescribeEnd() const { return end_ ? jobworker::DescribeEnd(id_, *end_, user_) : ""; }

 private:
  int ShowFirst(const WorkerResponse& response);
  int ShowGap(const WorkerResponse& response) const;
  int ShowLog(const WorkerResponse& response, std::string_view log);
  std::string user_;
  int out_;
  int err_;
  Format format_;
  std::string id_;
  std::optional<uint64_t> position_;
  bool inside_line_[2] = {false, false};  // of stdout, of stderr
  bool partial_ = false, resume_ = false;
  std::optional<JobEnd> end_;
};

}  // namespace jobworker
