#include "daemon/worker_service.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <charconv>
#include <csignal>
#include <cstring>

#include "daemon/api.h"
#include "daemon/because.h"
#include "daemon/command_line.h"
#include "daemon/log.h"

namespace jobworker {

namespace {

constexpr size_t kMaxRequestKey = 64;
constexpr uint64_t kMaxGraceMs = 3'600'000;

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

std::string PathOf(const Start& start) {
  std::string path = "/usr/local/bin:/usr/bin:/bin";
  for (const std::string& entry : start.env) {
    if (entry.rfind("PATH=", 0) == 0) path = entry.substr(5);
  }
  return path;
}

std::string ExecFailure(int error, const Start& start) {
  const std::string& command = start.argv[0];
  const bool searched = command.find('/') == std::string::npos;
  if (error == ENOENT && searched) {
    return fmt::format("command '{}' was not found in PATH ({})", command, PathOf(start));
  }
  if (error == ENOENT) return fmt::format("command '{}' does not exist, or the interpreter it names does not", command);
  if (error == EACCES) return fmt::format("command '{}' is not an executable file that you may run", command);
  return fmt::format("command '{}' cannot be executed: {}", command, strerror(error));
}

std::string StopSentence(const JobResult& result) {
  const Exited& exited = result.exited;
  const char* name = exited.cause == EndCause::kSignalled ? sigdescr_np(exited.value) : nullptr;
  const bool stopped = result.stop.kind != StopKind::kNone;
  if (exited.cause == EndCause::kUnknown)
    return fmt::format("job {} is gone; how it ended is not known\n", exited.key.id);
  return fmt::format("job {} {}: {} {}{}\n", exited.key.id, stopped ? "is stopped" : "had ended before",
                     exited.cause == EndCause::kExited ? "exit code" : "signal", exited.value,
                     name != nullptr ? fmt::format(" ({})", name) : "");
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
  if (request.request_key().size() > kMaxRequestKey) {
    return Because(fmt::format("request_key: it has {} bytes; at most {} are taken", request.request_key().size(),
                               kMaxRequestKey));
  }
  spec.note.set_request_key(request.request_key());
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
  return spec;
}

tl::expected<JobTable::StopOrder, std::string> ReadStopRequest(const WorkerPIDRequest& request,
                                                               std::chrono::milliseconds default_grace) {
  if (request.signal() < 0 || request.signal() > 64) {
    return Because(fmt::format("signal: {} is none; from 1 to 64, or 0 for SIGTERM", request.signal()));
  }
  if (request.grace_ms() > kMaxGraceMs) {
    return Because(fmt::format("grace_ms: {} is more than an hour ({})", request.grace_ms(), kMaxGraceMs));
  }
  JobTable::StopOrder order;
  order.signal = static_cast<uint8_t>(request.now() ? 0 : request.signal() == 0 ? SIGTERM : request.signal());
  order.grace = request.has_grace_ms() ? std::chrono::milliseconds(request.grace_ms()) : default_grace;
  return order;
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

grpc::Status StartFailedStatus(const JobFailure& failure, const std::string& user, const Start& start) {
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
          ? ExecFailure(failed.error, start)
          : fmt::format("the job could not be started: {}: {}", StageName(failed.stage), strerror(failed.error));
  return {grpc::StatusCode::FAILED_PRECONDITION, message, detail.SerializeAsString()};
}

namespace {

template <class Request>
class RequestHandler : public CallHandler {
 public:
  using Then = std::function<void(const std::shared_ptr<Call>&, const Request&)>;
  RequestHandler(std::shared_ptr<Call> call, Then then) : call_(std::move(call)), then_(std::move(then)) {}
  void OnMessage(std::optional<grpc::ByteBuffer> message) override {
    Request request;
    if (message && FromBuffer(*message, request)) return then_(call_, request);
    call_->Finish({grpc::StatusCode::INVALID_ARGUMENT, "the request is not a message of this method"});
  }
  void OnOver() override { call_ = nullptr; }

 private:
  std::shared_ptr<Call> call_;
  const Then then_;
};

}  // namespace

void WorkerService::Answer(const CallPtr& call) {
  const MethodRow* const row = FindMethod(call->method());
  const auto user = gate_.Admit(call->context(), row);
  if (!user) return call->Finish(user.error());
  switch (row->method) {
    case Method::kJobStart: return Read<WorkerStartRequest>(call, *user, &WorkerService::JobStart);
    case Method::kJobStop: return Read<WorkerPIDRequest>(call, *user, &WorkerService::JobStop);
    case Method::kJobQuery: return Read<WorkerPIDRequest>(call, *user, &WorkerService::JobQuery);
  }
}

template <class Request>
void WorkerService::Read(const CallPtr& call, const std::string& user,
                         void (WorkerService::*then)(const CallPtr&, const std::string&, const Request&)) {
  call->Use(std::make_shared<RequestHandler<Request>>(
      call,
      [this, user, then](const CallPtr& reader, const Request& request) { (this->*then)(reader, user, request); }));
  call->ReadNext();
}

void WorkerService::RefuseRequest(const CallPtr& call, const std::string& user, const std::string& why) {
  Log("invalid request", {{"method", call->method()}, {"user", user}, {"reason", why}});
  call->Finish({grpc::StatusCode::INVALID_ARGUMENT, why});
}

void WorkerService::JobStart(const CallPtr& call, const std::string& user, const WorkerStartRequest& request) {
  auto spec = ReadStartRequest(request);
  if (!spec) return RefuseRequest(call, user, spec.error());
  const auto follower = std::make_shared<Follower>(call, FollowSpec{});
  call->Use(follower);
  loop_.Post([this, follower, user, spec = std::move(*spec)] {
    jobs_.StartJob(user, spec.start, spec.note, [this, follower, user, start = spec.start](const auto& started) {
      if (started) return follower->Follow(*started, ToFirstResponse(jobs_, **started));
      follower->Refuse(StartFailedStatus(started.error(), user, start));
    });
  });
}

void WorkerService::JobQuery(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request) {
  const auto id = ReadJobId(request.pid());
  if (!id) return RefuseRequest(call, user, id.error());
  const auto spec = ReadFollowRequest(request);
  if (!spec) return RefuseRequest(call, user, spec.error());
  const auto follower = std::make_shared<Follower>(call, *spec);
  call->Use(follower);
  loop_.Post([this, follower, key = JobKey{user, *id}, offset = spec->offset] {
    const auto job = jobs_.Find(key);
    if (!job) return follower->Refuse(NoJobStatus(job.error()));
    const uint64_t end = (*job)->journal->range().end;
    if (offset > end && (*job)->phase == JobView::Phase::kEnded) {
      return follower->Refuse({grpc::StatusCode::INVALID_ARGUMENT,
                               fmt::format("offset: {} is beyond the job's output, which ends at {}", offset, end)});
    }
    follower->Follow(*job, ToFirstResponse(jobs_, **job));
  });
}

void WorkerService::JobStop(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request) {
  const auto id = ReadJobId(request.pid());
  if (!id) return RefuseRequest(call, user, id.error());
  const auto order = ReadStopRequest(request, jobs_.stop_grace());
  if (!order) return RefuseRequest(call, user, order.error());
  loop_.Post([this, call, key = JobKey{user, *id}, order = *order] {
    jobs_.StopJob(key, order, [this, call, key](const JobTable::StopResult& result) {
      if (!result) return call->Finish(NoJobStatus(result.error()));
      const auto job = jobs_.Find(key);
      WorkerResponse response;
      response.set_pid(std::to_string(key.id));
      response.set_log(StopSentence(*result));
      *response.mutable_end() = ToJobEnd(*result, job ? (*job)->started_us : 0);
      call->WriteAndFinish(ToBuffer(response));
    });
  });
}

}  // namespace jobworker
