// The RPCs of proto/jobworker.proto.
#pragma once
#include <grpcpp/grpcpp.h>

#include <string>
#include <tl/expected.hpp>
#include <vector>

#include "daemon/event_loop.h"
#include "daemon/gate.h"
#include "daemon/job_table.h"
#include "jobworker.grpc.pb.h"

namespace jobworker {

// What a WorkerStartRequest asks for, checked against the bounds of common/broker_protocol.h. The error names the field
// and the bound.
struct JobSpec {
  std::vector<std::string> argv, env;
};
tl::expected<JobSpec, std::string> ReadStartRequest(const WorkerStartRequest& request);

// A job id as clients send it: decimal, 1 to 2^64-1, no sign, no leading zero.
tl::expected<uint64_t, std::string> ReadJobId(const std::string& text);

// What a client is told: for a start that failed, of `user` and with `spec`, and for a job that is not to be had.
// FAILED_PRECONDITION carries a serialised ::StartFailure.
grpc::Status StartFailedStatus(const JobFailure& failure, const std::string& user, const JobSpec& spec);
grpc::Status NoJobStatus(NoJob why);

// Handlers run on gRPC's threads; the job table lives on the loop's. Both outlive the service.
class WorkerService : public Worker::CallbackService {
 public:
  WorkerService(Gate& gate, EventLoop& loop, JobTable& jobs) : gate_(gate), loop_(loop), jobs_(jobs) {}

  grpc::ServerWriteReactor<WorkerResponse>* JobStart(grpc::CallbackServerContext* context,
                                                     const WorkerStartRequest* request) override;
  grpc::ServerWriteReactor<WorkerResponse>* JobQuery(grpc::CallbackServerContext* context,
                                                     const WorkerPIDRequest* request) override;
  grpc::ServerUnaryReactor* JobStop(grpc::CallbackServerContext* context, const WorkerPIDRequest* request,
                                    WorkerResponse* response) override;

 private:
  Gate& gate_;
  EventLoop& loop_;
  JobTable& jobs_;
};

}  // namespace jobworker
