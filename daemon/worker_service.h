// The methods of proto/jobworker.proto.
#pragma once
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <tl/expected.hpp>

#include "daemon/event_loop.h"
#include "daemon/follower.h"
#include "daemon/gate.h"
#include "daemon/job_table.h"
#include "daemon/rpc_server.h"
#include "jobworker.pb.h"

namespace jobworker {

// What a WorkerStartRequest asks for, checked against the bounds of common/broker_protocol.h. The error names the field
// and the bound. The key is not set.
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

// What a client is told: for a start that failed, of `user` and with `start`, and for a job that is not to be had.
// FAILED_PRECONDITION carries a serialised ::StartFailure.
grpc::Status StartFailedStatus(const JobFailure& failure, const std::string& user, const Start& start);
grpc::Status NoJobStatus(NoJob why);

// Handlers run on the RPC server's threads; the job table lives on the loop's. Both outlive the service.
class WorkerService {
 public:
  WorkerService(Gate& gate, EventLoop& loop, JobTable& jobs) : gate_(gate), loop_(loop), jobs_(jobs) {}

  // Every call of every method: who calls and whether they may, and only then what they say.
  void Answer(const std::shared_ptr<Call>& call);

 private:
  using CallPtr = std::shared_ptr<Call>;
  // Reads the one request of a call, and goes on with `then`.
  template <class Request>
  void Read(const CallPtr& call, const std::string& user,
            void (WorkerService::*then)(const CallPtr&, const std::string&, const Request&));
  void JobStart(const CallPtr& call, const std::string& user, const WorkerStartRequest& request);
  void JobQuery(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request);
  void JobStop(const CallPtr& call, const std::string& user, const WorkerPIDRequest& request);
  // Ends the call: the request is not one.
  static void RefuseRequest(const CallPtr& call, const std::string& user, const std::string& why);

  Gate& gate_;
  EventLoop& loop_;
  JobTable& jobs_;
};

}  // namespace jobworker
