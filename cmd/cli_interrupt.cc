#include "cmd/cli_interrupt.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "cmd/cli_text.h"

namespace jobworker {
namespace {

using Step = InterruptSteps::Step;
constexpr std::chrono::seconds kAgain{2};

class Interrupts : public std::enable_shared_from_this<Interrupts> {
 public:
  Interrupts(Session& session, std::string id) : session_(session), id_(std::move(id)) {}
  bool Interrupt();

 private:
  void Call(const std::shared_ptr<grpc::Channel>& channel, bool stop);

  Session& session_;
  const std::string id_;
  std::mutex mutex_;
  InterruptSteps steps_;
};

bool Interrupts::Interrupt() {
  const auto channel = session_.CurrentChannel();
  const std::lock_guard lock(mutex_);
  const Step step = steps_.Next(InterruptSteps::Clock::now(), channel != nullptr);
  if (step == Step::kLeave) return false;
  const bool stop = step == Step::kStop;
  if (isatty(STDERR_FILENO) == 1) {
    Say(stop ? fmt::format("stopping job {}; Ctrl-C leaves it to itself", id_)
             : fmt::format("sent SIGINT to job {}; Ctrl-C again within 2 seconds stops it", id_));
  }
  // On a thread of its own: a stop takes as long as the job does, and Ctrl-C must work meanwhile.
  std::thread([self = shared_from_this(), channel, stop] { self->Call(channel, stop); }).detach();
  return true;
}

void Interrupts::Call(const std::shared_ptr<grpc::Channel>& channel, bool stop) {
  const auto stub = Worker::NewStub(channel);
  grpc::ClientContext context;
  WorkerPIDRequest request;
  WorkerResponse response;
  request.set_pid(id_);
  if (!stop) request.set_signal(SIGINT);
  const grpc::Status status =
      stop ? stub->JobStop(&context, request, &response) : stub->JobSignal(&context, request, &response);
  // FAILED_PRECONDITION: it has ended meanwhile, as its stream is about to tell.
  if (status.ok() || status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) return;
  Say(fmt::format("job {} could not be {}: {}; Ctrl-C leaves it to itself", id_, stop ? "stopped" : "sent SIGINT",
                  session_.Explain(status)));
  const std::lock_guard lock(mutex_);
  steps_.Failed();
}

}  // namespace

InterruptSteps::Step InterruptSteps::Next(Clock::time_point now, bool connected) {
  if (!connected || last_ != Step::kSignal) return Step::kLeave;
  const bool again = signalled_ != Clock::time_point::min() && now - signalled_ <= kAgain;
  signalled_ = now;
  if (again) last_ = Step::kStop;
  return last_;
}

void PassInterrupts(Session& session, const std::string& id) {
  const auto interrupts = std::make_shared<Interrupts>(session, id);
  session.Watch().OnInterrupt([interrupts] { return interrupts->Interrupt(); });
}

}  // namespace jobworker
