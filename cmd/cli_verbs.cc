#include "cmd/cli_verbs.h"

#include <fmt/format.h>
#include <sys/random.h>
#include <unistd.h>

#include "cmd/cli_follow.h"
#include "cmd/cli_job.h"
#include "cmd/cli_session.h"
#include "cmd/cli_text.h"

namespace jobworker {
namespace {

// What no other start has, so that a repeated one joins the job of the first try.
std::string RandomKey() {
  std::string key(16, '\0');
  const ssize_t size = getrandom(key.data(), key.size(), 0);
  return size == static_cast<ssize_t>(key.size()) ? key : "";
}

// One word goes as `command`, which the server splits; so what must stay one word is quoted.
WorkerStartRequest StartRequest(const Options& options) {
  WorkerStartRequest request;
  const bool quote = options.verbatim && options.words.size() == 1;
  request.set_command(quote ? QuoteWord(options.words[0]) : options.words[0]);
  request.mutable_args()->Add(options.words.begin() + 1, options.words.end());
  request.mutable_env()->Add(options.env.begin(), options.env.end());
  request.set_request_key(RandomKey());
  return request;
}

int Start(const Options& options, const Settings& settings, const Identity& identity) {
  Session session(settings, identity, options.reconnect,
                  "interrupted before the server answered: the job may have been started or not");
  const WorkerStartRequest request = StartRequest(options);
  return options.detach ? StartDetached(session, request) : Follow(session, {request, {}});
}

WorkerPIDRequest IdRequest(const Options& options) {
  WorkerPIDRequest request;
  request.set_pid(options.id);
  return request;
}

int Query(const Options& options, const Settings& settings, const Identity& identity) {
  Session session(settings, identity, options.reconnect, "interrupted");
  return Follow(session, {{}, IdRequest(options)});
}

int Stop(const Options& options, const Settings& settings, const Identity& identity) {
  Session session(settings, identity, options.reconnect,
                  "interrupted before the server answered: the job may have been stopped or not");
  WorkerResponse response;
  const grpc::Status status = session.Ask([&](Worker::Stub& stub, grpc::ClientContext* context) {
    return stub.JobStop(context, IdRequest(options), &response);
  });
  if (!status.ok()) return session.Fail(status);
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
