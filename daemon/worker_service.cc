#include "daemon/worker_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "daemon/api.h"
#include "daemon/clock.h"
#include "daemon/input_call.h"
#include "daemon/job_waiter.h"
#include "daemon/log.h"
#include "daemon/reflection.h"
#include "daemon/requests.h"
#include "daemon/signal_text.h"

namespace jobworker {

namespace {

template <class Request>
class RequestHandler : public CallHandler {
 public:
  using Then = std::function<void(const std::shared_ptr<Call>&, const Request&)>;
  RequestHandler(std::shared_ptr<Call> call, Then then) : call_(std::move(call)), then_(std::move(then)) {}
  void OnMessage(const std::optional<grpc::ByteBuffer>& message) override {
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

WorkerService::WorkerService(Gate& gate, OpenCalls& open_calls, EventLoop& loop, JobTable& jobs, bool reflection)
    : gate_(gate),
      open_calls_(open_calls),
      loop_(loop),
      jobs_(jobs),
      reflection_(reflection),
      health_(loop, jobs),
      started_us_(NowUs()) {}

void WorkerService::Answer(const CallPtr& call) {
  const MethodRow* const row = FindMethod(call->method());
  const auto caller = gate_.Admit(call->context(), row);
  if (!caller) return call->Finish(caller.error());
  open_calls_.LetIn(*caller);
  const std::string& user = caller->user;
  switch (row->method) {
    case Method::kJobStart: return Read(call, user, &WorkerService::JobStart);
    case Method::kJobStop: return Read(call, user, &WorkerService::JobStop);
    case Method::kJobSignal: return Read(call, user, &WorkerService::JobSignal);
    case Method::kJobRemove: return Read(call, user, &WorkerService::JobRemove);
    case Method::kJobQuery: return Read(call, user, &WorkerService::JobQuery);
    case Method::kJobInput: return Handle(call, std::make_shared<InputCall>(loop_, call, jobs_, user));
    case Method::kJobStatusOf: return Read(call, user, &WorkerService::JobStatusOf);
    case Method::kJobList: return Read(call, user, &WorkerService::JobList);
    case Method::kJobWait: return Read(call, user, &WorkerService::JobWait);
    case Method::kWhoAmI: return Read(call, user, &WorkerService::WhoAmI);
    case Method::kServerVersion: return Read(call, user, &WorkerService::ServerVersion);
    case Method::kHealthCheck: return Read(call, user, &WorkerService::HealthCheck);
    case Method::kHealthWatch: return Read(call, user, &WorkerService::HealthWatch);
    case Method::kReflect:
      if (reflection_) return Handle(call, std::make_shared<Reflection>(call));
      return call->Finish({grpc::StatusCode::UNIMPLEMENTED, "reflection is off; jobserver --reflection turns it on"});
  }
}

void WorkerService::Handle(const CallPtr& call, std::shared_ptr<CallHandler> handler) {
  call->Use(std::move(handler));
  call->ReadNext();
}

template <class Request>
void WorkerService::Read(const CallPtr& call, const std::string& user,
                         void (WorkerService::*then)(const CallPtr&, const std::string&, const Request&)) {
  Handle(call, std::make_shared<RequestHandler<Request>>(
                   call, [this, user, then](const CallPtr& reader, const Request& request) {
                     (this->*then)(reader, user, request);
                   }));
}

void WorkerService::RefuseRequest(const CallPtr& call, const std::string& user, const std::string& why) {
  Log("invalid request", {{"method", call->method()}, {"user", user}, {"reason", why}});
  call->Finish({grpc::StatusCode::INVALID_ARGUMENT, why});
}

// A follower of a job of its user's, which holds up the job's lease.
void WorkerService::Follow(const std::shared_ptr<Follower>& follower, const JobTable::View& job) {
  const JobKey key = job->key;
  const auto left = [this, key] { loop_.Post([this, key] { jobs_.Leave(key); }); };
  if (follower->Follow(job, ToFirstResponse(jobs_, *job), left)) jobs_.Follow(key);
}

// Goes on with the job's key on the loop's thread.
void WorkerService::WithJob(const CallPtr& call, const std::string& user, const std::string& pid,
                            std::function<void(const JobKey&)> then) {
  const auto id = ReadJobId(pid);
  if (!id) return RefuseRequest(call, user, id.error());
  loop_.Post([key = JobKey{user, *id}, then = std::move(then)] { then(key); });
}

void WorkerService::JobStart(const CallPtr& call, const std::string& user, const WorkerStartRequest& request) {
  auto spec = ReadStartRequest(request);
  if (!spec) return RefuseRequest(call, user, spec.error());
  FollowSpec all;
  all.reader = request.reader();
  const auto follower = std::make_shared<Follower>(call, all);
  call->Use(follower);
  loop_.Post([this, follower, user, spec = std::move(*spec)] {
    jobs_.StartJob(user, spec.start, spec.note, [this, follower, user, start = spec.start](const auto& started) {
      if (started) return Follow(follower, *started);
      const StageFailed* const failed = std::get_if<StageFailed>(&started.error());
      if (failed == nullptr || failed->stage != Stage::kCeiling) {
        return follower->Refuse(StartFailedStatus(started.error(), user, start));
      }
      jobs_.WhoIs(user, [follower, asked = start.limits](const tl::expected<UserIs, NoJob>& is) {
        follower->Refuse(is ? AboveCeilingStatus(asked, *is) : NoJobStatus(is.error()));
      });
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
    Follow(follower, *job);
  });
}

void WorkerService::JobStop(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request) {
  const auto order = ReadStopRequest(request, jobs_.stop_grace());
  if (!order) return RefuseRequest(call, user, order.error());
  WithJob(call, user, request.pid(), [this, call, order = *order](const JobKey& key) {
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

namespace {

const grpc::Status kHasEnded{grpc::StatusCode::FAILED_PRECONDITION, "the job has ended"};

void Say(const std::shared_ptr<Call>& call, const JobKey& key, const std::string& sentence) {
  WorkerResponse response;
  response.set_pid(std::to_string(key.id));
  response.set_log(sentence + "\n");
  call->WriteAndFinish(ToBuffer(response));
}

}  // namespace

void WorkerService::JobSignal(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request) {
  const auto signal = ReadSignal(request);
  if (!signal) return RefuseRequest(call, user, signal.error());
  WithJob(call, user, request.pid(), [this, call, number = *signal](const JobKey& key) {
    jobs_.SignalJob(key, number, [call, key, number](const tl::expected<int, NoJob>& error) {
      if (!error) return call->Finish(NoJobStatus(error.error()));
      if (*error == ESRCH) return call->Finish(kHasEnded);
      if (*error != 0) {
        return call->Finish({grpc::StatusCode::FAILED_PRECONDITION,
                             fmt::format("signal {} was not sent: {}", number, strerror(*error))});
      }
      Log("job signalled", {{"user", key.user}, {"job", std::to_string(key.id)}, {"signal", std::to_string(number)}});
      Say(call, key, fmt::format("job {} got {}", key.id, SignalText(number)));
    });
  });
}

void WorkerService::JobRemove(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request) {
  WithJob(call, user, request.pid(), [this, call](const JobKey& key) {
    const auto removed = jobs_.RemoveJob(key);
    if (!removed) return call->Finish(NoJobStatus(removed.error()));
    if (!*removed) {
      return call->Finish(
          {grpc::StatusCode::FAILED_PRECONDITION, "the job has not ended; stop it first, or wait for its end"});
    }
    Log("job removed", {{"user", key.user}, {"job", std::to_string(key.id)}});
    Say(call, key, fmt::format("job {} and its output are forgotten", key.id));
  });
}

void WorkerService::JobStatusOf(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request) {
  WithJob(call, user, request.pid(), [this, call](const JobKey& key) {
    const auto job = jobs_.Find(key);
    if (!job) return call->Finish(NoJobStatus(job.error()));
    jobs_.Usage(key, [this, call, job = *job](const tl::expected<Counters, NoJob>& usage) {
      if (!usage) return call->Finish(NoJobStatus(usage.error()));
      JobStatus status = ToJobStatus(jobs_, *job);
      *status.mutable_usage() = ToResourceUsage(*usage);
      call->WriteAndFinish(ToBuffer(status));
    });
  });
}

namespace {

bool Matches(const ListSpec& spec, const JobView& job) {
  if (!spec.states.empty() && spec.states.count(StateOf(job)) == 0) return false;
  const auto& labels = job.note.labels();
  return std::all_of(spec.labels.begin(), spec.labels.end(), [&](const auto& wanted) {
    const auto label = labels.find(wanted.first);
    return label != labels.end() && label->second == wanted.second;
  });
}

}  // namespace

void WorkerService::JobList(const CallPtr& call, const std::string& user, const JobListRequest& request) {
  const auto spec = ReadListRequest(request);
  if (!spec) return RefuseRequest(call, user, spec.error());
  loop_.Post([this, call, user, spec = *spec] {
    constexpr size_t kMaxAnswer = size_t{1} << 20, kMaxJobOverhead = 16;
    JobListResponse response;
    size_t bytes = 0;
    const auto visited = jobs_.Visit(user, spec.below, [&](const JobView& job) {
      if (!Matches(spec, job)) return true;
      JobStatus status = ToJobStatus(jobs_, job);
      bytes += status.ByteSizeLong() + kMaxJobOverhead;
      if (response.jobs_size() > 0 &&
          (static_cast<size_t>(response.jobs_size()) == spec.page_size || bytes > kMaxAnswer)) {
        response.set_next_page_token(response.jobs(response.jobs_size() - 1).pid());
        return false;
      }
      *response.add_jobs() = std::move(status);
      return true;
    });
    if (!visited) return call->Finish(NoJobStatus(visited.error()));
    call->WriteAndFinish(ToBuffer(response));
  });
}

void WorkerService::JobWait(const CallPtr& call, const std::string& user, const JobWaitRequest& request) {
  const auto ids = ReadWaitRequest(request);
  if (!ids) return RefuseRequest(call, user, ids.error());
  std::vector<JobKey> keys;
  for (const uint64_t id : *ids) keys.push_back({user, id});
  const auto waiter = std::make_shared<JobWaiter>(loop_, call, jobs_, std::move(keys), request.any());
  call->Use(waiter);
  loop_.Post([waiter] { waiter->Begin(); });
}

void WorkerService::WhoAmI(const CallPtr& call, const std::string& user, const WhoAmIRequest&) {
  WhoAmIResponse response;
  response.set_user(user);
  for (const std::string_view right : gate_.RightsOf(user)) response.add_rights(std::string(right));
  response.set_certificate_ends_us(Gate::CertificateEndsUs(call->context()));
  loop_.Post([this, call, user, response = std::move(response)]() mutable {
    const auto visited = jobs_.Visit(user, UINT64_MAX, [&](const JobView& job) {
      const bool ended = job.phase == JobView::Phase::kEnded;
      ended ? response.set_jobs_ended(response.jobs_ended() + 1) : response.set_jobs_live(response.jobs_live() + 1);
      return true;
    });
    if (!visited) return call->Finish(NoJobStatus(visited.error()));
    response.set_output_held(jobs_.retention().HeldBy(user));
    response.set_output_limit(jobs_.retention().limits().per_user);
    jobs_.WhoIs(user, [call, response](const tl::expected<UserIs, NoJob>& is) mutable {
      if (is && is->known != 0) {
        *response.mutable_ceilings() = ToResourceLimits(is->ceiling);
        *response.mutable_defaults() = ToResourceLimits(is->defaults);
        response.set_jobs_limit(is->max_jobs);
      }
      call->WriteAndFinish(ToBuffer(response));
    });
  });
}

void WorkerService::ServerVersion(const CallPtr& call, const std::string&, const ServerVersionRequest&) {
  loop_.Post([this, call] {
    ServerVersionResponse response;
    response.set_version(JOBWORKER_VERSION);
    response.set_api(kApiVersion);
    response.set_broker_protocol(kProtocolVersion);
    response.set_started_us(static_cast<int64_t>(started_us_));
    response.set_broker_connected(jobs_.service() == JobTable::Service::kServing);
    for (const std::string& name : ControllerNames(jobs_.missing())) response.add_unenforced(name);
    call->WriteAndFinish(ToBuffer(response));
  });
}

void WorkerService::HealthCheck(const CallPtr& call, const std::string&,
                                const grpc::health::v1::HealthCheckRequest& request) {
  loop_.Post([this, call, request] { health_.Check(call, request); });
}

void WorkerService::HealthWatch(const CallPtr& call, const std::string&,
                                const grpc::health::v1::HealthCheckRequest& request) {
  const auto watcher = health_.Watch(call, request);
  call->Use(watcher);
  loop_.Post([watcher] { watcher->Begin(); });
}

}  // namespace jobworker
