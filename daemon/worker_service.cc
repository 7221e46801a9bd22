#include "daemon/worker_service.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <charconv>
#include <cstring>

#include "daemon/because.h"
#include "daemon/command_line.h"
#include "daemon/follower.h"
#include "daemon/log.h"

namespace jobworker {

namespace {

void LogInvalid(std::string_view method, std::string_view user, std::string_view reason) {
  Log("invalid request", {{"method", method}, {"user", user}, {"reason", reason}});
}

grpc::Status InvalidArgument(const std::string& what) { return {grpc::StatusCode::INVALID_ARGUMENT, what}; }

tl::expected<void, std::string> CheckStrings(const char* field, const std::vector<std::string>& strings,
                                             size_t max_count, size_t max_bytes) {
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

std::string PathOf(const JobSpec& spec) {
  std::string path = "/usr/local/bin:/usr/bin:/bin";
  for (const std::string& entry : spec.env) {
    if (entry.rfind("PATH=", 0) == 0) path = entry.substr(5);
  }
  return path;
}

std::string ExecFailure(int error, const JobSpec& spec) {
  const std::string& command = spec.argv[0];
  const bool searched = command.find('/') == std::string::npos;
  if (error == ENOENT && searched) {
    return fmt::format("command '{}' was not found in PATH ({})", command, PathOf(spec));
  }
  if (error == ENOENT) return fmt::format("command '{}' does not exist, or the interpreter it names does not", command);
  if (error == EACCES) return fmt::format("command '{}' is not an executable file that you may run", command);
  return fmt::format("command '{}' cannot be executed: {}", command, strerror(error));
}

std::string StopSentence(const JobResult& result) {
  const Exited& exited = result.exited;
  const char* name = exited.cause == EndCause::kSignalled ? sigdescr_np(exited.value) : nullptr;
  return fmt::format("job {} {}: {} {}{}\n", exited.key.id, result.stopped ? "is stopped" : "had ended before",
                     exited.cause == EndCause::kExited ? "exit code" : "signal", exited.value,
                     name != nullptr ? fmt::format(" ({})", name) : "");
}

}  // namespace

tl::expected<JobSpec, std::string> ReadStartRequest(const WorkerStartRequest& request) {
  JobSpec spec;
  spec.env.assign(request.env().begin(), request.env().end());
  if (request.args().empty()) {
    auto words = SplitWords(request.command());
    if (!words) return Because("command: " + words.error());
    spec.argv = std::move(*words);
  } else {
    spec.argv.push_back(request.command());
    spec.argv.insert(spec.argv.end(), request.args().begin(), request.args().end());
  }
  if (spec.argv.empty() || spec.argv[0].empty()) return Because("command: it is empty; name a program to run");
  const auto argv = CheckStrings("command and args", spec.argv, kMaxArguments, kMaxArgumentBytes);
  if (!argv) return Because(argv.error());
  const auto env = CheckStrings("env", spec.env, kMaxEnvironment, kMaxEnvironmentBytes);
  if (!env) return Because(env.error());
  for (const std::string& entry : spec.env) {
    if (entry.find('=') == std::string::npos || entry[0] == '=') return Because("env: an entry is not NAME=VALUE");
  }
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

// Word for word the same for another user's job as for one that never was.
grpc::Status NoJobStatus(NoJob why) {
  switch (why) {
    case NoJob::kUnknown: return {grpc::StatusCode::NOT_FOUND, "you have no job with this id"};
    case NoJob::kBusy:
      return {grpc::StatusCode::RESOURCE_EXHAUSTED, "too many requests wait for the broker; try again in a moment"};
    case NoJob::kGone: break;
  }
  return {grpc::StatusCode::UNAVAILABLE, "the server is being stopped, or its broker is gone; try again later"};
}

grpc::Status StartFailedStatus(const JobFailure& failure, const std::string& user, const JobSpec& spec) {
  if (const NoJob* none = std::get_if<NoJob>(&failure)) return NoJobStatus(*none);
  const StageFailed failed = std::get<StageFailed>(failure);
  if (failed.stage == Stage::kUser) {
    return {grpc::StatusCode::PERMISSION_DENIED, fmt::format("user '{}' is not in the broker's users list", user)};
  }
  if (failed.stage == Stage::kJobs) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            fmt::format("user '{}' has as many jobs as the users list allows (jobs=)", user)};
  }
  if (failed.error == EAGAIN) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            fmt::format("the limit of processes of user '{}' is reached (pids=); stop a job first", user)};
  }
  if (failed.error == EMFILE || failed.error == ENFILE || failed.error == ENOMEM || failed.error == ENOSPC) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, fmt::format("the server's host is short of something: {}: {}",
                                                              StageName(failed.stage), strerror(failed.error))};
  }
  StartFailure detail;
  detail.set_stage(std::string(StageName(failed.stage)));
  detail.set_error(failed.error);
  const std::string message =
      failed.stage == Stage::kExec
          ? ExecFailure(failed.error, spec)
          : fmt::format("the job could not be started: {}: {}", StageName(failed.stage), strerror(failed.error));
  return {grpc::StatusCode::FAILED_PRECONDITION, message, detail.SerializeAsString()};
}

grpc::ServerWriteReactor<WorkerResponse>* WorkerService::JobStart(grpc::CallbackServerContext* context,
                                                                  const WorkerStartRequest* request) {
  const std::shared_ptr<Follower> follower = Follower::Make();
  const auto user = gate_.Admit(*context, Method::kJobStart);
  if (!user) {
    follower->Refuse(user.error());
    return follower.get();
  }
  auto spec = ReadStartRequest(*request);
  if (!spec) {
    LogInvalid("JobStart", *user, spec.error());
    follower->Refuse(InvalidArgument(spec.error()));
    return follower.get();
  }
  loop_.Post([this, follower, user = *user, spec = std::move(*spec)] {
    jobs_.StartJob(user, spec.argv, spec.env, [follower, user, spec](const JobTable::StartResult& started) {
      if (started) return follower->Follow(*started);
      follower->Refuse(StartFailedStatus(started.error(), user, spec));
    });
  });
  return follower.get();
}

grpc::ServerWriteReactor<WorkerResponse>* WorkerService::JobQuery(grpc::CallbackServerContext* context,
                                                                  const WorkerPIDRequest* request) {
  const std::shared_ptr<Follower> follower = Follower::Make();
  const auto user = gate_.Admit(*context, Method::kJobQuery);
  const auto id = ReadJobId(request->pid());
  if (!user || !id) {
    if (user) LogInvalid("JobQuery", *user, id.error());
    follower->Refuse(user ? InvalidArgument(id.error()) : user.error());
    return follower.get();
  }
  Log("query", {{"user", *user}, {"job", request->pid()}});
  loop_.Post([this, follower, key = JobKey{*user, *id}] {
    const auto job = jobs_.Find(key);
    if (job) return follower->Follow(*job);
    follower->Refuse(NoJobStatus(job.error()));
  });
  return follower.get();
}

grpc::ServerUnaryReactor* WorkerService::JobStop(grpc::CallbackServerContext* context, const WorkerPIDRequest* request,
                                                 WorkerResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const auto user = gate_.Admit(*context, Method::kJobStop);
  const auto id = ReadJobId(request->pid());
  if (!user || !id) {
    if (user) LogInvalid("JobStop", *user, id.error());
    reactor->Finish(user ? InvalidArgument(id.error()) : user.error());
    return reactor;
  }
  Log("stop", {{"user", *user}, {"job", request->pid()}});
  loop_.Post([this, reactor, response, key = JobKey{*user, *id}, text = request->pid()] {
    jobs_.StopJob(key, [reactor, response, text](const JobTable::StopResult& result) {
      if (!result) return reactor->Finish(NoJobStatus(result.error()));
      response->set_pid(text);
      response->set_log(StopSentence(*result));
      *response->mutable_end() = ToJobEnd(*result);
      reactor->Finish(grpc::Status::OK);
    });
  });
  return reactor;
}

}  // namespace jobworker
