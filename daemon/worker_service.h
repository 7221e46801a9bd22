// The methods of proto/jobworker.proto.
#pragma once
#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "daemon/event_loop.h"
#include "daemon/follower.h"
#include "daemon/gate.h"
#include "daemon/health.h"
#include "daemon/job_table.h"
#include "daemon/open_calls.h"
#include "daemon/rpc_server.h"
#include "jobworker.pb.h"

namespace jobworker {

// Counted up when proto/jobworker.proto gains what a client may have to know of.
inline constexpr uint32_t kApiVersion = 2;

// Handlers run on the RPC server's threads; the job table lives on the loop's. Both outlive the service.
class WorkerService {
 public:
  // `reflection`: proto/reflection.proto is answered too.
  WorkerService(Gate& gate, OpenCalls& open_calls, EventLoop& loop, JobTable& jobs, bool reflection = false);

  // Every call of every method: who calls and whether they may, and only then what they say.
  void Answer(const std::shared_ptr<Call>& call);

 private:
  using CallPtr = std::shared_ptr<Call>;
  // Lets the handler have the first message.
  static void Handle(const CallPtr& call, std::shared_ptr<CallHandler> handler);
  // Reads the one request of a call, and goes on with `then`.
  template <class Request>
  void Read(const CallPtr& call, const std::string& user,
            void (WorkerService::*then)(const CallPtr&, const std::string&, const Request&));
  void JobStart(const CallPtr& call, const std::string& user, const WorkerStartRequest& request);
  void JobStop(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request);
  void JobSignal(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request);
  void JobRemove(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request);
  void JobQuery(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request);
  void JobStatusOf(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request);
  void JobList(const CallPtr& call, const std::string& user, const JobListRequest& request);
  void JobWait(const CallPtr& call, const std::string& user, const JobWaitRequest& request);
  void WhoAmI(const CallPtr& call, const std::string& user, const WhoAmIRequest& request);
  void ServerVersion(const CallPtr& call, const std::string& user, const ServerVersionRequest& request);
  void HealthCheck(const CallPtr& call, const std::string& user, const grpc::health::v1::HealthCheckRequest& request);
  void HealthWatch(const CallPtr& call, const std::string& user, const grpc::health::v1::HealthCheckRequest& request);
  void Follow(const std::shared_ptr<Follower>& follower, const JobTable::View& job);
  void WithJob(const CallPtr& call, const std::string& user, const std::string& pid,
               std::function<void(const JobKey&)> then);
  // Ends the call: the request is not one.
  static void RefuseRequest(const CallPtr& call, const std::string& user, const std::string& why);

  Gate& gate_;
  OpenCalls& open_calls_;
  EventLoop& loop_;
  JobTable& jobs_;
  const bool reflection_;
  Health health_;
  const uint64_t started_us_;
};

}  // namespace jobworker
