// What crosses the boundary between the front end and the broker: all of it, and nothing else.
// One message is one SOCK_SEQPACKET datagram: a type byte, then the fields of its struct in the order of its Fields()
// (see byte_io.h). Requests carry no descriptors; Started and Job carry exactly DescriptorsOf(), in the order of
// DescriptorIndex. Any change here changes kProtocolVersion.
#pragma once
#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/byte_io.h"

namespace jobworker {
inline constexpr uint32_t kProtocolVersion = 4;
inline constexpr size_t kMaxMessageBytes = 64 * 1024;
inline constexpr size_t kMaxUserName = 32;
inline constexpr size_t kMaxArguments = 1024;
inline constexpr size_t kMaxArgumentBytes = 36 * 1024;  // all of argv, without prefixes
inline constexpr size_t kMaxEnvironment = 256;
inline constexpr size_t kMaxEnvironmentBytes = 16 * 1024;
inline constexpr size_t kMaxDirectoryBytes = 1024;
inline constexpr size_t kMaxNoteBytes = 4 * 1024;
inline constexpr uint64_t kUnlimited = UINT64_MAX;
static_assert(kMaxArgumentBytes + kMaxEnvironmentBytes + 4 * (kMaxArguments + kMaxEnvironment) + kMaxDirectoryBytes +
                  kMaxNoteBytes + 1024 <=
              kMaxMessageBytes);

// The read ends of the job's stdout and stderr; the two memfds of its journal, made by the broker, which writes to the
// second, at kJournalStart and once, the length (32 bits) and the bytes of the Start that made the job, and never reads
// either; and the write end of its stdin, when the Start asked for one, with the first message that is sent of the job.
enum DescriptorIndex : size_t { kStdout, kStderr, kJournalData, kJournalIndex, kStdin, kMaxDescriptors };
inline constexpr size_t kJournalStart = 512;

// [a-z_][a-z0-9_-]{0,31}: the only form a user's name has, in a certificate, in a message and in the users list.
constexpr bool IsUserName(std::string_view name) {
  constexpr std::string_view kFirst = "abcdefghijklmnopqrstuvwxyz_", kOther = "abcdefghijklmnopqrstuvwxyz_0123456789-";
  return !name.empty() && name.size() <= kMaxUserName && kFirst.find(name[0]) != name.npos &&
         name.find_first_not_of(kOther) == name.npos;
}

// A job's name. `id` counts from 1 for each user; a key is free again only after Forget or a failed Start.
struct JobKey {
  std::string user;
  uint64_t id = 0;
  auto operator<=>(const JobKey&) const = default;
  void Fields(auto& io) {
    io.String(user, kMaxUserName);
    All(io, id);
    io.Check(IsUserName(user) && id != 0);
  }
};

// One number for each limit; a larger one is always looser. In a Start, 0 asks for the user's default. In a reply,
// what the kernel gave back; kUnlimited for "max". cpu.max is in thousandths of one CPU, over periods of kCpuPeriodUs,
// memory.max in bytes, io.max (rbps, wbps, riops, wiops) in bytes and operations a second.
// clang-format off
enum LimitIndex : size_t {
  kCpuLimit, kMemoryLimit, kPidsLimit, kReadBytesLimit, kWriteBytesLimit, kReadOpsLimit, kWriteOpsLimit, kLimitCount
};
// clang-format on
using Limits = std::array<uint64_t, kLimitCount>;
inline constexpr uint64_t kCpuPeriodUs = 200'000;
// Bits of `missing` below: a controller that does not act on the job (--missing-controllers=warn only).
enum Controller : uint8_t { kCpu = 1, kIo = 2, kMemory = 4, kPids = 8, kAllControllers = 15 };
// The cgroup's counters; 0 where the kernel does not count it. Times in microseconds, memory and io in bytes.
enum CounterIndex : size_t { kCpuUser, kCpuSystem, kMemoryPeak, kReadBytes, kWriteBytes, kPidsPeak, kCounterCount };
using Counters = std::array<uint64_t, kCounterCount>;

enum class RequestType : uint8_t { kHello, kPing, kStart, kSignal, kKill, kUsage, kForget, kWhoIs };
enum class ReplyType : uint8_t { kWelcome = 64, kPong, kJob, kStarted, kFailed, kExited, kUsageIs, kUserIs };

// What failed, beside an errno: kUser is not in the users list, kCeiling a limit above the user's, kJobs its jobs=.
// From kSetUp (session, descriptors, rlimits) on it happened in the child.
// clang-format off
enum class Stage : uint8_t {
  kUser, kCeiling, kJobs, kCgroup, kLimits, kPipe, kClone, kSignal, kKill, kSetUp, kIdentity, kDirectory, kFilter, kExec
};
// clang-format on

struct Hello {
  static constexpr auto kType = RequestType::kHello;
  uint32_t version = kProtocolVersion;
  void Fields(auto& io) { All(io, version); }
};
// Answered by Pong once all that was sent before has been handled.
struct Ping {
  static constexpr auto kType = RequestType::kPing;
  void Fields(auto&) {}
};
// argv[0] is looked up in the job's PATH unless it has a slash. env entries are NAME=VALUE and replace the broker's own
// of the same name. `directory` is entered by the job's user after the user's own; empty: that one. `note` is any
// bytes of the front end's; the broker keeps them in the journal and does not look at them.
struct Start {
  static constexpr auto kType = RequestType::kStart;
  JobKey key;
  Limits limits{};
  std::vector<std::string> argv, env;
  std::string directory{}, note{};
  uint8_t want_stdin = 0;
  void Fields(auto& io) {
    All(io, key, limits, want_stdin);
    io.Strings(argv, kMaxArguments, kMaxArgumentBytes);
    io.Strings(env, kMaxEnvironment, kMaxEnvironmentBytes);
    io.String(directory, kMaxDirectoryBytes);
    io.Bytes(note, kMaxNoteBytes);
    io.Check(!argv.empty() && !argv[0].empty() && want_stdin <= 1);
    for (const std::string& entry : env) io.Check(entry.find('=') != std::string::npos && entry[0] != '=');
  }
};
// To the job's main process. No reply unless it fails; ESRCH when the process has ended.
struct Signal {
  static constexpr auto kType = RequestType::kSignal;
  JobKey key;
  uint8_t number = 0;  // 1 to 64
  void Fields(auto& io) {
    All(io, key, number);
    io.Check(number >= 1 && number <= 64);
  }
};
// Kill: SIGKILL to all of the job's cgroup; no reply unless it fails. Usage: answered by UsageIs. Forget: drops an
// ended job's record and descriptors; no reply.
template <RequestType type>
struct JobRequest {
  static constexpr auto kType = type;
  JobKey key;
  void Fields(auto& io) { All(io, key); }
};
using Kill = JobRequest<RequestType::kKill>;
using UsageRequest = JobRequest<RequestType::kUsage>;
using Forget = JobRequest<RequestType::kForget>;
// What the list says of a user; answered by UserIs.
struct WhoIs {
  static constexpr auto kType = RequestType::kWhoIs;
  std::string user;
  void Fields(auto& io) {
    io.String(user, kMaxUserName);
    io.Check(IsUserName(user));
  }
};
using Request = std::variant<Hello, Ping, Start, Signal, Kill, UsageRequest, Forget, WhoIs>;

// The answer to Hello. A Job, and its Exited when it has ended, follows for each of the job_count jobs the broker
// holds.
struct Welcome {
  static constexpr auto kType = ReplyType::kWelcome;
  uint32_t version = kProtocolVersion;
  uint8_t missing = 0;
  uint32_t job_count = 0;
  void Fields(auto& io) { All(io, version, missing, job_count); }
};
struct Pong {
  static constexpr auto kType = ReplyType::kPong;
  void Fields(auto&) {}
};
// A job with its effective limits and the time of its birth, UTC in microseconds, as in Exited. Started answers a Start
// once exec succeeded; Job is the replay after Hello, also of one that is starting: Started or Failed follows.
template <ReplyType type>
struct HeldJob {
  static constexpr auto kType = type;
  JobKey key;
  Limits limits{};
  uint8_t missing = 0;
  uint8_t has_stdin = 0;
  uint64_t started_us = 0;
  uint8_t starting = 0;
  void Fields(auto& io) {
    All(io, key, limits, missing, has_stdin, started_us, starting);
    io.Check(has_stdin <= 1 && starting <= 1);
  }
};
using Started = HeldJob<ReplyType::kStarted>;
using Job = HeldJob<ReplyType::kJob>;
// A Start, Signal or Kill that did not succeed. After a failed Start the broker no longer knows the key.
struct Failed {
  static constexpr auto kType = ReplyType::kFailed;
  JobKey key;
  RequestType request = RequestType::kStart;
  Stage stage = Stage::kCgroup;
  uint32_t error = 0;  // errno
  void Fields(auto& io) {
    All(io, key, request, stage, error);
    io.Check(request <= RequestType::kForget && stage <= Stage::kExec);
  }
};
enum class EndCause : uint8_t { kExited, kSignalled, kUnknown };  // kUnknown: it ended while there was no broker
enum class OomLevel : uint8_t { kNone, kJob, kUser };
// Once for each job, when its cgroup is empty and removed.
struct Exited {
  static constexpr auto kType = ReplyType::kExited;
  JobKey key;
  EndCause cause = EndCause::kExited;
  uint8_t value = 0;  // exit code or signal number
  uint8_t core_dumped = 0;
  OomLevel oom_level = OomLevel::kNone;  // whose memory limit the OOM killer acted for
  uint32_t oom_kills = 0;
  uint32_t leftovers = 0;  // processes alive when the main one ended, killed by the broker
  uint64_t ended_us = 0;   // when the main one ended
  Counters counters{};
  void Fields(auto& io) {
    All(io, key, cause, value, core_dumped, oom_level, oom_kills, leftovers, ended_us, counters);
    io.Check(cause <= EndCause::kUnknown && oom_level <= OomLevel::kUser);
  }
};
struct UsageIs {
  static constexpr auto kType = ReplyType::kUsageIs;
  JobKey key;
  Counters counters{};
  void Fields(auto& io) { All(io, key, counters); }
};
// One who is not in the list is not `known`, and all else is 0. `jobs` counts those that run or wait for Forget;
// `ceiling` is what the kernel took.
struct UserIs {
  static constexpr auto kType = ReplyType::kUserIs;
  std::string user;
  uint8_t known = 0, missing = 0;
  uint32_t jobs = 0, max_jobs = 0;
  Limits ceiling{}, defaults{};
  void Fields(auto& io) {
    io.String(user, kMaxUserName);
    All(io, known, missing, jobs, max_jobs, ceiling, defaults);
    io.Check(IsUserName(user) && known <= 1);
  }
};
using Reply = std::variant<Welcome, Pong, Job, Started, Failed, Exited, UsageIs, UserIs>;

// How many descriptors come with a reply.
template <class Message>
constexpr size_t DescriptorsOf(const Message& message) {
  if constexpr (requires { message.has_stdin; }) return message.has_stdin != 0 ? kMaxDescriptors : kStdin;
  return 0;
}

template <class Message, class Type = std::remove_const_t<decltype(Message::kType)>>
std::string Encode(Message message, Type type = Message::kType) {
  ByteIo io;
  io.Number(type);
  message.Fields(io);
  return io.Take();
}

// Nothing when the datagram is not exactly one valid message of a type in Variant (Request or Reply).
template <class Variant, size_t index = 0>
std::optional<Variant> Decode(std::string_view datagram) {
  if constexpr (index == std::variant_size_v<Variant>) {
    return std::nullopt;
  } else {
    std::variant_alternative_t<index, Variant> message;
    auto type = message.kType;
    ByteIo io(datagram);
    io.Number(type);
    if (type != message.kType) return Decode<Variant, index + 1>(datagram);
    message.Fields(io);
    return io.Finish() ? std::optional<Variant>(std::move(message)) : std::nullopt;
  }
}
}  // namespace jobworker
