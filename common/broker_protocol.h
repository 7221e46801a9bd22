// What crosses the boundary between the front end and the broker: all of it, and nothing else.
//
// One message is one SOCK_SEQPACKET datagram: a type byte, then the fields of its struct in the order of its
// Fields() (see byte_io.h). Requests carry no descriptors; Started and Job carry exactly kOutputDescriptors, the
// read ends of the job's stdout and stderr, in that order. Any change here changes kProtocolVersion.
#pragma once
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/byte_io.h"

namespace jobworker {

inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr size_t kMaxMessageBytes = 64 * 1024;
inline constexpr size_t kMaxUserName = 32;
inline constexpr size_t kMaxArguments = 1024;
inline constexpr size_t kMaxArgumentBytes = 40 * 1024;  // all of argv, without prefixes
inline constexpr size_t kMaxEnvironment = 256;
inline constexpr size_t kMaxEnvironmentBytes = 16 * 1024;
inline constexpr size_t kOutputDescriptors = 2;
inline constexpr uint64_t kUnlimited = UINT64_MAX;
static_assert(kMaxArgumentBytes + kMaxEnvironmentBytes + 4 * (kMaxArguments + kMaxEnvironment) + 1024 <=
              kMaxMessageBytes);

// [a-z_][a-z0-9_-]{0,31}: the only form a user's name has, in a certificate, in a message and in the users list.
constexpr bool IsUserName(std::string_view name) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; };
  if (name.empty() || name.size() > kMaxUserName || !is_letter(name[0])) return false;
  for (const char c : name) {
    if (!is_letter(c) && !(c >= '0' && c <= '9') && c != '-') return false;
  }
  return true;
}

// A job's name for its whole life. `id` counts from 1 for each user; a key is never used twice on one connection's
// behalf while the broker still holds the job.
struct JobKey {
  std::string user;
  uint64_t id = 0;
  auto operator<=>(const JobKey&) const = default;
  void Fields(auto& io) {
    io.String(user, kMaxUserName);
    io.Number(id);
    io.Check(IsUserName(user) && id != 0);
  }
};

// In a Start, 0 asks for the user's default. In a reply, the value the kernel gave back; kUnlimited for "max".
struct Limits {
  uint64_t cpu_quota_us = 0;  // cpu.max: microseconds of CPU time in each period
  uint64_t cpu_period_us = 0;
  uint64_t memory_bytes = 0;  // memory.max
  uint64_t pids = 0;          // pids.max
  uint64_t read_bytes = 0;    // io.max rbps, wbps, riops, wiops
  uint64_t write_bytes = 0;
  uint64_t read_ops = 0;
  uint64_t write_ops = 0;
  bool operator==(const Limits&) const = default;
  void Fields(auto& io) {
    for (uint64_t* field : {&cpu_quota_us, &cpu_period_us, &memory_bytes, &pids}) io.Number(*field);
    for (uint64_t* field : {&read_bytes, &write_bytes, &read_ops, &write_ops}) io.Number(*field);
  }
};

// Bits of `missing` below: a controller that does not act on the job (--missing-controllers=warn only).
enum Controller : uint8_t { kCpu = 1, kIo = 2, kMemory = 4, kPids = 8, kAllControllers = 15 };

// The cgroup's counters. 0 where the kernel does not count it.
struct Counters {
  uint64_t cpu_user_us = 0;
  uint64_t cpu_system_us = 0;
  uint64_t memory_peak = 0;  // bytes
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
  uint64_t pids_peak = 0;
  void Fields(auto& io) {
    for (uint64_t* field : {&cpu_user_us, &cpu_system_us, &memory_peak}) io.Number(*field);
    for (uint64_t* field : {&read_bytes, &write_bytes, &pids_peak}) io.Number(*field);
  }
};

enum class RequestType : uint8_t { kHello, kStart, kSignal, kKill, kUsage, kForget };
inline constexpr size_t kRequestTypes = 6;
enum class ReplyType : uint8_t { kWelcome = 64, kJob, kStarted, kFailed, kExited, kUsageIs };

// What was being done when an operation failed. The first group happens in the broker, the second in the child.
enum class Stage : uint8_t {
  kUnknownUser,
  kLimitAboveCeiling,
  kTooManyJobs,
  kCgroup,
  kLimits,
  kPipe,
  kClone,
  kSignal,
  kKill,
  kSession,
  kDescriptors,
  kResourceLimits,
  kOomScore,
  kCapabilities,
  kIdentity,
  kNoNewPrivileges,
  kDirectory,
  kFilter,
  kExec
};

struct Hello {
  static constexpr auto kType = RequestType::kHello;
  uint32_t version = kProtocolVersion;
  void Fields(auto& io) { io.Number(version); }
};
// argv[0] is looked up in the job's PATH unless it has a slash; env entries are NAME=VALUE and come after, and
// instead of, the broker's own of the same name.
struct Start {
  static constexpr auto kType = RequestType::kStart;
  JobKey key;
  Limits limits;
  std::vector<std::string> argv;
  std::vector<std::string> env;
  void Fields(auto& io) {
    key.Fields(io);
    limits.Fields(io);
    io.Strings(argv, kMaxArguments, kMaxArgumentBytes);
    io.Check(!argv.empty() && !argv[0].empty());
    io.Strings(env, kMaxEnvironment, kMaxEnvironmentBytes);
    for (const std::string& entry : env) io.Check(entry.find('=') != std::string::npos && entry[0] != '=');
  }
};
// Sends `number` (1 to 64) to the job's main process. No reply unless it fails; on a job that has ended it fails
// with ESRCH.
struct Signal {
  static constexpr auto kType = RequestType::kSignal;
  JobKey key;
  uint8_t number = 0;
  void Fields(auto& io) {
    key.Fields(io);
    io.Number(number);
    io.Check(number >= 1 && number <= 64);
  }
};
// The requests that name a job and nothing else. Kill: SIGKILL to everything in the job's cgroup, no reply unless it
// fails. Usage: answered by UsageIs. Forget: an ended job's record and descriptors, no reply.
template <RequestType type>
struct JobRequest {
  static constexpr auto kType = type;
  JobKey key;
  void Fields(auto& io) { key.Fields(io); }
};
using Kill = JobRequest<RequestType::kKill>;
using UsageRequest = JobRequest<RequestType::kUsage>;
using Forget = JobRequest<RequestType::kForget>;
using Request = std::variant<Hello, Start, Signal, Kill, UsageRequest, Forget>;

// The answer to Hello; a Job (and its Exited, when it has ended) follows for every job the broker holds.
struct Welcome {
  static constexpr auto kType = ReplyType::kWelcome;
  uint32_t version = kProtocolVersion;
  uint8_t missing = 0;
  uint32_t job_count = 0;  // how many Job messages follow
  void Fields(auto& io) {
    io.Number(version);
    io.Number(missing);
    io.Number(job_count);
  }
};
// A job that runs, with its effective limits. Started answers a Start; Job is a replay after Hello.
template <ReplyType type>
struct RunningJob {
  static constexpr auto kType = type;
  JobKey key;
  Limits limits;
  uint8_t missing = 0;
  void Fields(auto& io) {
    key.Fields(io);
    limits.Fields(io);
    io.Number(missing);
  }
};
using Started = RunningJob<ReplyType::kStarted>;
using Job = RunningJob<ReplyType::kJob>;
// A Start, Signal or Kill that did not succeed. After a failed Start the broker no longer knows the key.
struct Failed {
  static constexpr auto kType = ReplyType::kFailed;
  JobKey key;
  RequestType request = RequestType::kStart;
  Stage stage = Stage::kCgroup;
  uint32_t error = 0;  // errno
  void Fields(auto& io) {
    key.Fields(io);
    io.Number(request);
    io.Check(request <= RequestType::kForget);
    io.Number(stage);
    io.Check(stage <= Stage::kExec);
    io.Number(error);
  }
};
enum class EndCause : uint8_t { kExited, kSignalled };
enum class OomLevel : uint8_t { kNone, kJob, kUser };
// Sent once for each job, when its cgroup is empty and removed.
struct Exited {
  static constexpr auto kType = ReplyType::kExited;
  JobKey key;
  EndCause cause = EndCause::kExited;
  uint8_t value = 0;  // exit code or signal number
  uint8_t core_dumped = 0;
  OomLevel oom_level = OomLevel::kNone;
  uint32_t oom_kills = 0;
  uint32_t leftovers = 0;  // processes alive when the main one ended, killed by the broker
  Counters counters;
  void Fields(auto& io) {
    key.Fields(io);
    io.Number(cause);
    io.Check(cause <= EndCause::kSignalled);
    io.Number(value);
    io.Number(core_dumped);
    io.Number(oom_level);
    io.Check(oom_level <= OomLevel::kUser);
    io.Number(oom_kills);
    io.Number(leftovers);
    counters.Fields(io);
  }
};
struct UsageIs {
  static constexpr auto kType = ReplyType::kUsageIs;
  JobKey key;
  Counters counters;
  void Fields(auto& io) {
    key.Fields(io);
    counters.Fields(io);
  }
};
using Reply = std::variant<Welcome, Job, Started, Failed, Exited, UsageIs>;

template <class Message>
std::string Encode(Message message) {
  ByteWriter writer;
  writer.Number(Message::kType);
  message.Fields(writer);
  return writer.Take();
}

// Nothing when the datagram is not exactly one valid message of a type in Variant (Request or Reply).
template <class Variant, size_t index = 0>
std::optional<Variant> Decode(std::string_view datagram) {
  if constexpr (index == std::variant_size_v<Variant>) {
    return std::nullopt;
  } else {
    std::variant_alternative_t<index, Variant> message;
    auto type = message.kType;
    ByteReader reader(datagram);
    reader.Number(type);
    if (type != message.kType) return Decode<Variant, index + 1>(datagram);
    message.Fields(reader);
    if (!reader.Finish()) return std::nullopt;
    return message;
  }
}

}  // namespace jobworker
