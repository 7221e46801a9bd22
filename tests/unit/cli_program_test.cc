#include "tests/unit/cli_program.h"

#include <condition_variable>
#include <mutex>

namespace jobworker::testing {
namespace {

TEST_F(CliProgram, StartShowsBothStreamsAndExitsAsTheJob) {
  WorkerStartRequest received;
  worker_.start = [&](const WorkerStartRequest& request, auto& writer, auto&) {
    received = request;
    for (const auto& response : {Output(""), Output(string("a\0b\xff\r\n", 6)), Output("bad\n", STDERR), Exited(7)}) {
      writer.Write(response);
    }
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"start", "--env", "A=b c", "ls", "-l", "a b"});
  EXPECT_EQ(outcome.status, 7);
  EXPECT_EQ(outcome.out, string("a\0b\xff\r\n", 6));
  EXPECT_EQ(outcome.err, "bad\n");
  EXPECT_EQ(received.command(), "ls");
  ASSERT_EQ(received.args_size(), 2);
  EXPECT_EQ(received.args(1), "a b");
  EXPECT_EQ(received.env(0), "A=b c");
}

TEST_F(CliProgram, OneWordIsSplitByTheServerUnlessItComesAfterDashes) {
  string command;
  worker_.start = [&](const WorkerStartRequest& request, auto& writer, auto&) {
    command = request.command();
    writer.Write(Exited(0));
    return grpc::Status::OK;
  };
  EXPECT_EQ(Run({"start", "ls -l"}).status, 0);
  EXPECT_EQ(command, "ls -l");
  EXPECT_EQ(Run({"start", "--", "my tool"}).status, 0);
  EXPECT_EQ(command, "'my tool'");
}

TEST_F(CliProgram, DetachPrintsOnlyTheId) {
  worker_.start = [](const auto&, auto& writer, grpc::ServerContext& context) {
    writer.Write(Output(""));
    writer.Write(Output("not to be seen"));
    while (!context.IsCancelled()) writer.Write(Output(""));
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"start", "-d", "--", "x"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "3\n");
  EXPECT_EQ(outcome.err, "");
}

TEST_F(CliProgram, StopConfirmsEscaped) {
  worker_.stop = [](const WorkerPIDRequest& request, WorkerResponse& response) {
    response.set_pid(request.pid());
    response.set_log("job 3 has been stopped \x1b[2J\n");
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"stop", "3"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "job 3 has been stopped \\x1b[2J\n");
}

TEST_F(CliProgram, QueryTellsHowTheJobEndedAndWhatIsMissing) {
  worker_.query = [](const auto&, auto& writer) {
    WorkerResponse first = Output("");
    first.add_unenforced("io");
    writer.Write(first);
    WorkerResponse gap = Output("late\n");
    gap.set_dropped(12);
    writer.Write(gap);
    WorkerResponse last = Output("");
    last.mutable_end()->set_cause(JobEnd::SIGNALLED);
    last.mutable_end()->set_signal(SIGTERM);
    writer.Write(last);
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"query", "3"});
  EXPECT_EQ(outcome.status, 143);
  EXPECT_EQ(outcome.out, "late\n");
  for (const char* part : {"does not enforce these limits on job 3: io", "12 bytes", "signal 15 (SIGTERM)"}) {
    ExpectPart(outcome.err, part);
  }
}

TEST_F(CliProgram, RefusalsAreWordsAndTheRightStatus) {
  StartFailure failure;
  failure.set_stage("exec");
  failure.set_error(ENOENT);
  const struct {
    grpc::Status status;
    int exit;
    const char* part;
  } cases[] = {{{grpc::StatusCode::FAILED_PRECONDITION, "no such program: x", failure.SerializeAsString()},
                127,
                "no such program"},
               {{grpc::StatusCode::PERMISSION_DENIED, "carl may not"}, 125, "not allowed: carl may not"},
               {{grpc::StatusCode::NOT_FOUND, "no job 9"}, 125, "jobworker: no job 9"},
               {{grpc::StatusCode::UNAUTHENTICATED, "two CNs"}, 125, "alice.pem: two CNs"},
               {{grpc::StatusCode::UNAVAILABLE, "the broker is away"}, 125, "the broker is away; try again"},
               {{grpc::StatusCode::UNIMPLEMENTED, ""}, 125, "is it a jobserver"},
               {{grpc::StatusCode::INVALID_ARGUMENT, "bad\x1b]"}, 125, "bad\\x1b]"},
               {{grpc::StatusCode::INVALID_ARGUMENT, "limits.pids: 9"}, 125, "jobworker: --pids (limits.pids): 9"},
               {{grpc::StatusCode::INVALID_ARGUMENT, "pids: 9"}, 125, "jobworker: ID (pids): 9"}};
  for (const auto& refused : cases) {
    Refuse(refused.status);
    const Outcome outcome = Run({"start", "x"});
    EXPECT_EQ(outcome.status, refused.exit);
    ExpectPart(outcome.err, refused.part);
    EXPECT_EQ(outcome.out, "");
  }
}

TEST_F(CliProgram, NothingListens) {
  server_->Shutdown();
  const Outcome outcome = Run({"query", "1"});
  EXPECT_EQ(outcome.status, 125);
  EXPECT_EQ(outcome.err,
            fmt::format("jobworker: nothing listens on 127.0.0.1:{}: is jobserver running there, and is the "
                        "port right?\n",
                        port_));
}

TEST_F(CliProgram, NotTheServersName) {
  Serve(Pair("worker", &ca_, "DNS:elsewhere.example"), ca_);
  const Outcome outcome = Run({"query", "1"}, "localhost");
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "is not for the name localhost");
}

TEST_F(CliProgram, ServerOfAnotherCa) {
  const Pair other("ca");
  Serve(Pair("worker", &other, "DNS:localhost,IP:127.0.0.1"), other);
  const Outcome outcome = Run({"query", "1"});
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "is not one that");
}

TEST_F(CliProgram, ServerRefusesOurCertificate) {
  const Pair other("other");
  WriteIdentity("alice", Pair("alice", &other));
  const Outcome outcome = Run({"query", "1"});
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "does not accept the certificate");
}

TEST_F(CliProgram, OwnCertificateExpiredOrKeyReadable) {
  WriteIdentity("bob", Pair("bob", &ca_, nullptr, -60));
  ExpectPart(Run({"-u", "bob", "query", "1"}).err, "expired");
  fs::permissions(directory_ / "alice-key.pem", fs::perms(0640));
  const Outcome outcome = Run({"query", "1"});
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "chmod");
}

TEST_F(CliProgram, TalksToSomethingThatIsNotTls) {
  const UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(listener.Get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener.Get(), 5), 0);
  getsockname(listener.Get(), reinterpret_cast<sockaddr*>(&address), &size);
  port_ = ntohs(address.sin_port);
  Process process = Launch({"query", "1"});
  std::thread peer([&] {
    for (int fd; (fd = accept(listener.Get(), nullptr, nullptr)) >= 0; close(fd)) {
      if (write(fd, "SSH-2.0-x\r\n", 11) != 11) break;
    }
  });
  const Outcome outcome = process.Wait();
  shutdown(listener.Get(), SHUT_RDWR);
  peer.join();
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "is a jobserver listening there");
}

// A job that has said `x` and goes on until the client has left.
void Endless(const auto&, FakeWorker::Writer& writer, grpc::ServerContext& context) {
  writer.Write(Output(""));
  while (!context.IsCancelled()) writer.Write(Output(string(65536, 'x')));
}

TEST_F(CliProgram, InterruptsSignalThenStopThenLeaveAndSayHowToComeBack) {
  worker_.start = [](const auto& request, auto& writer, auto& context) {
    Endless(request, writer, context);
    return grpc::Status::OK;
  };
  enum Event { kSignalled, kStopped };
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Event> events;
  const auto tell = [&](Event event) {
    const std::lock_guard lock(mutex);
    events.push_back(event);
    changed.notify_all();
  };
  worker_.signal = [&](const WorkerPIDRequest& request, auto&) {
    EXPECT_EQ(request.pid(), "3");
    EXPECT_EQ(request.signal(), SIGINT);
    tell(kSignalled);
    return grpc::Status::OK;
  };
  worker_.stop = [&](const WorkerPIDRequest& request, auto&) {
    EXPECT_EQ(request.pid(), "3");
    tell(kStopped);
    return grpc::Status::OK;
  };
  const Process process = Launch({"start", "yes"});
  char byte;
  ASSERT_EQ(read(process.out.Get(), &byte, 1), 1);
  // Nobody reads on: the program is stuck in a write to a full pipe, and Ctrl-C works all the same. On a slow machine
  // the second one may come too late to be a stop.
  for (size_t sent = 1; events.empty() || events.back() != kStopped; ++sent) {
    kill(process.pid, SIGINT);
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return events.size() == sent; });
  }
  EXPECT_GE(events.size(), 2U);
  EXPECT_EQ(events[0], kSignalled);
  kill(process.pid, SIGINT);
  const string words = ReadAll(process.err.Get());
  int status = 0;
  waitpid(process.pid, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 130);
  ExpectPart(words, "left job 3 to itself");
  ExpectPart(words, fmt::format("jobworker -h 127.0.0.1:{} --certs {} query 3", port_, directory_.native()));
}

TEST_F(CliProgram, AnInterruptThatCannotBePassedOnIsSaid) {
  worker_.start = [](const auto& request, auto& writer, auto& context) {
    Endless(request, writer, context);
    return grpc::Status::OK;
  };
  worker_.signal = [](const auto&, auto&) { return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "not you"); };
  const Process process = Launch({"start", "yes"});
  char byte;
  ASSERT_EQ(read(process.out.Get(), &byte, 1), 1);
  kill(process.pid, SIGINT);
  EXPECT_EQ(ReadLine(process.err.Get()),
            "jobworker: job 3 could not be sent SIGINT: not allowed: not you; Ctrl-C leaves it to itself\n");
  kill(process.pid, SIGKILL);
  waitpid(process.pid, nullptr, 0);
}

TEST_F(CliProgram, HangUpAndTerminationLeaveTheJobAndSoDoesCtrlCOfAQuery) {
  const auto endless = [](const auto& request, auto& writer) {
    writer.Write(Output(""));
    while (writer.Write(Output(string(65536, 'x')))) static_cast<void>(request);
    return grpc::Status::OK;
  };
  worker_.query = endless;
  for (const int number : {SIGHUP, SIGTERM, SIGINT}) {
    const Process process = Launch({"query", "3"});
    char byte;
    ASSERT_EQ(read(process.out.Get(), &byte, 1), 1);
    kill(process.pid, number);
    ExpectPart(ReadAll(process.err.Get()), "left job 3 to itself; come back to it: jobworker");
    int status = 0;
    waitpid(process.pid, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), 128 + number);
  }
}

TEST_F(CliProgram, AReaderThatGoesEndsItWithoutAWord) {
  worker_.start = [](const auto& request, auto& writer, auto& context) {
    Endless(request, writer, context);
    return grpc::Status::OK;
  };
  Process process = Launch({"start", "yes"});
  char byte;
  ASSERT_EQ(read(process.out.Get(), &byte, 1), 1);
  process.out.Reset();
  EXPECT_EQ(ReadAll(process.err.Get()), "");
  int status = 0;
  waitpid(process.pid, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) ? WTERMSIG(status) == SIGPIPE : WEXITSTATUS(status) == 141);
}

TEST_F(CliProgram, ALostConnectionNamesTheJob) {
  worker_.query = [](const auto&, auto& writer) {
    writer.Write(Output("x"));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Socket closed");
  };
  const Outcome outcome = Run({"query", "3"});
  EXPECT_EQ(outcome.status, 125);
  EXPECT_EQ(outcome.out, "x");
  ExpectPart(outcome.err, "was lost; to see what has become of job 3");
}

}  // namespace
}  // namespace jobworker::testing
