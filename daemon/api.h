// What is known of jobs, as messages of proto/jobworker.proto.
#pragma once
#include <grpcpp/support/status.h>

#include <string>
#include <vector>

#include "daemon/job_table.h"
#include "jobworker.pb.h"

namespace jobworker {

JobEnd ToJobEnd(const JobResult& result, uint64_t started_us);
ResourceLimits ToResourceLimits(const Limits& limits);
ResourceUsage ToResourceUsage(const Counters& counters);
InputResult ToInputResult(const InputProgress& progress);
// "cpu", "io", "memory", "pids", those whose bits are set.
std::vector<std::string> ControllerNames(uint8_t controllers);
JobStatus::State StateOf(const JobView& job);
// Without usage. On the loop's thread.
JobStatus ToJobStatus(const JobTable& jobs, const JobView& job);
// A stream's first response, but for its offset.
WorkerResponse ToFirstResponse(const JobTable& jobs, const JobView& job);

// For people: "job 3 is stopped: signal 15 (SIGTERM)".
std::string StopSentence(const JobResult& result);

// What a client is told: for a start that failed, of `user` and with `start`, and for a job that is not to be had.
// FAILED_PRECONDITION carries a serialised ::StartFailure.
grpc::Status StartFailedStatus(const JobFailure& failure, const std::string& user, const Start& start);
grpc::Status NoJobStatus(NoJob why);
// For a start whose limits the broker found above the user's ceilings: which, and where the ceiling is.
grpc::Status AboveCeilingStatus(const Limits& asked, const UserIs& user);

}  // namespace jobworker
