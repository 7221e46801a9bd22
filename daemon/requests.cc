#include "daemon/requests.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <csignal>

#include "daemon/because.h"
#include "daemon/command_line.h"

namespace jobworker {

namespace {

using Checked = tl::expected<void, std::string>;

constexpr size_t kMaxRequestKey = 64;
constexpr uint64_t kMaxGraceMs = 3'600'000;
constexpr uint64_t kMaxTimeoutMs = 31'536'000'000;
constexpr uint64_t kMinLeaseMs = 1000, kDefaultLeaseMs = 10'000, kMaxLeaseMs = 86'400'000;
constexpr size_t kMaxLabels = 16, kMaxLabelKey = 63, kMaxLabelValue = 255, kMaxLabelBytes = 3072;
// All of them, the longest key and the longest numbers, with protobuf's tags and lengths, are a note.
static_assert(kMaxLabelBytes + kMaxLabels * 8 + kMaxRequestKey + 64 <= kMaxNoteBytes);
constexpr uint32_t kDefaultPage = 100, kMaxPage = 1000;
constexpr int kMaxWaits = 100;

Checked CheckStrings(const char* field, const std::vector<std::string>& strings, size_t max_count, size_t max_bytes) {
  size_t bytes = 0;
  for (const std::string& string : strings) {
    bytes += string.size();
    if (string.find('\0') != std::string::npos) return Because(fmt::format("{}: a NUL byte in it", field));
  }
  if (strings.size() > max_count || bytes > max_bytes) {
    return Because(fmt::format("{}: {} strings with {} bytes; at most {} with {} bytes are taken", field,
                               strings.size(), bytes, max_count, max_bytes));
  }
  return {};
}

Checked CheckDirectory(const std::string& directory) {
  if (directory.empty()) return {};
  if (directory.size() > kMaxDirectoryBytes) {
    return Because(
        fmt::format("directory: it has {} bytes; at most {} are taken", directory.size(), kMaxDirectoryBytes));
  }
  if (directory.find('\0') != std::string::npos) return Because("directory: a NUL byte in it");
  if (directory[0] != '/') return Because("directory: it is not absolute; it must begin with /");
  return {};
}

Checked CheckRange(std::string_view field, uint64_t value, uint64_t least, uint64_t most) {
  if (value >= least && value <= most) return {};
  return Because(fmt::format("{}: {} is not from {} to {}", field, value, least, most));
}

// Of milliseconds; `words` says the bounds in units that people use.
Checked CheckTime(std::string_view field, uint64_t value, uint64_t least, uint64_t most, std::string_view words) {
  if (const auto good = CheckRange(field, value, least, most); !good) {
    return Because(fmt::format("{} ms, {}", good.error(), words));
  }
  return {};
}

// To the broker, 0 is the user's default.
Checked ReadLimits(const ResourceLimits& request, Limits& limits) {
  limits = {request.cpu_milli(),
            request.memory_bytes(),
            request.pids(),
            request.read_bytes_per_second(),
            request.write_bytes_per_second(),
            request.read_ops_per_second(),
            request.write_ops_per_second()};
  const std::array<bool, kLimitCount> asked = {request.has_cpu_milli(),
                                               request.has_memory_bytes(),
                                               request.has_pids(),
                                               request.has_read_bytes_per_second(),
                                               request.has_write_bytes_per_second(),
                                               request.has_read_ops_per_second(),
                                               request.has_write_ops_per_second()};
  for (const LimitField& field : kLimitFields) {
    if (!asked.at(field.index)) continue;
    auto good = CheckRange(fmt::format("limits.{}", field.name), limits.at(field.index), field.least, field.most);
    if (!good) return good;
  }
  return {};
}

bool IsLabelKey(std::string_view key) {
  constexpr std::string_view kAllowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-";
  return !key.empty() && key.size() <= kMaxLabelKey && key.find_first_not_of(kAllowed) == std::string_view::npos;
}

Checked CheckLabels(const google::protobuf::Map<std::string, std::string>& labels) {
  if (labels.size() > kMaxLabels) {
    return Because(fmt::format("labels: there are {}; at most {} are taken", labels.size(), kMaxLabels));
  }
  size_t bytes = 0;
  for (const auto& [key, value] : labels) {
    bytes += key.size() + value.size();
    if (!IsLabelKey(key)) {
      return Because(fmt::format("labels: a key is not 1 to {} characters A-Z a-z 0-9 . _ / -", kMaxLabelKey));
    }
    if (value.size() > kMaxLabelValue) {
      return Because(
          fmt::format("labels: the value of {} has {} bytes; at most {} are taken", key, value.size(), kMaxLabelValue));
    }
  }
  if (bytes <= kMaxLabelBytes) return {};
  return Because(fmt::format("labels: they have {} bytes; at most {} are taken", bytes, kMaxLabelBytes));
}

Checked ReadLease(const WorkerStartRequest& request, JobNote& note) {
  if (!OnDisconnect_IsValid(request.on_disconnect())) return Because("on_disconnect: it is none of those there are");
  if (request.on_disconnect() == ON_DISCONNECT_KEEP) {
    return request.has_lease_ms() ? Checked(Because("lease_ms: it needs on_disconnect to be ON_DISCONNECT_STOP"))
                                  : Checked();
  }
  note.set_lease_ms(request.has_lease_ms() ? request.lease_ms() : kDefaultLeaseMs);
  return CheckTime("lease_ms", note.lease_ms(), kMinLeaseMs, kMaxLeaseMs, "which is a second to a day");
}

Checked ReadNote(const WorkerStartRequest& request, JobNote& note) {
  if (request.request_key().size() > kMaxRequestKey) {
    return Because(fmt::format("request_key: it has {} bytes; at most {} are taken", request.request_key().size(),
                               kMaxRequestKey));
  }
  note.set_request_key(request.request_key());
  if (auto good = CheckLabels(request.labels()); !good) return good;
  *note.mutable_labels() = request.labels();
  if (request.has_timeout_ms()) {
    auto good = CheckTime("timeout_ms", request.timeout_ms(), 1, kMaxTimeoutMs, "which is 365 days");
    if (!good) return good;
    note.set_timeout_ms(request.timeout_ms());
  }
  return ReadLease(request, note);
}

}  // namespace

tl::expected<JobSpec, std::string> ReadStartRequest(const WorkerStartRequest& request) {
  JobSpec spec;
  auto& [key, limits, argv, env, directory, note, want_stdin] = spec.start;
  env.assign(request.env().begin(), request.env().end());
  if (request.args().empty()) {
    auto words = SplitWords(request.command());
    if (!words) return Because("command: " + words.error());
    argv = std::move(*words);
  } else {
    argv.push_back(request.command());
    argv.insert(argv.end(), request.args().begin(), request.args().end());
  }
  if (argv.empty() || argv[0].empty()) return Because("command: it is empty; name a program to run");
  const auto good_argv = CheckStrings("command and args", argv, kMaxArguments, kMaxArgumentBytes);
  if (!good_argv) return Because(good_argv.error());
  const auto good_env = CheckStrings("env", env, kMaxEnvironment, kMaxEnvironmentBytes);
  if (!good_env) return Because(good_env.error());
  for (const std::string& entry : env) {
    if (entry.find('=') == std::string::npos || entry[0] == '=') return Because("env: an entry is not NAME=VALUE");
  }
  const auto good_directory = CheckDirectory(request.directory());
  if (!good_directory) return Because(good_directory.error());
  directory = request.directory();
  const auto good_limits = ReadLimits(request.limits(), limits);
  if (!good_limits) return Because(good_limits.error());
  want_stdin = request.want_stdin() ? 1 : 0;
  const auto good_note = ReadNote(request, spec.note);
  if (!good_note) return Because(good_note.error());
  return spec;
}

tl::expected<uint64_t, std::string> ReadJobId(const std::string& text) {
  uint64_t id = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (code != std::errc() || end != text.data() + text.size() || text[0] == '0') {
    return Because("pid: a job's id is a decimal number from 1 to 18446744073709551615");
  }
  return id;
}

tl::expected<FollowSpec, std::string> ReadFollowRequest(const WorkerPIDRequest& request) {
  FollowSpec spec;
  const int begins =
      (request.offset() != 0 ? 1 : 0) + (request.has_tail_bytes() ? 1 : 0) + (request.has_tail_lines() ? 1 : 0);
  if (begins > 1) return Because("offset, tail_bytes and tail_lines: at most one of them can be given");
  spec.offset = request.offset();
  if (request.has_tail_bytes()) spec.tail_bytes = request.tail_bytes();
  if (request.has_tail_lines()) spec.tail_lines = request.tail_lines();
  if (!WorkerPIDRequest::Streams_IsValid(request.streams())) return Because("streams: it is none of those there are");
  if (request.streams() != WorkerPIDRequest::BOTH) {
    const bool out = request.streams() == WorkerPIDRequest::ONLY_STDOUT;
    spec.only = out ? OutputStream::kStdout : OutputStream::kStderr;
  }
  spec.no_follow = request.no_follow();
  spec.reader = request.reader();
  return spec;
}

tl::expected<JobTable::StopOrder, std::string> ReadStopRequest(const WorkerPIDRequest& request,
                                                               std::chrono::milliseconds default_grace) {
  if (request.signal() < 0 || request.signal() > 64) {
    return Because(fmt::format("signal: {} is none; from 1 to 64, or 0 for SIGTERM", request.signal()));
  }
  if (const auto good = CheckTime("grace_ms", request.grace_ms(), 0, kMaxGraceMs, "which is an hour"); !good) {
    return Because(good.error());
  }
  JobTable::StopOrder order;
  order.signal = static_cast<uint8_t>(request.now() ? 0 : request.signal() == 0 ? SIGTERM : request.signal());
  order.grace = request.has_grace_ms() ? std::chrono::milliseconds(request.grace_ms()) : default_grace;
  return order;
}

tl::expected<uint8_t, std::string> ReadSignal(const WorkerPIDRequest& request) {
  const int32_t signal = request.signal();
  if (signal >= 1 && signal <= 64) return static_cast<uint8_t>(signal);
  return Because(fmt::format("signal: {} is none; from 1 to 64", signal));
}

tl::expected<ListSpec, std::string> ReadListRequest(const JobListRequest& request) {
  ListSpec spec;
  for (const int state : request.states()) {
    if (!JobStatus::State_IsValid(state)) return Because("states: one of them is none of those there are");
    spec.states.insert(static_cast<JobStatus::State>(state));
  }
  if (request.labels().size() > kMaxLabels) {
    return Because(fmt::format("labels: there are {}; at most {} are taken", request.labels().size(), kMaxLabels));
  }
  spec.labels = {request.labels().begin(), request.labels().end()};
  if (request.page_size() > kMaxPage) {
    return Because(fmt::format("page_size: {} is more than {}", request.page_size(), kMaxPage));
  }
  spec.page_size = request.page_size() == 0 ? kDefaultPage : request.page_size();
  if (request.page_token().empty()) {
    spec.below = UINT64_MAX;
    return spec;
  }
  const auto below = ReadJobId(request.page_token());
  if (!below) return Because("page_token: it is not one that this server gave");
  spec.below = *below;
  return spec;
}

tl::expected<std::vector<uint64_t>, std::string> ReadWaitRequest(const JobWaitRequest& request) {
  if (request.pids().empty() || request.pids_size() > kMaxWaits) {
    return Because(fmt::format("pids: there are {}; from 1 to {} are taken", request.pids_size(), kMaxWaits));
  }
  std::vector<uint64_t> ids;
  for (const std::string& pid : request.pids()) {
    const auto id = ReadJobId(pid);
    if (!id) return Because("pids: one of them is not a job's id, a decimal number from 1 to 18446744073709551615");
    if (std::find(ids.begin(), ids.end(), *id) != ids.end())
      return Because(fmt::format("pids: {} is there twice", *id));
    ids.push_back(*id);
  }
  return ids;
}

}  // namespace jobworker
