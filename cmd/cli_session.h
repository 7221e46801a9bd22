// One verb's dealings with the server: its connection, made anew when it is lost, the words about that, and Ctrl-C.
#pragma once
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <jobworker.grpc.pb.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <tl/expected.hpp>

#include "cmd/cli_config.h"
#include "cmd/cli_identity.h"
#include "cmd/cli_retry.h"
#include "cmd/cli_watch.h"

namespace jobworker {

using IdentityLoader = std::function<tl::expected<Identity, std::string>()>;

class Session {
 public:
  // Once in a process, and before any thread of gRPC's. The identity is loaded again for each new connection, so that a
  // renewed certificate is used. `settings` outlives it.
  Session(const Settings& settings, Identity identity, IdentityLoader loader, bool reconnect, std::string leave_text);

  // Connects where there is no connection. UNAVAILABLE when the server cannot be reached, or not within 10 seconds;
  // FAILED_PRECONDITION when there is no usable certificate any more.
  grpc::Status Connect();
  Worker::Stub& Stub() { return *stub_; }
  // For one call; the one before is over.
  grpc::ClientContext* NewContext();
  // The server has answered: it is told when that is so again after a loss. `where` are words for that.
  void Answered(const std::string& where);
  // After a failed call or Connect(). True: do it again, the time for that has come. Says that the connection was lost,
  // once for each loss.
  bool Again(const grpc::Status& status, bool following);
  // The connection was lost, and nothing has been answered since.
  [[nodiscard]] bool Lost() const { return lost_; }
  // Says what failed, why and what to do about it, and returns the exit status. `about` is a job's id, or empty.
  int Fail(const grpc::Status& status, const std::string& about = "");

  // A call with one answer, as often as it takes. `call` gets the stub and a context.
  template <class Call>
  grpc::Status Ask(Call call);

  // "jobworker -u bob stop 3"
  [[nodiscard]] std::string FollowUp(std::string_view verb, const std::string& id) const;
  [[nodiscard]] const Settings& GetSettings() const { return settings_; }
  [[nodiscard]] std::string Explain(const grpc::Status& status) const;
  [[nodiscard]] bool Reconnects() const { return reconnect_; }
  CallWatch& Watch() { return watch_; }
  // For other threads: what is connected now; null while the connection is lost.
  std::shared_ptr<grpc::Channel> CurrentChannel();

 private:
  // Whether the connection still stands after a call that ended with this.
  [[nodiscard]] bool Answers(grpc::StatusCode code) const;
  void SetChannel(std::shared_ptr<grpc::Channel> channel);
  const Settings& settings_;
  Identity identity_;
  const IdentityLoader loader_;
  const bool reconnect_;
  CallWatch watch_;  // before the channel: gRPC's threads must inherit its signal mask
  std::mutex mutex_;
  std::shared_ptr<grpc::Channel> connected_;  // what CurrentChannel() gives
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Worker::Stub> stub_;
  std::unique_ptr<grpc::ClientContext> context_;
  Backoff backoff_;
  bool reached_ = false;
  bool lost_ = false;
  bool timed_out_ = false;
};

template <class Call>
grpc::Status Session::Ask(Call call) {
  for (;;) {
    grpc::Status status = Connect();
    if (status.ok()) status = call(Stub(), NewContext());
    if (status.ok()) Answered("");
    if (status.ok() || !Again(status, false)) return status;
  }
}

}  // namespace jobworker
