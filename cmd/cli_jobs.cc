// The verbs about jobs that are there: list, status, wait, stop, signal, rm.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "cmd/cli_describe.h"
#include "cmd/cli_follow.h"
#include "cmd/cli_json.h"
#include "cmd/cli_text.h"
#include "cmd/cli_units.h"
#include "cmd/cli_verbs.h"
#include "daemon/signal_text.h"

namespace jobworker {
namespace {

constexpr size_t kMostStopped = 100;
constexpr uint32_t kPage = 1000;

int64_t Now() {
  using std::chrono::microseconds;
  return std::chrono::duration_cast<microseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// The server's sentence, or ours where it has none.
std::string Sentence(const WorkerResponse& response, const std::string& otherwise) {
  const std::string& said = response.log();
  if (said.empty()) return otherwise + "\n";
  return Escape(said.substr(0, said.find_last_not_of('\n') + 1)) + "\n";
}

using JobCall = grpc::Status (*)(Worker::Stub&, grpc::ClientContext*, const WorkerPIDRequest&, WorkerResponse*);
using Answer = std::string (*)(const Options&, const std::string& id, const WorkerResponse&);

// The same call for each id. One that fails says so, and the others are made all the same; the exit status is then that
// of the first failure.
int ForEach(Session& session, const Options& options, const WorkerPIDRequest& common, JobCall call, Answer answer) {
  int result = 0;
  for (const std::string& id : options.ids) {
    WorkerPIDRequest request = common;
    request.set_pid(id);
    WorkerResponse response;
    const grpc::Status status = session.Ask(
        [&](Worker::Stub& stub, grpc::ClientContext* context) { return call(stub, context, request, &response); });
    const int one = status.ok() ? Print(answer(options, id, response)) : session.Fail(status, id);
    if (result == 0) result = one;
  }
  return result;
}

struct Stopped {
  grpc::Status status;
  WorkerResponse response;
};

// On a thread of its own, because a stop answers only when nothing is left of the job.
std::future<Stopped> StopLater(const std::shared_ptr<grpc::Channel>& channel, WorkerPIDRequest request) {
  std::promise<Stopped> promise;
  auto future = promise.get_future();
  std::thread([channel, request = std::move(request), promise = std::move(promise)]() mutable {
    Stopped stopped;
    grpc::ClientContext context;
    stopped.status = Worker::NewStub(channel)->JobStop(&context, request, &stopped.response);
    promise.set_value(std::move(stopped));
  }).detach();
  return future;
}

std::string StopAnswer(const Options& options, const std::string& id, const WorkerResponse& response) {
  return options.json ? EndJson(id, response.end()) : Sentence(response, fmt::format("job {} has ended", id));
}

std::string SignalAnswer(const Options& options, const std::string& id, const WorkerResponse& response) {
  if (options.json) return SignalJson(id, options.signal);
  return Sentence(response, fmt::format("{} was sent to job {}", SignalText(options.signal), id));
}

std::string RemoveAnswer(const Options& options, const std::string& id, const WorkerResponse& response) {
  return options.json ? IdJson("removed", id) : Sentence(response, fmt::format("job {} is forgotten", id));
}

// Columns for people. What is too long for a terminal is cut there, and nowhere else.
class Table {
 public:
  Table() : colour_(UsesColour(STDOUT_FILENO)) {
    winsize size{};
    if (isatty(STDOUT_FILENO) == 1 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) width_ = size.ws_col;
    Row("ID", "STATE", "", "STARTED", "COMMAND {LABEL}");
  }
  void Add(const JobStatus& job, int64_t now) {
    const uint64_t age =
        job.started_us() > 0 && now > job.started_us() ? static_cast<uint64_t>(now - job.started_us()) : 0;
    std::string command = CommandText(job);
    // QuoteWord() quotes a brace, so these words are none of the command's.
    for (const auto& [key, value] : job.labels()) command += " {" + Escape(key + "=" + value) + "}";
    Row(Escape(job.pid()), StateWord(job), Colour(job), DurationText(age) + " ago", command);
  }
  [[nodiscard]] const std::string& Text() const { return text_; }

 private:
  static const char* Colour(const JobStatus& job) {
    if (job.state() != JobStatus::ENDED) return "\x1b[32m";
    return ExitStatusOf(job.end()) == 0 ? "" : "\x1b[31m";
  }
  void Row(const std::string& id, const std::string& state, const char* colour, const std::string& started,
           const std::string& command) {
    std::string begin = fmt::format("{:<6} ", id);
    const std::string rest = fmt::format("{:<16} {}", started, command);
    const size_t room = width_ > begin.size() + 14 ? width_ - begin.size() - 14 : rest.size();
    const std::string padded = fmt::format("{:<13} ", state);
    const bool coloured = colour_ && *colour != '\0';
    text_ += begin + (coloured ? colour + padded + "\x1b[0m" : padded);
    text_.append(Clip(rest, room)) += '\n';
  }
  const bool colour_;
  size_t width_ = 0;
  std::string text_;
};

JobListRequest ListRequest(const Options& options) {
  JobListRequest request;
  if (options.only_live) {
    for (const auto state : {JobStatus::STARTING, JobStatus::RUNNING, JobStatus::ENDING}) request.add_states(state);
  }
  request.mutable_labels()->insert(options.labels.begin(), options.labels.end());
  return request;
}

// How each ended is told as it ends.
class Waiter {
 public:
  Waiter(Session& session, const Options& options) : session_(session), options_(options), waiting_(options.ids) {}
  int Run();

 private:
  grpc::Status Connect();
  grpc::Status WaitForSome();
  bool Done() const { return waiting_.empty() || failed_ || (options_.any && waiting_.size() < options_.ids.size()); }
  void Ended(const JobStatus& job);
  int Fail(const grpc::Status& status);

  Session& session_;
  const Options& options_;
  std::vector<std::string> waiting_;
  int result_ = 0;
  bool failed_ = false;  // our own output could not be written
};

void Waiter::Ended(const JobStatus& job) {
  const auto place = std::find(waiting_.begin(), waiting_.end(), job.pid());
  if (place == waiting_.end()) return;
  waiting_.erase(place);
  if (result_ == 0) result_ = ExitStatusOf(job.end());
  const int printed =
      Print(options_.json ? EndJson(job.pid(), job.end())
                          : Escape(DescribeAnyEnd(job.pid(), job.end(), session_.GetSettings().user)) + "\n");
  failed_ = printed != 0;
  if (failed_) result_ = printed;
}

// JobWait answers nothing before a job ends. So after a loss something else is asked, which tells that it is over.
grpc::Status Waiter::Connect() {
  grpc::Status status = session_.Connect();
  if (!status.ok() || !session_.Lost()) return status;
  WhoAmIResponse unused;
  grpc::Status answer = session_.Stub().WhoAmI(session_.NewContext(), {}, &unused);
  if (answer.ok()) session_.Answered("");
  return answer;
}

grpc::Status Waiter::WaitForSome() {
  JobWaitRequest request;
  request.mutable_pids()->Add(waiting_.begin(), waiting_.end());
  request.set_any(options_.any);
  const auto responses = session_.Stub().JobWait(session_.NewContext(), request);
  JobStatus job;
  while (!Done() && responses->Read(&job)) {
    session_.Answered("");
    Ended(job);
  }
  return Done() ? grpc::Status::OK : responses->Finish();
}

// "pids: 7: you have no job with this id" is said as every other verb says it.
int Waiter::Fail(const grpc::Status& status) {
  constexpr std::string_view kField = "pids: ";
  const std::string& words = status.error_message();
  const size_t colon = words.find(':', kField.size());
  if (status.error_code() != grpc::StatusCode::NOT_FOUND || !words.starts_with(kField) || colon == std::string::npos) {
    return session_.Fail(status);
  }
  const std::string id = words.substr(kField.size(), colon - kField.size());
  return session_.Fail({grpc::StatusCode::NOT_FOUND, words.substr(std::min(colon + 2, words.size()))}, id);
}

int Waiter::Run() {
  while (!Done()) {
    const size_t before = waiting_.size();
    grpc::Status status = Connect();
    if (status.ok()) status = WaitForSome();
    const bool progress = status.ok() && waiting_.size() < before;
    if (!Done() && !progress && !session_.Again(status, true)) return Fail(status);
  }
  return result_;
}

}  // namespace

int StopVerb(Session& session, const Options& options) {
  WorkerPIDRequest request;
  request.set_signal(options.signal);
  if (options.grace_ms) request.set_grace_ms(*options.grace_ms);
  request.set_now(options.now);
  const auto call = [](Worker::Stub& stub, grpc::ClientContext* context, const WorkerPIDRequest& one,
                       WorkerResponse* response) { return stub.JobStop(context, one, response); };
  if (options.ids.size() == 1 || !session.Connect().ok()) return ForEach(session, options, request, call, StopAnswer);
  // Many at once, and told in the order in which they were named.
  std::vector<std::future<Stopped>> stops;
  int result = 0;
  for (size_t each = 0; each < options.ids.size(); ++each) {
    for (; stops.size() < std::min(options.ids.size(), each + kMostStopped);) {
      request.set_pid(options.ids[stops.size()]);
      stops.push_back(StopLater(session.CurrentChannel(), request));
    }
    Options one = options;
    one.ids = {options.ids[each]};
    const Stopped stopped = stops[each].get();
    const bool again = session.Reconnects() && WorthARetry(stopped.status.error_code(), {.reached = true});
    int status = 0;
    if (again) {
      status = ForEach(session, one, request, call, StopAnswer);
    } else if (stopped.status.ok()) {
      session.Answered("");
      status = Print(StopAnswer(options, one.ids[0], stopped.response));
    } else {
      status = session.Fail(stopped.status, one.ids[0]);
    }
    if (result == 0) result = status;
  }
  return result;
}

int SignalVerb(Session& session, const Options& options) {
  WorkerPIDRequest request;
  request.set_signal(options.signal);
  const auto call = [](Worker::Stub& stub, grpc::ClientContext* context, const WorkerPIDRequest& one,
                       WorkerResponse* response) { return stub.JobSignal(context, one, response); };
  return ForEach(session, options, request, call, SignalAnswer);
}

int RemoveVerb(Session& session, const Options& options) {
  const auto call = [](Worker::Stub& stub, grpc::ClientContext* context, const WorkerPIDRequest& one,
                       WorkerResponse* response) { return stub.JobRemove(context, one, response); };
  return ForEach(session, options, {}, call, RemoveAnswer);
}

int StatusVerb(Session& session, const Options& options) {
  int result = 0;
  for (const std::string& id : options.ids) {
    WorkerPIDRequest request;
    request.set_pid(id);
    JobStatus job;
    const grpc::Status status = session.Ask(
        [&](Worker::Stub& stub, grpc::ClientContext* context) { return stub.JobStatusOf(context, request, &job); });
    const int one = status.ok()
                        ? Print(options.json ? JobJson(job) : StatusText(job, session.GetSettings().user, Now()))
                        : session.Fail(status, id);
    if (result == 0) result = one;
  }
  return result;
}

int WaitVerb(Session& session, const Options& options) { return Waiter(session, options).Run(); }

int ListVerb(Session& session, const Options& options) {
  JobListRequest request = ListRequest(options);
  uint64_t left = options.count.value_or(UINT64_MAX);
  Table table;
  std::string text;
  do {
    request.set_page_size(static_cast<uint32_t>(std::min<uint64_t>(left, kPage)));
    JobListResponse response;
    const grpc::Status status = session.Ask(
        [&](Worker::Stub& stub, grpc::ClientContext* context) { return stub.JobList(context, request, &response); });
    if (!status.ok()) return session.Fail(status);
    for (const JobStatus& job : response.jobs()) {
      if (left == 0) break;
      --left;
      if (options.json || options.ids_only) {
        text += options.json ? JobJson(job) : Escape(job.pid()) + "\n";
      } else {
        table.Add(job, Now());
      }
    }
    request.set_page_token(response.next_page_token());
  } while (left > 0 && !request.page_token().empty());
  return Print(options.json || options.ids_only ? text : table.Text());
}

}  // namespace jobworker
