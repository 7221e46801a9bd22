// The methods of proto/health.proto.
#pragma once
#include <memory>
#include <set>

#include "daemon/job_table.h"
#include "daemon/loop_call.h"
#include "health.pb.h"

namespace jobworker {

class HealthWatcher;

// On the loop's thread.
class Health {
 public:
  // Hears of every change of the table's from now on.
  Health(EventLoop& loop, JobTable& jobs);

  void Check(const std::shared_ptr<Call>& call, const grpc::health::v1::HealthCheckRequest& request) const;
  // The handler of a Watch, for Call::Use; begins on the loop's thread.
  std::shared_ptr<HealthWatcher> Watch(const std::shared_ptr<Call>& call,
                                       const grpc::health::v1::HealthCheckRequest& request);

 private:
  friend class HealthWatcher;
  [[nodiscard]] grpc::health::v1::HealthCheckResponse Now() const;

  EventLoop& loop_;
  JobTable& jobs_;
  std::set<HealthWatcher*> watchers_;
};

class HealthWatcher final : public LoopCall {
 public:
  HealthWatcher(Health& health, std::shared_ptr<Call> call, bool known)
      : LoopCall(health.loop_, std::move(call)), health_(health), known_(known) {}
  void Begin();
  void Changed();

 private:
  void Received(const std::optional<grpc::ByteBuffer>&) override {}
  void Written() override { Changed(); }
  void Over() override { health_.watchers_.erase(this); }

  Health& health_;
  const bool known_;  // the service
  int told_ = -1;
};

}  // namespace jobworker
