#include "cmd/cli_follow.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>
#include <utility>

#include "cmd/cli_connection.h"
#include "cmd/cli_input.h"
#include "cmd/cli_interrupt.h"
#include "cmd/cli_json.h"
#include "cmd/cli_retry.h"
#include "cmd/cli_text.h"

namespace jobworker {
namespace {

// 0 without any random bytes: then the server does not wait for this client.
uint64_t NewReader() {
  uint64_t reader = 0;
  const std::string bytes = RandomBytes(sizeof(reader));
  std::memcpy(&reader, bytes.data(), bytes.size());
  return reader;
}

using Responses = std::unique_ptr<grpc::ClientReader<WorkerResponse>>;

class Follower {
 public:
  Follower(Session& session, FollowPlan plan)
      : session_(session),
        plan_(std::move(plan)),
        job_(session.GetSettings().user, STDOUT_FILENO, STDERR_FILENO, plan_.format) {
    plan_.query.set_reader(NewReader());
    if (plan_.start) plan_.start->set_reader(plan_.query.reader());
  }
  int Run();

 private:
  Responses Open();
  int ShowAll(Responses& responses);
  void First(const WorkerResponse& response);
  void Started();
  [[nodiscard]] bool CanGoOn() const { return !job_.Id().empty() && job_.Position().has_value(); }
  int Over(const grpc::Status& status);

  Session& session_;
  FollowPlan plan_;
  JobView job_;
  bool input_lost_ = false;
};

Responses Follower::Open() {
  if (plan_.start && job_.Id().empty()) return session_.Stub().JobStart(session_.NewContext(), *plan_.start);
  if (job_.Position()) {
    plan_.query.set_pid(job_.Id());
    plan_.query.set_offset(*job_.Position());
    plan_.query.clear_tail_bytes();
    plan_.query.clear_tail_lines();
  }
  return session_.Stub().JobQuery(session_.NewContext(), plan_.query);
}

// The first response of a stream, shown already.
void Follower::First(const WorkerResponse& response) {
  NoticeDeadPeers(session_.GetSettings().server.port);
  session_.Answered(fmt::format("; job {} goes on from byte {}", job_.Id(), response.offset()));
  if (!plan_.start || input_lost_ || response.status().input().state() != INPUT_LOST) return;
  input_lost_ = true;
  Say(fmt::format("the input of job {} was cut off when the server was restarted: {} bytes are known to have arrived",
                  job_.Id(), response.status().input().taken()));
}

// The id is known now.
void Follower::Started() {
  const std::string& id = job_.Id();
  session_.Watch().SetLeaveText(fmt::format("left job {} to itself; come back to it: {}; end it: {}", id,
                                            session_.FollowUp("query", id), session_.FollowUp("stop", id)));
  if (!plan_.start) return;
  PassInterrupts(session_, id);
  if (plan_.start->want_stdin()) SendInput(session_, id, STDIN_FILENO);
  // Only people need to be told: a script that wants the id asks for it with -d, and stderr is the job's.
  if (isatty(STDERR_FILENO) == 1) Say("job " + id);
}

// 0, or the errno of a write that failed.
int Follower::ShowAll(Responses& responses) {
  WorkerResponse response;
  for (bool first = true; responses->Read(&response); first = false) {
    const bool unknown = job_.Id().empty();
    const int error = job_.Show(response);
    if (error != 0) return error;
    if (first) First(response);
    if (unknown) Started();
  }
  return 0;
}

// The job is not followed any more, and its end has not been told.
int Follower::Over(const grpc::Status& status) {
  const std::string& id = job_.Id().empty() ? plan_.query.pid() : job_.Id();
  if (job_.Id().empty() && !status.ok()) return session_.Fail(status, id);
  const std::string again = session_.FollowUp("query", id);
  const std::string server = session_.GetSettings().server.Name();
  if (status.ok()) {
    Say(fmt::format("{} ended the stream without saying how the job ended; see: {}", server, again));
  } else if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    Say(fmt::format("the connection to {} was lost; to see what has become of job {}: {}", server, id, again));
  } else if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    Say(fmt::format("{} no longer knows job {}: it has been removed, or the server was restarted and all jobs ended",
                    server, id));
  } else {
    Say(fmt::format("{}; to see what has become of job {}: {}", session_.Explain(status), id, again));
  }
  return kOurFailure;
}

int Follower::Run() {
  for (;;) {
    grpc::Status status = session_.Connect();
    if (status.ok()) {
      Responses responses = Open();
      const int error = ShowAll(responses);
      if (error != 0) return WriteFailure(error);
      // Nothing comes after the end, so there is no need to wait for the call's own.
      if (job_.Complete()) break;
      status = responses->Finish();
      if (status.ok() && job_.Resumes()) continue;
    }
    if (!job_.Id().empty() && !CanGoOn()) return Over(status);
    if (!session_.Again(status, CanGoOn())) return Over(status);
  }
  const std::string end = plan_.format == Format::kJson ? "" : job_.DescribeEnd();
  if (!end.empty()) Say(end);
  // What a job makes of half of its input is no success.
  return input_lost_ && job_.ExitStatus() == 0 ? kOurFailure : job_.ExitStatus();
}

}  // namespace

int WriteFailure(int error) {
  // Whoever read our output has gone: end as a program does that SIGPIPE ends, without a word.
  if (error == EPIPE) return 128 + SIGPIPE;
  Say(fmt::format("the job's output cannot be written: {}", strerror(error)));
  return kOurFailure;
}

int Print(std::string_view text) {
  const int error = WriteFully(STDOUT_FILENO, text);
  return error == 0 ? 0 : WriteFailure(error);
}

int Follow(Session& session, FollowPlan plan) { return Follower(session, std::move(plan)).Run(); }

int StartDetached(Session& session, const WorkerStartRequest& start, bool json) {
  WorkerResponse response;
  const grpc::Status status = session.Ask([&](Worker::Stub& stub, grpc::ClientContext* context) {
    const Responses responses = stub.JobStart(context, start);
    if (!responses->Read(&response)) return responses->Finish();
    context->TryCancel();
    return grpc::Status::OK;
  });
  if (!status.ok()) return session.Fail(status);
  WarnUnenforced(response);
  if (!json) return Print(response.pid() + "\n");
  return Print(response.has_status() ? JobJson(response.status()) : IdJson("job", response.pid()));
}

}  // namespace jobworker
