// What the requests of proto/jobworker.proto ask for, checked: each function's error is a sentence that names the field
// and its bound.
#pragma once
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tl/expected.hpp>
#include <vector>

#include "daemon/follower.h"
#include "daemon/job_table.h"
#include "jobworker.pb.h"

namespace jobworker {

// What a WorkerStartRequest asks for, within the bounds of common/broker_protocol.h. The key is not set.
struct JobSpec {
  Start start;
  JobNote note;
};
tl::expected<JobSpec, std::string> ReadStartRequest(const WorkerStartRequest& request);

// A job id as clients send it: decimal, 1 to 2^64-1, no sign, no leading zero.
tl::expected<uint64_t, std::string> ReadJobId(const std::string& text);
tl::expected<FollowSpec, std::string> ReadFollowRequest(const WorkerPIDRequest& request);
tl::expected<JobTable::StopOrder, std::string> ReadStopRequest(const WorkerPIDRequest& request,
                                                               std::chrono::milliseconds default_grace);
tl::expected<uint8_t, std::string> ReadSignal(const WorkerPIDRequest& request);

struct ListSpec {
  std::set<JobStatus::State> states;  // none: any
  std::map<std::string, std::string> labels;
  size_t page_size = 0;
  uint64_t below = 0;  // ids, of this page
};
tl::expected<ListSpec, std::string> ReadListRequest(const JobListRequest& request);
// The ids, in the order of the request.
tl::expected<std::vector<uint64_t>, std::string> ReadWaitRequest(const JobWaitRequest& request);

// The limits of a start, by the names of the API, with what the kernel and the boundary can take.
struct LimitField {
  LimitIndex index;
  std::string_view name;
  uint64_t least, most;
};
inline constexpr uint64_t kMostBytes = uint64_t{1} << 60;
inline constexpr std::array kLimitFields = {
    LimitField{kCpuLimit, "cpu_milli", 5, UINT32_MAX},
    LimitField{kMemoryLimit, "memory_bytes", 65536, kMostBytes},
    LimitField{kPidsLimit, "pids", 1, 4'194'304},
    LimitField{kReadBytesLimit, "read_bytes_per_second", 1, kMostBytes},
    LimitField{kWriteBytesLimit, "write_bytes_per_second", 1, kMostBytes},
    LimitField{kReadOpsLimit, "read_ops_per_second", 1, kMostBytes},
    LimitField{kWriteOpsLimit, "write_ops_per_second", 1, kMostBytes},
};
static_assert(kLimitFields.size() == kLimitCount);

}  // namespace jobworker
