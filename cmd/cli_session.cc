#include "cmd/cli_session.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "cmd/cli_connection.h"
#include "cmd/cli_text.h"

namespace jobworker {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::system_clock;

constexpr seconds kConnectTime{10};
// Longer than a broken connection takes to be noticed, once a call on it has failed.
constexpr milliseconds kStateTime{200};

}  // namespace

Session::Session(const Settings& settings, Identity identity, IdentityLoader loader, bool reconnect,
                 std::string leave_text)
    : settings_(settings),
      identity_(std::move(identity)),
      loader_(std::move(loader)),
      reconnect_(reconnect),
      watch_(std::move(leave_text)) {}

std::shared_ptr<grpc::Channel> Session::CurrentChannel() {
  const std::lock_guard lock(mutex_);
  return connected_;
}

void Session::SetChannel(std::shared_ptr<grpc::Channel> channel) {
  const std::lock_guard lock(mutex_);
  connected_ = std::move(channel);
}

grpc::Status Session::Connect() {
  if (channel_ != nullptr) return grpc::Status::OK;
  if (lost_) {
    auto identity = loader_();
    if (!identity) return {grpc::StatusCode::FAILED_PRECONDITION, identity.error()};
    identity_ = std::move(*identity);
  }
  channel_ = jobworker::Connect(settings_.server, identity_);
  if (!lost_) watch_.Expect(fmt::format("connecting to {} ...", settings_.server.Name()));
  const auto deadline = system_clock::now() + kConnectTime;
  auto state = channel_->GetState(true);
  while (state != GRPC_CHANNEL_READY && state != GRPC_CHANNEL_TRANSIENT_FAILURE) {
    timed_out_ = !channel_->WaitForStateChange(state, deadline);
    if (timed_out_) break;
    state = channel_->GetState(true);
  }
  if (state != GRPC_CHANNEL_READY) return {grpc::StatusCode::UNAVAILABLE, "it cannot be reached"};
  reached_ = true;
  backoff_.Connected(Backoff::Clock::now());
  stub_ = Worker::NewStub(channel_);
  SetChannel(channel_);
  if (!lost_) watch_.Expect(fmt::format("waiting for the answer of {} ...", settings_.server.Name()));
  return grpc::Status::OK;
}

grpc::ClientContext* Session::NewContext() {
  context_ = std::make_unique<grpc::ClientContext>();
  return context_.get();
}

void Session::Answered(const std::string& where) {
  watch_.Answered();
  if (lost_) Say(fmt::format("connected to {} again{}", settings_.server.Name(), where));
  lost_ = false;
}

bool Session::Answers(grpc::StatusCode code) const {
  // Every other code is the server's own, so that nothing has to be waited for.
  if (code != grpc::StatusCode::UNAVAILABLE && code != grpc::StatusCode::CANCELLED) return true;
  return channel_ != nullptr && channel_->GetState(false) == GRPC_CHANNEL_READY &&
         !channel_->WaitForStateChange(GRPC_CHANNEL_READY, system_clock::now() + kStateTime);
}

bool Session::Again(const grpc::Status& status, bool following) {
  const Circumstances circumstances{reached_, Answers(status.error_code()), lost_, following};
  if (!reconnect_ || !WorthARetry(status.error_code(), circumstances)) return false;
  watch_.Answered();
  if (!lost_) {
    Say(circumstances.connected ? fmt::format("{} broke off; trying again", settings_.server.Name())
                                : fmt::format("the connection to {} was lost; trying again", settings_.server.Name()));
  }
  lost_ = true;
  SetChannel(nullptr);
  context_.reset();
  stub_.reset();
  channel_.reset();
  const milliseconds wait = backoff_.Next(Backoff::Clock::now());
  poll(nullptr, 0, static_cast<int>(wait.count()));
  return true;
}

std::string Session::Explain(const grpc::Status& status) const {
  if (timed_out_) {
    return fmt::format(
        "no connection to {} within {} seconds; is the host right, and does a firewall let the port through?",
        settings_.server.Name(), kConnectTime.count());
  }
  return ExplainFailure(status, settings_.server, identity_);
}

int Session::Fail(const grpc::Status& status, const std::string& about) {
  watch_.Answered();
  const auto code = status.error_code();
  const bool of_job = code == grpc::StatusCode::NOT_FOUND || code == grpc::StatusCode::INVALID_ARGUMENT ||
                      code == grpc::StatusCode::FAILED_PRECONDITION;
  Say((of_job && !about.empty() ? fmt::format("job {}: ", about) : "") + Explain(status));
  return FailureExitStatus(status);
}

std::string Session::FollowUp(std::string_view verb, const std::string& id) const {
  return fmt::format("jobworker{} {} {}", settings_.flags, verb, QuoteWord(id));
}

}  // namespace jobworker
