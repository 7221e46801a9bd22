// Each verb of the real program, and what it asks of a server and makes of the answer.
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "tests/unit/cli_program.h"

namespace jobworker::testing {
namespace {

using Json = nlohmann::json;

JobStatus Job(const string& id, JobStatus::State state) {
  JobStatus job;
  job.set_pid(id);
  job.set_state(state);
  job.add_argv("sleep");
  job.add_argv("1 \x1b[2J");
  job.set_started_us(1'795'517'538'123'456);
  (*job.mutable_labels())["team"] = "web\x1b]0;x";
  job.mutable_limits()->set_cpu_milli(500);
  job.mutable_limits()->set_memory_bytes(134217728);
  job.mutable_output()->set_end(2048);
  job.mutable_output()->set_policy("drop-oldest");
  return job;
}

JobStatus EndedJob(const string& id, int code) {
  JobStatus job = Job(id, JobStatus::ENDED);
  job.mutable_end()->set_cause(JobEnd::EXITED);
  job.mutable_end()->set_reason(JobEnd::EXITED_BY_ITSELF);
  job.mutable_end()->set_exit_code(code);
  return job;
}

std::vector<Json> Lines(const string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

class CliVerbs : public CliProgram {};

TEST_F(CliVerbs, StartAsksForAllThatItsFlagsSay) {
  WorkerStartRequest got;
  worker_.start = [&](const WorkerStartRequest& request, auto& writer, auto&) {
    got = request;
    writer.Write(Exited(0));
    return grpc::Status::OK;
  };
  EXPECT_EQ(Run({"start", "--cwd",           "/srv", "--timeout", "10m", "--cpu",      "150%", "--memory",
                 "1G",    "--pids",          "9",    "--io-read", "1M",  "--io-write", "2M",   "--label",
                 "a=b",   "--on-disconnect", "stop", "--lease",   "30s", "make"})
                .status,
            0);
  EXPECT_EQ(got.directory(), "/srv");
  EXPECT_EQ(got.timeout_ms(), 600000U);
  EXPECT_EQ(got.limits().cpu_milli(), 1500U);
  EXPECT_EQ(got.limits().memory_bytes(), 1073741824U);
  EXPECT_EQ(got.limits().pids(), 9U);
  EXPECT_EQ(got.limits().read_bytes_per_second(), 1048576U);
  EXPECT_EQ(got.limits().write_bytes_per_second(), 2097152U);
  EXPECT_EQ(got.labels().at("a"), "b");
  EXPECT_EQ(got.on_disconnect(), ON_DISCONNECT_STOP);
  EXPECT_EQ(got.lease_ms(), 30000U);
  EXPECT_FALSE(got.want_stdin());
  Run({"start", "ls"});
  EXPECT_FALSE(got.has_timeout_ms());
  EXPECT_FALSE(got.has_lease_ms());
  EXPECT_FALSE(got.limits().has_cpu_milli());
  EXPECT_EQ(got.on_disconnect(), ON_DISCONNECT_KEEP);
}

TEST_F(CliVerbs, BadAmountsNeverGetToTheServer) {
  const Outcome outcome = Run({"start", "--memory", "lots", "ls"});
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "--memory: 'lots' is not a size");
}

TEST_F(CliVerbs, ATimeoutGives124AndItsWords) {
  worker_.start = [](const auto&, auto& writer, auto&) {
    WorkerResponse response = Exited(0);
    response.mutable_end()->set_reason(JobEnd::TIMED_OUT);
    response.mutable_end()->set_stop_signal(SIGTERM);
    writer.Write(response);
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"start", "ls"});
  EXPECT_EQ(outcome.status, 124);
  EXPECT_EQ(outcome.err,
            "jobworker: job 3 was stopped because its timeout was over, with signal 15 (SIGTERM); it exited with 0\n");
}

TEST_F(CliVerbs, QueryAsksForWhatItsFlagsSay) {
  WorkerPIDRequest got;
  worker_.query = [&](const WorkerPIDRequest& request, auto& writer) {
    got = request;
    writer.Write(Exited(0));
    return grpc::Status::OK;
  };
  Run({"query", "--from", "64K", "--no-follow", "--stdout", "7"});
  EXPECT_EQ(got.pid(), "7");
  EXPECT_EQ(got.offset(), 65536U);
  EXPECT_TRUE(got.no_follow());
  EXPECT_EQ(got.streams(), WorkerPIDRequest::ONLY_STDOUT);
  EXPECT_FALSE(got.has_tail_lines() || got.has_tail_bytes());
  Run({"query", "--tail", "5", "--stderr", "7"});
  EXPECT_EQ(got.tail_lines(), 5U);
  EXPECT_EQ(got.streams(), WorkerPIDRequest::ONLY_STDERR);
  EXPECT_FALSE(got.no_follow());
  Run({"query", "--tail", "5K", "7"});
  EXPECT_EQ(got.tail_bytes(), 5120U);
  EXPECT_EQ(got.streams(), WorkerPIDRequest::BOTH);
}

TEST_F(CliVerbs, QueryWithoutFollowingEndsWithWhatIsThere) {
  worker_.query = [](const auto&, auto& writer) {
    writer.Write(Output("so far"));
    WorkerResponse last = Output("");
    last.set_partial(true);
    writer.Write(last);
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"query", "--no-follow", "3"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "so far");
  EXPECT_EQ(outcome.err, "");
}

TEST_F(CliVerbs, TimestampsStandBeforeEachLineOfEachStream) {
  worker_.query = [](const auto&, auto& writer) {
    for (WorkerResponse response : {Output("a\nb"), Output("e\n", STDERR), Output("c\n\n")}) {
      response.set_time_us(1'795'517'538'000'001);
      writer.Write(response);
    }
    writer.Write(Output("untimed\n"));
    writer.Write(Exited(0));
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"query", "--timestamps", "3"});
  const string time = "2026-11-24T10:52:18.000001Z ";
  EXPECT_EQ(outcome.out, time + "a\n" + time + "bc\n" + time + "\n- untimed\n");
  EXPECT_EQ(outcome.err, time + "e\n");
}

TEST_F(CliVerbs, JsonOfAStreamIsOneObjectALine) {
  worker_.start = [](const auto&, auto& writer, auto&) {
    WorkerResponse first = Output("");
    *first.mutable_status() = Job("3", JobStatus::RUNNING);
    writer.Write(first);
    WorkerResponse out = Output("h\u00e9\x1b\n");
    out.set_offset(0);
    out.set_time_us(5);
    writer.Write(out);
    WorkerResponse err = Output("\xff\n", STDERR);
    err.set_offset(100);
    err.set_dropped(94);
    writer.Write(err);
    writer.Write(Exited(7));
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"--json", "start", "x"});
  EXPECT_EQ(outcome.status, 7);
  EXPECT_EQ(outcome.out.find('\x1b'), string::npos);
  const auto lines = Lines(outcome.out);
  ASSERT_EQ(lines.size(), 5U);
  for (const Json& line : lines) EXPECT_EQ(line["v"], 1);
  EXPECT_EQ(lines[0]["type"], "job");
  EXPECT_EQ(lines[0]["state"], "running");
  EXPECT_EQ(lines[1], Json::parse(R"({"v":1,"type":"output","id":"3","stream":"stdout","offset":0,"time_us":5,
                                      "data":"h\u00e9\u001b\n"})"));
  EXPECT_EQ(lines[2], Json::parse(R"({"v":1,"type":"gap","id":"3","dropped":94,"offset":100})"));
  EXPECT_EQ(lines[3]["data"], Json::parse(R"({"base64":"/wo="})"));
  EXPECT_EQ(lines[3]["stream"], "stderr");
  EXPECT_EQ(lines[4]["type"], "end");
  EXPECT_EQ(lines[4]["exit_status"], 7);
}

TEST_F(CliVerbs, ListTurnsPagesAndEscapes) {
  std::vector<JobListRequest> got;
  worker_.list = [&](const JobListRequest& request, JobListResponse& response) {
    got.push_back(request);
    *response.add_jobs() = request.page_token().empty() ? Job("12", JobStatus::RUNNING) : EndedJob("2", 7);
    if (request.page_token().empty()) response.set_next_page_token("more");
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"list", "--live", "--label", "team=web"});
  EXPECT_EQ(outcome.status, 0);
  ASSERT_EQ(got.size(), 2U);
  EXPECT_EQ(got[0].states_size(), 3);
  EXPECT_EQ(got[0].labels().at("team"), "web");
  EXPECT_EQ(got[1].page_token(), "more");
  EXPECT_EQ(got[1].states_size(), 3);
  ExpectPart(outcome.out, "ID     STATE");
  ExpectPart(outcome.out, "12     running");
  ExpectPart(outcome.out, "2      exited 7");
  ExpectPart(outcome.out, R"(sleep '1 \x1b[2J' {team=web\x1b]0;x})");
  EXPECT_EQ(outcome.out.find('\x1b'), string::npos);
  EXPECT_EQ(Run({"list", "--ids"}).out, "12\n2\n");
  EXPECT_EQ(Run({"list", "--ids", "-n", "1"}).out, "12\n");
  EXPECT_EQ(got.back().page_size(), 1U);
  const auto lines = Lines(Run({"list", "--json"}).out);
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[1]["id"], "2");
  EXPECT_EQ(lines[1]["end"]["exit_code"], 7);
}

TEST_F(CliVerbs, StatusInWordsAndInJson) {
  worker_.status = [](const WorkerPIDRequest& request, JobStatus& job) {
    job = EndedJob(request.pid(), 0);
    job.mutable_usage()->set_cpu_user_us(1'500'000);
    job.set_timeout_ms(60000);
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"status", "3", "4"});
  EXPECT_EQ(outcome.status, 0);
  for (const char* part : {"job 3: exited 0\n", "job 4: exited 0\n", "limits     cpu 0.5, memory 128 MiB\n",
                           "end        job 3 exited with 0\n", "output     2 KiB", "usage      cpu 1.5 s user",
                           "timeout    1 min 0 s", R"(label      team=web\x1b]0;x)"}) {
    ExpectPart(outcome.out, part);
  }
  EXPECT_EQ(outcome.out.find('\x1b'), string::npos);
  const auto lines = Lines(Run({"status", "--json", "3"}).out);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_EQ(lines[0]["limits"]["memory_bytes"], 134217728);
  EXPECT_EQ(lines[0]["usage"]["cpu_user_us"], 1500000);
  EXPECT_EQ(lines[0]["argv"][1], "1 \x1b[2J");
}

TEST_F(CliVerbs, LastIsTheNewestJob) {
  worker_.list = [](const JobListRequest& request, JobListResponse& response) {
    EXPECT_EQ(request.page_size(), 1U);
    *response.add_jobs() = Job("41", JobStatus::RUNNING);
    return grpc::Status::OK;
  };
  string asked;
  worker_.status = [&](const WorkerPIDRequest& request, JobStatus& job) {
    asked += request.pid() + " ";
    job = Job(request.pid(), JobStatus::RUNNING);
    return grpc::Status::OK;
  };
  EXPECT_EQ(Run({"status", "@last", "3", "41", "3"}).status, 0);
  EXPECT_EQ(asked, "41 3 ");  // each once
  worker_.list = [](const auto&, auto&) { return grpc::Status::OK; };
  const Outcome none = Run({"query", "@last"});
  EXPECT_EQ(none.status, 125);
  ExpectPart(none.err, "there is no @last");
}

TEST_F(CliVerbs, StopPassesItsFlagsOnAndTakesSeveralIds) {
  std::mutex mutex;
  std::map<string, WorkerPIDRequest> got;
  worker_.stop = [&](const WorkerPIDRequest& request, WorkerResponse& response) {
    const std::lock_guard lock(mutex);
    got[request.pid()] = request;
    if (request.pid() == "9") return grpc::Status(grpc::StatusCode::NOT_FOUND, "you have no job with this id");
    response.set_pid(request.pid());
    response.set_log(fmt::format("job {} is stopped\n", request.pid()));
    response.mutable_end()->set_cause(JobEnd::SIGNALLED);
    response.mutable_end()->set_signal(SIGTERM);
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"stop", "--signal", "INT", "--grace", "1m", "3", "9", "4"});
  EXPECT_EQ(outcome.status, 125);
  EXPECT_EQ(outcome.out, "job 3 is stopped\njob 4 is stopped\n");
  EXPECT_EQ(outcome.err, "jobworker: job 9: you have no job with this id\n");
  EXPECT_EQ(got["4"].signal(), SIGINT);
  EXPECT_EQ(got["4"].grace_ms(), 60000U);
  EXPECT_FALSE(got["4"].now());
  const auto lines = Lines(Run({"stop", "--json", "--now", "3"}).out);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_EQ(lines[0]["exit_status"], 143);
  EXPECT_TRUE(got["3"].now());
  EXPECT_FALSE(got["3"].has_grace_ms());
}

TEST_F(CliVerbs, WaitTellsEachEndAndGivesTheFirstFailure) {
  std::vector<JobWaitRequest> got;
  worker_.wait = [&](const JobWaitRequest& request, auto& writer) {
    got.push_back(request);
    for (const auto& [id, code] : std::map<string, int>{{"5", 0}, {"4", 7}, {"3", 8}}) {
      if (std::find(request.pids().begin(), request.pids().end(), id) != request.pids().end()) {
        writer.Write(EndedJob(id, code));
        if (got.size() == 1 || request.any()) break;  // the first stream breaks off after one
      }
    }
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"wait", "3", "4", "5"});
  EXPECT_EQ(outcome.out, "job 3 exited with 8\njob 4 exited with 7\njob 5 exited with 0\n");
  EXPECT_EQ(outcome.status, 8);
  ASSERT_EQ(got.size(), 2U);
  EXPECT_EQ(got[1].pids_size(), 2);
  const Outcome any = Run({"wait", "--any", "--json", "4", "5"});
  EXPECT_EQ(any.status, 7);
  EXPECT_EQ(Lines(any.out).size(), 1U);
  EXPECT_TRUE(got.back().any());
  worker_.wait = [](const auto&, auto&) { return grpc::Status(grpc::StatusCode::NOT_FOUND, "you have no job 9"); };
  EXPECT_EQ(Run({"wait", "9"}).status, 125);
}

TEST_F(CliVerbs, SignalAndRm) {
  WorkerPIDRequest got;
  worker_.signal = [&](const WorkerPIDRequest& request, auto&) {
    got = request;
    return grpc::Status::OK;
  };
  EXPECT_EQ(Run({"signal", "HUP", "3"}).out, "signal 1 (SIGHUP) was sent to job 3\n");
  EXPECT_EQ(got.signal(), SIGHUP);
  EXPECT_EQ(Run({"signal", "--json", "10", "3"}).out, "{\"v\":1,\"type\":\"signalled\",\"id\":\"3\",\"signal\":10}\n");
  worker_.remove = [](const WorkerPIDRequest& request, auto&) {
    if (request.pid() == "4") return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "it has not ended");
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"rm", "3", "4", "5"});
  EXPECT_EQ(outcome.out, "job 3 is forgotten\njob 5 is forgotten\n");
  EXPECT_EQ(outcome.status, 125);
  EXPECT_EQ(outcome.err, "jobworker: job 4: it has not ended\n");
  EXPECT_EQ(Run({"rm", "--json", "3"}).out, "{\"v\":1,\"type\":\"removed\",\"id\":\"3\"}\n");
}

TEST_F(CliVerbs, WhoAmIAndVersion) {
  worker_.identity.set_user("alice");
  worker_.identity.add_rights("allow_start");
  worker_.identity.mutable_ceilings()->set_cpu_milli(2000);
  worker_.identity.set_jobs_live(2);
  const Outcome words = Run({"whoami"});
  for (const char* part :
       {"alice at 127.0.0.1", "rights       allow_start", "all jobs     cpu 2", "2 live and 0 ended"}) {
    ExpectPart(words.out, part);
  }
  EXPECT_EQ(Lines(Run({"whoami", "--json"}).out)[0]["rights"], Json::parse(R"(["allow_start"])"));
  worker_.version.set_version("9.9\x1b");
  ExpectPart(Run({"version"}).out, "jobworker " JOBWORKER_VERSION "\njobserver 9.9\\x1b at");
  ExpectPart(Run({"version"}).out, "its jobbroker is away");
  EXPECT_EQ(Lines(Run({"version", "--json"}).out)[0]["client"], JOBWORKER_VERSION);
  server_->Shutdown();
  const Outcome away = Run({"version"});
  EXPECT_EQ(away.status, 125);
  EXPECT_EQ(away.out, "jobworker " JOBWORKER_VERSION "\n");
}

TEST_F(CliVerbs, ConfigAndCompletionAskNobody) {
  server_->Shutdown();
  fs::remove(directory_ / "alice.pem");
  const Outcome config = Run({"-u", "bob", "config"});
  EXPECT_EQ(config.status, 0);
  ExpectPart(config.out, "profile   bob ");
  ExpectPart(config.out, "-u\n");
  const auto lines = Lines(Run({"config", "--json"}).out);
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines[2]["key"], "host");
  EXPECT_EQ(lines[2]["value"], "127.0.0.1");
  EXPECT_EQ(lines[2]["source"], "-h");
  ExpectPart(Run({"completion", "bash"}).out, "complete -F _jobworker jobworker");
  ExpectPart(Run({"completion", "zsh"}).out, "#compdef jobworker");
  ExpectPart(Run({"completion", "fish"}).out, "complete -c jobworker");
  const auto script = Lines(Run({"completion", "fish", "--json"}).out);
  ASSERT_EQ(script.size(), 1U);
  EXPECT_EQ(script[0]["type"], "completion");
  EXPECT_EQ(script[0]["shell"], "fish");
  EXPECT_EQ(script[0]["script"], Run({"completion", "fish"}).out);
}

// A job that takes all input, breaking the connection after so many bytes each time.
class CliInput : public CliProgram {
 protected:
  void Take(std::vector<size_t> breaks) {
    worker_.start = [this](const WorkerStartRequest& request, auto& writer, auto&) {
      EXPECT_TRUE(request.want_stdin());
      WorkerResponse first = Output("");
      first.set_offset(0);
      writer.Write(first);
      return Follow(writer);
    };
    worker_.query = [this](const auto&, auto& writer) { return Follow(writer); };
    worker_.input = [this, breaks = std::move(breaks)](FakeWorker::InputStream& stream) {
      const size_t call = calls_++;
      InputChunk chunk;
      InputResult result;
      while (stream.Read(&chunk)) {
        if (call < breaks.size() && taken_.size() + chunk.data().size() > breaks[call]) {
          Tell([this] { ++cuts_; });
          CutConnections();
          return grpc::Status::OK;
        }
        EXPECT_LE(chunk.offset(), taken_.size());
        EXPECT_LE(chunk.data().size(), 65536U);
        const size_t known = taken_.size() - chunk.offset();
        if (known < chunk.data().size()) taken_ += chunk.data().substr(known);
        result.set_taken(taken_.size());
        result.set_state(chunk.eof() ? INPUT_CLOSED : INPUT_OPEN);
        stream.Write(result);
        if (chunk.eof()) break;
      }
      if (result.state() == INPUT_CLOSED) Tell([this] { complete_ = true; });
      return grpc::Status::OK;
    };
  }
  // Ends with the job, or without an end when the connection is cut.
  grpc::Status Follow(FakeWorker::Writer& writer) {
    WorkerResponse at = Output("");
    at.set_offset(0);
    writer.Write(at);
    std::unique_lock lock(mutex_);
    const int cuts = cuts_;
    changed_.wait(lock, [&] { return complete_ || cuts_ > cuts; });
    if (complete_) writer.Write(Exited(0));
    return grpc::Status::OK;
  }
  void Tell(const std::function<void()>& change) {
    const std::lock_guard lock(mutex_);
    change();
    changed_.notify_all();
  }
  Outcome Send(Process process, const string& bytes) {
    std::thread writer([&] {
      EXPECT_EQ(write(process.in.Get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
      process.in.Reset();
    });
    const Outcome outcome = process.Wait();
    writer.join();
    return outcome;
  }

  std::atomic<size_t> calls_ = 0;
  string taken_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int cuts_ = 0;
  bool complete_ = false;
};

string Pattern(size_t size) {
  string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 7 + i / 251);
  return text;
}

TEST_F(CliInput, EveryByteAndTheEndGetToTheJob) {
  Take({});
  const string bytes = Pattern(5'000'000);
  const Outcome outcome = Send(Launch({"start", "--stdin", "cat"}), bytes);
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.err, "");
  EXPECT_TRUE(taken_ == bytes);
}

TEST_F(CliInput, NothingIsLostOrDoubledWhenTheConnectionBreaks) {
  Take({1'000'000, 3'000'000});
  const string bytes = Pattern(5'000'000);
  const Outcome outcome = Send(Launch({"start", "--stdin", "cat"}), bytes);
  EXPECT_EQ(outcome.status, 0);
  EXPECT_TRUE(taken_ == bytes);
  EXPECT_GE(calls_, 3U);
}

TEST_F(CliInput, EmptyInputIsAnEndAtOnce) {
  Take({});
  EXPECT_EQ(Send(Launch({"start", "--stdin", "cat"}), "").status, 0);
  EXPECT_EQ(taken_, "");
}

}  // namespace
}  // namespace jobworker::testing
