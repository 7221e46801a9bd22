// What is known of jobs, as messages of proto/jobworker.proto.
#pragma once
#include "daemon/job_table.h"
#include "jobworker.pb.h"

namespace jobworker {

JobEnd ToJobEnd(const JobResult& result, uint64_t started_us);
ResourceLimits ToResourceLimits(const Limits& limits);
// Without usage, input and the number of followers' rights: what a stream's first response and a list have.
JobStatus ToJobStatus(const JobTable& jobs, const JobView& job);
// A stream's first response, but for its offset.
WorkerResponse ToFirstResponse(const JobTable& jobs, const JobView& job);

}  // namespace jobworker
