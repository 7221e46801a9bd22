// Jobs in words: how they ended, and all that is known of them.
#pragma once
#include <jobworker.pb.h>

#include <string>

namespace jobworker {

inline constexpr int kTimedOut = 124;
inline constexpr int kOurFailure = 125;
inline constexpr int kCannotExecute = 126;
inline constexpr int kNotFound = 127;

// The job's own status, 128+N for signal N, 124 for a timeout, 125 when nobody knows.
int ExitStatusOf(const JobEnd& end);

// "job 3 was terminated by signal 15 (SIGTERM), core dumped"; empty when it simply exited and left nothing behind.
// `user` is whose job it was.
std::string DescribeEnd(const std::string& id, const JobEnd& end, const std::string& user);

// Never empty: "job 3 exited with 0".
std::string DescribeAnyEnd(const std::string& id, const JobEnd& end, const std::string& user);

// In one or two words, for a column: "running", "exited 0", "SIGKILL", "timed out".
std::string StateWord(const JobStatus& status);

// argv as one could type it, escaped.
std::string CommandText(const JobStatus& status);

// "cpu 0.5, memory 128 MiB"; "none".
std::string LimitsText(const ResourceLimits& limits);

// Several lines, ready for a terminal.
std::string StatusText(const JobStatus& status, const std::string& user, int64_t now_us);

}  // namespace jobworker
