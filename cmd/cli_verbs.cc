#include "cmd/cli_verbs.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "cmd/cli_follow.h"
#include "cmd/cli_retry.h"
#include "cmd/cli_text.h"

namespace jobworker {
namespace {

void SetLimits(ResourceLimits& limits, const Options& options) {
  if (options.cpu_milli) limits.set_cpu_milli(*options.cpu_milli);
  if (options.memory_bytes) limits.set_memory_bytes(*options.memory_bytes);
  if (options.pids) limits.set_pids(*options.pids);
  if (options.read_rate) limits.set_read_bytes_per_second(*options.read_rate);
  if (options.write_rate) limits.set_write_bytes_per_second(*options.write_rate);
}

// One word goes as `command`, which the server splits; so what must stay one word is quoted.
WorkerStartRequest StartRequest(const Options& options) {
  WorkerStartRequest request;
  const bool quote = options.verbatim && options.words.size() == 1;
  request.set_command(quote ? QuoteWord(options.words[0]) : options.words[0]);
  request.mutable_args()->Add(options.words.begin() + 1, options.words.end());
  request.mutable_env()->Add(options.env.begin(), options.env.end());
  request.set_request_key(RandomBytes(16));  // so that a repeated start joins the job of the first try
  if (options.directory) request.set_directory(*options.directory);
  SetLimits(*request.mutable_limits(), options);
  if (options.timeout_ms) request.set_timeout_ms(*options.timeout_ms);
  request.mutable_labels()->insert(options.labels.begin(), options.labels.end());
  request.set_want_stdin(options.send_stdin);
  if (options.stop_on_disconnect) request.set_on_disconnect(ON_DISCONNECT_STOP);
  if (options.lease_ms) request.set_lease_ms(*options.lease_ms);
  return request;
}

Format FormatOf(const Options& options) {
  if (options.json) return Format::kJson;
  return options.timestamps ? Format::kTimestamps : Format::kPlain;
}

int Start(Session& session, const Options& options) {
  WorkerStartRequest request = StartRequest(options);
  if (options.detach) return StartDetached(session, request, options.json);
  return Follow(session, {std::move(request), {}, FormatOf(options)});
}

int Query(Session& session, const Options& options) {
  WorkerPIDRequest request;
  request.set_pid(options.ids[0]);
  if (options.begin.offset) request.set_offset(*options.begin.offset);
  if (options.begin.tail_bytes) request.set_tail_bytes(*options.begin.tail_bytes);
  if (options.begin.tail_lines) request.set_tail_lines(*options.begin.tail_lines);
  if (options.only_stdout) request.set_streams(WorkerPIDRequest::ONLY_STDOUT);
  if (options.only_stderr) request.set_streams(WorkerPIDRequest::ONLY_STDERR);
  request.set_no_follow(!options.follow);
  return Follow(session, {{}, request, FormatOf(options)});
}

// Puts the id of the user's newest job where @last stands. The exit status when that fails.
std::optional<int> ResolveLast(Session& session, std::vector<std::string>& ids) {
  if (std::find(ids.begin(), ids.end(), "@last") == ids.end()) return std::nullopt;
  JobListRequest request;
  JobListResponse response;
  request.set_page_size(1);
  const grpc::Status status = session.Ask(
      [&](Worker::Stub& stub, grpc::ClientContext* context) { return stub.JobList(context, request, &response); });
  if (!status.ok()) return session.Fail(status);
  if (response.jobs_size() == 0) {
    Say(fmt::format("there is no @last: {} keeps no job of yours", session.GetSettings().server.Name()));
    return kOurFailure;
  }
  std::replace(ids.begin(), ids.end(), std::string("@last"), response.jobs(0).pid());
  return std::nullopt;
}

// Each once, where it was first.
void RemoveRepeated(std::vector<std::string>& ids) {
  std::set<std::string> seen;
  ids.erase(std::remove_if(ids.begin(), ids.end(), [&](const std::string& id) { return !seen.insert(id).second; }),
            ids.end());
}

// What is said when Ctrl-C comes before the server has answered.
std::string LeaveText(Verb verb) {
  switch (verb) {
    case Verb::kStart: return "interrupted before the server answered: the job may have been started or not";
    case Verb::kStop:
    case Verb::kSignal:
    case Verb::kRemove: return "interrupted before the server answered: it may have been done or not";
    default: return "interrupted";
  }
}

int Dispatch(Session& session, const Options& options) {
  switch (options.verb) {
    case Verb::kStart: return Start(session, options);
    case Verb::kQuery: return Query(session, options);
    case Verb::kStop: return StopVerb(session, options);
    case Verb::kList: return ListVerb(session, options);
    case Verb::kStatus: return StatusVerb(session, options);
    case Verb::kWait: return WaitVerb(session, options);
    case Verb::kSignal: return SignalVerb(session, options);
    case Verb::kRemove: return RemoveVerb(session, options);
    case Verb::kWhoAmI: return WhoAmIVerb(session, options);
    case Verb::kVersion: return VersionVerb(session, options);
    case Verb::kConfig:
    case Verb::kCompletion: break;
  }
  return kOurFailure;
}

}  // namespace

void RunVerb(const Options& options, const Settings& settings, Identity identity, IdentityLoader loader) {
  Session session(settings, std::move(identity), std::move(loader), options.reconnect, LeaveText(options.verb));
  Options resolved = options;
  const std::optional<int> failed = ResolveLast(session, resolved.ids);
  RemoveRepeated(resolved.ids);
  _exit(failed ? *failed : Dispatch(session, resolved));
}

}  // namespace jobworker
