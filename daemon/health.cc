#include "daemon/health.h"

#include <algorithm>

#include "daemon/authorizer.h"

namespace jobworker {

namespace {

using grpc::health::v1::HealthCheckRequest, grpc::health::v1::HealthCheckResponse;

bool IsKnown(const HealthCheckRequest& request) {
  const auto named = [&](const MethodRow& row) { return row.service == request.service(); };
  return request.service().empty() || std::any_of(kMethods.begin(), kMethods.end(), named);
}

const grpc::Status kEnding{grpc::StatusCode::UNAVAILABLE, "the server is being stopped; try again later"};

}  // namespace

Health::Health(EventLoop& loop, JobTable& jobs) : loop_(loop), jobs_(jobs) {
  jobs_.OnService([this] {
    for (HealthWatcher* const watcher : std::set(watchers_)) watcher->Changed();
  });
}

HealthCheckResponse Health::Now() const {
  HealthCheckResponse response;
  response.set_status(jobs_.service() == JobTable::Service::kServing ? HealthCheckResponse::SERVING
                                                                     : HealthCheckResponse::NOT_SERVING);
  return response;
}

void Health::Check(const std::shared_ptr<Call>& call, const HealthCheckRequest& request) const {
  if (!IsKnown(request)) return call->Finish({grpc::StatusCode::NOT_FOUND, "this server has no such service"});
  call->WriteAndFinish(ToBuffer(Now()));
}

std::shared_ptr<HealthWatcher> Health::Watch(const std::shared_ptr<Call>& call, const HealthCheckRequest& request) {
  return std::make_shared<HealthWatcher>(*this, call, IsKnown(request));
}

void HealthWatcher::Begin() {
  if (done()) return;
  health_.watchers_.insert(this);
  Changed();
}

void HealthWatcher::Changed() {
  if (done()) return;
  if (health_.jobs_.service() == JobTable::Service::kEnding) return Finish(kEnding);
  HealthCheckResponse now = health_.Now();
  if (!known_) now.set_status(HealthCheckResponse::SERVICE_UNKNOWN);
  if (writing() || now.status() == told_) return;
  told_ = now.status();
  Write(now);
}

}  // namespace jobworker
