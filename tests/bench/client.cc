// The bench's client: the public API over one open connection, as alice.
#include <grpcpp/grpcpp.h>
#include <jobworker.grpc.pb.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "tests/bench/figures.h"

namespace jobworker::bench {
namespace {

constexpr const char* kUsage =
    "client TARGET CERTS jobs COUNT COMMAND            milliseconds of each job, start to end\n"
    "client TARGET CERTS parallel COUNT AT_ONCE COMMAND   jobs per second\n"
    "client TARGET CERTS follow COMMAND                MB per second that one follower gets, and MB that it missed\n"
    "client TARGET CERTS quiet COUNT COMMAND           starts jobs that stay: milliseconds of each start\n"
    "client TARGET CERTS stop COMMAND                  milliseconds of a stop, once the job has said something\n"
    "client TARGET CERTS idle COMMAND                  follows a job that says nothing until it is stopped\n"
    "client TARGET CERTS crowd JOBS FOLLOWERS COMMAND  of each job; says 0 once all follow, and at the end MB per "
    "second, and bytes that came and that were missed\n"
    "client TARGET CERTS list JOBS                     milliseconds of the first page, and of all pages, of so many\n"
    "client TARGET CERTS delay COMMAND                 `bare ticks`: milliseconds from each write to here\n";

using Stub = Worker::Stub;

std::string FileText(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::shared_ptr<grpc::Channel> Connect(const std::string& target, const std::string& certs) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const grpc::SslCredentialsOptions files{FileText(certs + "/ca.pem"), FileText(certs + "/alice-key.pem"),
                                          FileText(certs + "/alice.pem")};
  auto channel = grpc::CreateCustomChannel(target, grpc::SslCredentials(files), arguments);
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(10);
  Require(channel->WaitForConnected(deadline), "no connection");
  return channel;
}

struct Outcome {
  uint64_t bytes = 0, dropped = 0;
};

// A job from its start to its end.
Outcome RunJob(Stub& stub, const std::string& command) {
  grpc::ClientContext context;
  WorkerStartRequest request;
  WorkerResponse response;
  request.set_command(command);
  const auto stream = stub.JobStart(&context, request);
  Outcome outcome;
  bool ended = false;
  while (stream->Read(&response)) {
    outcome.bytes += response.log().size();
    outcome.dropped += response.dropped();
    ended = response.has_end();
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) (void)fprintf(stderr, "%s\n", status.error_message().c_str());
  Require(status.ok() && ended, "job");
  return outcome;
}

void Jobs(Stub& stub, int count, const std::string& command) {
  for (int i = 0; i < count; ++i) {
    const auto begin = Clock::now();
    RunJob(stub, command);
    Print(MillisecondsSince(begin));
  }
}

void Parallel(Stub& stub, int count, int at_once, const std::string& command) {
  std::atomic<int> left = count;
  std::vector<std::thread> threads;
  const auto begin = Clock::now();
  for (int i = 0; i < at_once; ++i) {
    threads.emplace_back([&] {
      while (left-- > 0) RunJob(stub, command);
    });
  }
  for (std::thread& thread : threads) thread.join();
  Print(count / MillisecondsSince(begin) * 1000);
}

void Follow(Stub& stub, const std::string& command) {
  const auto begin = Clock::now();
  const Outcome outcome = RunJob(stub, command);
  Print(static_cast<double>(outcome.bytes) / MillisecondsSince(begin) / 1000);
  Print(static_cast<double>(outcome.dropped) / 1e6);
}

// Starts a job and hangs up after its first response, or after its first output.
std::string Leave(Stub& stub, const std::string& command, bool after_output) {
  grpc::ClientContext context;
  WorkerStartRequest request;
  WorkerResponse response;
  request.set_command(command);
  const auto stream = stub.JobStart(&context, request);
  Require(stream->Read(&response), "start");
  const std::string id = response.pid();
  while (after_output && response.log().empty()) Require(stream->Read(&response), "output");
  context.TryCancel();
  (void)stream->Finish();
  return id;
}

void Quiet(Stub& stub, int count, const std::string& command) {
  for (int i = 0; i < count; ++i) {
    const auto begin = Clock::now();
    Leave(stub, command, false);
    Print(MillisecondsSince(begin));
  }
}

void Stop(Stub& stub, const std::string& command) {
  WorkerPIDRequest request;
  WorkerResponse response;
  request.set_pid(Leave(stub, command, true));
  grpc::ClientContext context;
  const auto begin = Clock::now();
  Require(stub.JobStop(&context, request, &response).ok(), "stop");
  Print(MillisecondsSince(begin));
}

// One of many followers, on a completion queue.
struct Reader {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<WorkerResponse>> stream;
  WorkerResponse response;
  grpc::Status status;
  enum { kCalled, kReading, kFinished } state = kCalled;
  bool first = true;
};

// All followers at once, read as fast as this thread can.
void Crowd(Stub& stub, int jobs, int followers, const std::string& command) {
  grpc::CompletionQueue queue;
  std::deque<Reader> readers;
  for (int i = 0; i < jobs; ++i) {
    WorkerPIDRequest request;
    request.set_pid(Leave(stub, command, false));
    for (int j = 0; j < followers; ++j) {
      Reader& reader = readers.emplace_back();
      reader.stream = stub.AsyncJobQuery(&reader.context, request, &queue, &reader);
    }
  }
  size_t left = readers.size(), waiting = readers.size();
  uint64_t bytes = 0, missed = 0;
  Clock::time_point begin;
  void* tag = nullptr;
  for (bool ok = false; left > 0 && queue.Next(&tag, &ok);) {
    auto& reader = *static_cast<Reader*>(tag);
    if (reader.state == Reader::kFinished) {
      Require(reader.status.ok(), "a follower");
      --left;
    } else if (!ok) {
      reader.state = Reader::kFinished;
      reader.stream->Finish(&reader.status, &reader);
    } else {
      if (reader.state == Reader::kReading) {
        if (bytes == 0 && !reader.response.log().empty()) begin = Clock::now();
        bytes += reader.response.log().size();
        missed += reader.response.dropped();
        if (std::exchange(reader.first, false) && --waiting == 0) {
          Print(0);
          (void)fflush(stdout);
        }
      }
      reader.state = Reader::kReading;
      reader.stream->Read(&reader.response, &reader);
    }
  }
  Print(static_cast<double>(bytes) / MillisecondsSince(begin) / 1000);
  (void)printf("%lu\n%lu\n", bytes, missed);
}

void Delay(Stub& stub, const std::string& command) {
  grpc::ClientContext context;
  WorkerStartRequest request;
  WorkerResponse response;
  request.set_command(command);
  const auto stream = stub.JobStart(&context, request);
  while (stream->Read(&response)) {
    const auto now = Clock::now();
    const std::string& log = response.log();
    for (size_t at = 0; at + sizeof(now) <= log.size(); at += sizeof(now)) {
      Clock::time_point then;
      std::memcpy(&then, log.data() + at, sizeof(then));
      Print(std::chrono::duration<double, std::milli>(now - then).count());
    }
  }
  Require(stream->Finish().ok(), "job");
}

// Pages of the size that a client gets who asks for none.
void List(Stub& stub, int jobs) {
  JobListRequest request;
  JobListResponse response;
  int seen = 0;
  const auto begin = Clock::now();
  do {
    grpc::ClientContext context;
    Require(stub.JobList(&context, request, &response).ok(), "list");
    if (seen == 0) Print(MillisecondsSince(begin));
    seen += response.jobs_size();
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  Print(MillisecondsSince(begin));
  Require(seen == jobs, "as many jobs as there are");
}

int Main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() < 4) {
    (void)fputs(kUsage, stderr);
    return 1;
  }
  (void)setenv("GRPC_VERBOSITY", "NONE", 0);
  const auto stub = Worker::NewStub(Connect(words[0], words[1]));
  const std::string& verb = words[2];
  const std::string& command = words.back();
  const int count = atoi(words[3].c_str());
  if (verb == "jobs") Jobs(*stub, count, command);
  if (verb == "parallel") Parallel(*stub, count, atoi(words[4].c_str()), command);
  if (verb == "follow") Follow(*stub, command);
  if (verb == "quiet") Quiet(*stub, count, command);
  if (verb == "stop") Stop(*stub, command);
  if (verb == "idle") RunJob(*stub, command);
  if (verb == "crowd") Crowd(*stub, count, atoi(words[4].c_str()), command);
  if (verb == "list") List(*stub, count);
  if (verb == "delay") Delay(*stub, command);
  return 0;
}

}  // namespace
}  // namespace jobworker::bench

int main(int argc, char** argv) { return jobworker::bench::Main(argc, argv); }
