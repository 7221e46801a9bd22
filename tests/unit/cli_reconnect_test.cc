// Connections that break and servers that go and come back, while the real program talks to them.
#include <atomic>
#include <semaphore>
#include <set>

#include "tests/unit/cli_program.h"

namespace jobworker::testing {
namespace {

constexpr size_t kChunk = 1000;

string Numbered(size_t size) {
  string text;
  for (int line = 0; text.size() < size; ++line) text += fmt::format("{}\n", line);
  return text.substr(0, size);
}

WorkerResponse At(uint64_t offset, const string& bytes, Stream stream = STDOUT) {
  WorkerResponse response = Output(bytes, stream);
  response.set_offset(offset);
  return response;
}

class CliReconnect : public CliProgram {
 protected:
  // Serves output_ from a position on, up to another, or with the end of the job when that is all.
  void Send(FakeWorker::Writer& writer, uint64_t from, uint64_t to) {
    writer.Write(At(from, ""));
    for (uint64_t at = from; at < to; at += kChunk) writer.Write(At(at, output_.substr(at, std::min(kChunk, to - at))));
    if (to < output_.size()) return;
    WorkerResponse last = Exited(4);
    last.set_offset(to);
    writer.Write(last);
  }
  // Only the first half of the job's output, and nothing more until the test lets go.
  void StartHalf() {
    worker_.start = [this](const WorkerStartRequest& request, auto& writer, auto&) {
      keys_.push_back(request.request_key());
      Send(writer, 0, output_.size() / 2);
      go_.acquire();
      return grpc::Status::OK;
    };
  }
  void QueryRest() {
    worker_.query = [this](const WorkerPIDRequest& request, auto& writer) {
      asked_.push_back(request.offset());
      Send(writer, request.offset(), output_.size());
      return grpc::Status::OK;
    };
  }

  const string output_ = Numbered(100 * kChunk);
  std::counting_semaphore<> go_{0};
  std::vector<string> keys_;
  std::vector<uint64_t> asked_;
};

// Even without reconnecting, and without a word: nothing was lost.
TEST_F(CliReconnect, AServerThatWaitsForThatIsToldWhatHasArrived) {
  std::set<uint64_t> readers;
  const auto send_part = [this](uint64_t from, auto& writer) {
    const uint64_t to = std::min<uint64_t>(from + 10 * kChunk, output_.size());
    Send(writer, from, to);
    if (to == output_.size()) return grpc::Status::OK;
    WorkerResponse last = At(to, "");
    last.set_resume(true);
    writer.Write(last);
    return grpc::Status::OK;
  };
  worker_.start = [&](const WorkerStartRequest& request, auto& writer, auto&) {
    readers.insert(request.reader());
    return send_part(0, writer);
  };
  worker_.query = [&](const WorkerPIDRequest& request, auto& writer) {
    readers.insert(request.reader());
    asked_.push_back(request.offset());
    return send_part(request.offset(), writer);
  };
  const Outcome outcome = Launch({"--no-reconnect", "start", "x"}).Wait();
  EXPECT_EQ(readers.size(), 1U);
  EXPECT_EQ(readers.count(0), 0U);
  EXPECT_EQ(outcome.status, 4);
  EXPECT_TRUE(outcome.out == output_);
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(asked_.size(), 9U);
}

TEST_F(CliReconnect, OutputGoesOnWhereItWasCutAgainAndAgain) {
  StartHalf();
  worker_.query = [this](const WorkerPIDRequest& request, auto& writer) {
    EXPECT_EQ(request.pid(), "3");
    asked_.push_back(request.offset());
    const bool last = asked_.size() == 4;
    Send(writer, request.offset(), last ? output_.size() : request.offset() + 10 * kChunk);
    if (!last) go_.acquire();
    return grpc::Status::OK;
  };
  Process process = Launch({"start", "x"});
  string seen = ReadBytes(process.out.Get(), output_.size() / 2);
  for (int cut = 0; cut < 4; ++cut) {
    CutConnections();
    go_.release();
    if (cut < 3) seen += ReadBytes(process.out.Get(), 10 * kChunk);
  }
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.status, 4);
  EXPECT_TRUE(seen + outcome.out == output_);
  EXPECT_EQ(asked_, (std::vector<uint64_t>{50 * kChunk, 60 * kChunk, 70 * kChunk, 80 * kChunk}));
  const string server = fmt::format("127.0.0.1:{}", port_);
  string words;
  for (const uint64_t from : asked_) {
    words += fmt::format("jobworker: the connection to {} was lost; trying again\n", server);
    words += fmt::format("jobworker: connected to {} again; job 3 goes on from byte {}\n", server, from);
  }
  EXPECT_EQ(outcome.err, words);
}

TEST_F(CliReconnect, AServerThatIsStoppedAndComesBack) {
  StartHalf();
  QueryRest();
  Process process = Launch({"start", "x"});
  const string half = ReadBytes(process.out.Get(), output_.size() / 2);
  std::thread stop([this] { server_->Shutdown(std::chrono::system_clock::now()); });
  ExpectPart(ReadLine(process.err.Get()), "trying again");
  go_.release();
  stop.join();
  Serve();
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.status, 4);
  EXPECT_TRUE(half + outcome.out == output_);
  EXPECT_EQ(asked_, std::vector<uint64_t>{50 * kChunk});
  EXPECT_EQ(outcome.err,
            fmt::format("jobworker: connected to 127.0.0.1:{} again; job 3 goes on from byte 50000\n", port_));
}

TEST_F(CliReconnect, AStartThatWasNotAnsweredIsRepeatedWithItsKey) {
  worker_.start = [this](const WorkerStartRequest& request, auto& writer, auto&) {
    keys_.push_back(request.request_key());
    if (keys_.size() < 3) {
      CutConnections();
    } else {
      Send(writer, 0, output_.size());
    }
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"start", "x"});
  EXPECT_EQ(outcome.status, 4);
  EXPECT_TRUE(outcome.out == output_);
  ASSERT_EQ(keys_.size(), 3U);
  EXPECT_EQ(keys_[0].size(), 16U);
  EXPECT_EQ(keys_[1], keys_[0]);
  EXPECT_EQ(keys_[2], keys_[0]);
  Run({"start", "x"});
  EXPECT_NE(keys_[3], keys_[0]);
}

TEST_F(CliReconnect, ADetachedStartAndAStopAreRepeatedToo) {
  worker_.start = [this](const WorkerStartRequest& request, auto& writer, auto&) {
    keys_.push_back(request.request_key());
    if (keys_.size() == 1) CutConnections();
    writer.Write(At(0, ""));
    return grpc::Status::OK;
  };
  EXPECT_EQ(Run({"start", "-d", "x"}).out, "3\n");
  ASSERT_EQ(keys_.size(), 2U);
  EXPECT_EQ(keys_[1], keys_[0]);
  int stops = 0;
  worker_.stop = [this, &stops](const auto&, WorkerResponse& response) {
    response = Exited(0);
    response.set_log("job 3 is stopped\n");
    if (++stops == 1) CutConnections();
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"stop", "3"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "job 3 is stopped\n");
  EXPECT_EQ(stops, 2);
}

TEST_F(CliReconnect, NoReconnectEndsAtTheFirstLoss) {
  StartHalf();
  Process process = Launch({"--no-reconnect", "start", "x"});
  const string half = ReadBytes(process.out.Get(), output_.size() / 2);
  CutConnections();
  go_.release();
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.status, 125);
  EXPECT_EQ(keys_.size(), 1U);
  ExpectPart(outcome.err, "was lost; to see what has become of job 3: jobworker");
}

TEST_F(CliReconnect, StreamsWithoutAnEndAreGoneOnWith) {
  const grpc::Status broken[] = {grpc::Status::OK,
                                 {grpc::StatusCode::UNAVAILABLE, "the broker is away"},
                                 {grpc::StatusCode::CANCELLED, "stopped"},
                                 {grpc::StatusCode::RESOURCE_EXHAUSTED, "too many requests"}};
  size_t calls = 0;
  worker_.query = [&](const WorkerPIDRequest& request, auto& writer) {
    Send(writer, request.offset(), calls < 4 ? request.offset() + kChunk : output_.size());
    ++calls;
    return calls <= 4 ? broken[calls - 1] : grpc::Status::OK;
  };
  const Outcome outcome = Run({"query", "3"});
  EXPECT_EQ(outcome.status, 4);
  EXPECT_TRUE(outcome.out == output_);
  EXPECT_EQ(calls, 5U);
  ExpectPart(outcome.err, fmt::format("jobworker: 127.0.0.1:{} broke off; trying again\n", port_));
}

TEST_F(CliReconnect, AnAnswerThatIsFinalEndsIt) {
  StartHalf();
  worker_.query = [](const auto&, auto&) { return grpc::Status(grpc::StatusCode::NOT_FOUND, "you have no such job"); };
  Process process = Launch({"start", "x"});
  const string half = ReadBytes(process.out.Get(), output_.size() / 2);
  CutConnections();
  go_.release();
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "no longer knows job 3");
}

TEST_F(CliReconnect, AServerThatTellsNoOffsetsIsNotAskedAgain) {
  int calls = 0;
  worker_.query = [&](const auto&, auto& writer) {
    ++calls;
    writer.Write(Output("x"));
    CutConnections();
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"query", "3"});
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "was lost; to see");
  EXPECT_EQ(calls, 1);
}

TEST_F(CliReconnect, BytesThatComeTwiceAreShownOnceAndAGapIsTold) {
  worker_.query = [](const auto&, auto& writer) {
    for (const auto& response : {At(0, "abc"), At(1, "bcd"), At(2, "cd")}) writer.Write(response);
    WorkerResponse gap = At(10, "k");
    gap.set_dropped(6);
    writer.Write(gap);
    writer.Write(Exited(0));
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"query", "3"});
  EXPECT_EQ(outcome.out, "abcdk");
  EXPECT_EQ(outcome.err,
            "jobworker: 6 bytes of job 3's output before this point are gone: it made more than the server keeps\n");
}

TEST_F(CliReconnect, TheCertificateIsLoadedAgainForANewConnection) {
  StartHalf();
  Process process = Launch({"start", "x"});
  const string half = ReadBytes(process.out.Get(), output_.size() / 2);
  WriteIdentity("alice", Pair("alice", &ca_, nullptr, -60));
  CutConnections();
  go_.release();
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "was lost; trying again\n");
  ExpectPart(outcome.err, "alice.pem cannot be used: ");
  ExpectPart(outcome.err, "expired");
}

}  // namespace
}  // namespace jobworker::testing
