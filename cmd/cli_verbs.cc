#include "cmd/cli_verbs.h"

#include <fmt/format.h>
#include <jobworker.grpc.pb.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>

#include "cmd/cli_connection.h"
#include "cmd/cli_job.h"
#include "cmd/cli_text.h"
#include "cmd/cli_watch.h"

namespace jobworker {
namespace {

using Responses = std::unique_ptr<grpc::ClientReader<WorkerResponse>>;

// One call and all that belongs to it. The watch comes first, because gRPC's threads must inherit its signal mask.
struct Call {
  Call(const Options& given, const Settings& chosen, const Identity& who, std::string interrupt_text)
      : options(given), settings(chosen), identity(who), watch(std::move(interrupt_text)) {
    channel = Connect(settings.server, identity);
    stub = Worker::NewStub(channel);
    context = std::make_unique<grpc::ClientContext>();
    watch.Begin({[this] { return channel->GetState(false) == GRPC_CHANNEL_READY; }, [this] { context->TryCancel(); },
                 [this] { SayWaiting(); }});
  }
  void SayWaiting() const;
  int Fail(const grpc::Status& status) const;

  const Options& options;
  const Settings& settings;
  const Identity& identity;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<Worker::Stub> stub;
  std::unique_ptr<grpc::ClientContext> context;
  CallWatch watch;  // the last, so that its thread ends before what it uses
};

void Call::SayWaiting() const {
  if (isatty(STDERR_FILENO) != 1) return;
  const bool connected = channel->GetState(false) == GRPC_CHANNEL_READY;
  Say(fmt::format("{} {} ...", connected ? "waiting for the answer of" : "connecting to", settings.server.Name()));
}

// A call that ended before the server said what became of it.
int Call::Fail(const grpc::Status& status) const {
  if (watch.TimedOut()) {
    Say(fmt::format(
        "no connection to {} within 10 seconds; is the host right, and does a firewall let the port through?",
        settings.server.Name()));
  } else {
    Say(ExplainFailure(status, settings.server, identity));
  }
  return FailureExitStatus(status);
}

std::string FollowUp(const Settings& settings, std::string_view verb, const std::string& id) {
  return fmt::format("jobworker{} {} {}", settings.flags, verb, QuoteWord(id));
}

int WriteFailure(int error) {
  // Whoever read our output has gone: end as a program does that SIGPIPE ends, without a word.
  if (error == EPIPE) return 128 + SIGPIPE;
  Say(fmt::format("the job's output cannot be written: {}", strerror(error)));
  return kOurFailure;
}

// The stream is over without an end of the job.
int Lost(const Call& call, const JobView& job, const grpc::Status& status) {
  if (job.Id().empty() && !status.ok()) return call.Fail(status);
  const std::string again = FollowUp(call.settings, "query", job.Id());
  const std::string server = call.settings.server.Name();
  if (status.ok()) {
    Say(fmt::format("{} ended the stream without saying how the job ended; see: {}", server, again));
  } else if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    Say(fmt::format("the connection to {} was lost; to see what has become of job {}: {}", server, job.Id(), again));
  } else {
    Say(fmt::format("{}; to see what has become of job {}: {}",
                    ExplainFailure(status, call.settings.server, call.identity), job.Id(), again));
  }
  return kOurFailure;
}

void Announce(Call& call, const std::string& id) {
  call.watch.Answered();
  call.watch.SetInterruptText(fmt::format("left job {} to itself; come back to it: {}; end it: {}", id,
                                          FollowUp(call.settings, "query", id), FollowUp(call.settings, "stop", id)));
  // Only people need to be told: a script that wants the id asks for it with -d, and stderr is the job's.
  if (call.options.verb == Verb::kStart && isatty(STDERR_FILENO) == 1) Say("job " + id);
}

int Follow(Call& call, const Responses& responses) {
  JobView job(call.settings.profile, STDOUT_FILENO, STDERR_FILENO);
  WorkerResponse response;
  while (responses->Read(&response)) {
    const bool first = job.Id().empty();
    const int error = job.Show(response);
    if (error != 0) return WriteFailure(error);
    if (first) Announce(call, job.Id());
  }
  const grpc::Status status = responses->Finish();
  if (!job.Ended()) return Lost(call, job, status);
  const std::string end = job.DescribeEnd();
  if (!end.empty()) Say(end);
  return job.ExitStatus();
}

// Only the id; the job goes on when this call is cancelled.
int PrintId(Call& call, const Responses& responses) {
  WorkerResponse response;
  if (!responses->Read(&response)) return call.Fail(responses->Finish());
  WarnUnenforced(response);
  const int error = WriteFully(STDOUT_FILENO, response.pid() + "\n");
  call.context->TryCancel();
  return error == 0 ? 0 : WriteFailure(error);
}

// One word goes as `command`, which the server splits; so what must stay one word is quoted.
WorkerStartRequest StartRequest(const Options& options) {
  WorkerStartRequest request;
  const bool quote = options.verbatim && options.words.size() == 1;
  request.set_command(quote ? QuoteWord(options.words[0]) : options.words[0]);
  request.mutable_args()->Add(options.words.begin() + 1, options.words.end());
  request.mutable_env()->Add(options.env.begin(), options.env.end());
  return request;
}

int Start(const Options& options, const Settings& settings, const Identity& identity) {
  Call call(options, settings, identity,
            "interrupted before the server answered: the job may have been started or not");
  const Responses responses = call.stub->JobStart(call.context.get(), StartRequest(options));
  return options.detach ? PrintId(call, responses) : Follow(call, responses);
}

WorkerPIDRequest IdRequest(const Options& options) {
  WorkerPIDRequest request;
  request.set_pid(options.id);
  return request;
}

int Query(const Options& options, const Settings& settings, const Identity& identity) {
  Call call(options, settings, identity, "interrupted");
  const Responses responses = call.stub->JobQuery(call.context.get(), IdRequest(options));
  return Follow(call, responses);
}

int Stop(const Options& options, const Settings& settings, const Identity& identity) {
  Call call(options, settings, identity,
            "interrupted before the server answered: the job may have been stopped or not");
  WorkerResponse response;
  const grpc::Status status = call.stub->JobStop(call.context.get(), IdRequest(options), &response);
  if (!status.ok()) return call.Fail(status);
  const std::string said = response.log().empty() ? fmt::format("job {} has ended", response.pid()) : response.log();
  const std::string line = Escape(said.substr(0, said.find_last_not_of('\n') + 1));
  const int error = WriteFully(STDOUT_FILENO, line + "\n");
  return error == 0 ? 0 : WriteFailure(error);
}

}  // namespace

int RunVerb(const Options& options, const Settings& settings, const Identity& identity) {
  switch (options.verb) {
    case Verb::kStart: return Start(options, settings, identity);
    case Verb::kStop: return Stop(options, settings, identity);
    case Verb::kQuery: return Query(options, settings, identity);
  }
  return kOurFailure;
}

}  // namespace jobworker
