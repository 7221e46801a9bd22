// Birth of a job: one clone3 into its cgroup, then the steps that turn the child into the user's process.
#pragma once
#include <fcntl.h>

#include <memory>

#include "broker/users.h"

namespace jobworker {
// NAME=VALUE: the broker's own variables, replaced and followed by the request's.
std::vector<std::string> JobEnvironment(const User& user, const Start& start);
// The paths that exec tries for `command`, in order: those of PATH unless it has a slash.
std::vector<std::string> ExecCandidates(const std::string& command, const std::vector<std::string>& environment);

// Gives what is kept a number from `least` on: the low ones are for visitors and for what children are given.
inline void Keep(UniqueFd& fd, int least) { fd.Reset(OrThrow(fcntl(fd.Get(), F_DUPFD_CLOEXEC, least), "descriptors")); }

// What a child writes to its status pipe.
struct ChildFailure {
  Stage stage = Stage::kExec;
  int error = 0;  // 0: it has a table of descriptors of its own
};
// What the front end gets of a job, by DescriptorIndex; the pipes' ends are O_NONBLOCK.
using JobDescriptors = std::array<UniqueFd, kMaxDescriptors>;
struct Child {
  UniqueFd pidfd;
  std::shared_ptr<JobDescriptors> descriptors;
  UniqueFd status;  // ChildFailures, or end of file once exec succeeded
  // The child's, which finds them in the broker's table until it has its own: to be closed then, or when it is dead.
  std::array<int, 4> ends{-1, -1, -1, -1};
};
// Returns as soon as the child exists. Throws std::system_error; `stage` then says what was being done.
Child Spawn(const User& user, const Start& start, int leaf, Stage& stage);
}  // namespace jobworker
