// The real program with a terminal for its standard output and standard error.
#include <fmt/format.h>
#include <pty.h>

#include <semaphore>

#include "tests/unit/cli_program.h"

namespace jobworker::testing {
namespace {

class CliTerminal : public CliProgram {
 protected:
  // All that the program writes to its terminal, or as far as a text that it waits for.
  struct Terminal {
    pid_t pid;
    UniqueFd fd;
    string text;
    bool ReadUntil(const string& part) {
      char buffer[4096];
      while (text.find(part) == string::npos) {
        const ssize_t size = read(fd.Get(), buffer, sizeof buffer);
        if (size <= 0) return false;  // EIO: the program has ended
        text.append(buffer, static_cast<size_t>(size));
      }
      return true;
    }
    int Wait() {
      ReadUntil("\1");  // nothing writes that
      int status = 0;
      waitpid(pid, &status, 0);
      return WEXITSTATUS(status);
    }
  };
  Terminal Launch(const std::vector<string>& words, const char* no_color = nullptr) {
    std::vector<string> argv = {JOBWORKER_PROGRAM, "-h", fmt::format("127.0.0.1:{}", port_), "--certs", directory_};
    argv.insert(argv.end(), words.begin(), words.end());
    std::vector<char*> pointers;
    for (string& word : argv) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    const winsize size{24, 60, 0, 0};
    int fd = -1;
    const pid_t pid = forkpty(&fd, nullptr, nullptr, &size);
    if (pid == 0) {
      setenv("TERM", "xterm", 1);
      if (no_color != nullptr) setenv("NO_COLOR", no_color, 1);
      execv(pointers[0], pointers.data());
      _exit(99);
    }
    return {pid, UniqueFd(fd), ""};
  }
  void ListOneLongJob() {
    worker_.list = [](const auto&, JobListResponse& response) {
      JobStatus& job = *response.add_jobs();
      job.set_pid("7");
      job.set_state(JobStatus::RUNNING);
      job.add_argv(string(200, 'x'));
      return grpc::Status::OK;
    };
  }
};

TEST_F(CliTerminal, PeopleAreToldTheIdAndThatTheirCertificateEndsSoon) {
  worker_.start = [](const auto&, auto& writer, auto&) {
    writer.Write(Output(""));
    writer.Write(Exited(0));
    return grpc::Status::OK;
  };
  WriteIdentity("bob", Pair("bob", &ca_, nullptr, 13 * 86400 + 3600));
  WriteIdentity("dora", Pair("dora", &ca_, nullptr, 15 * 86400));
  Terminal alice = Launch({"start", "x"});
  EXPECT_EQ(alice.Wait(), 0);
  ExpectPart(alice.text, "alice.pem ends within two days; ask for a new one");
  ExpectPart(alice.text, "jobworker: job 3\r\n");
  Terminal bob = Launch({"-u", "bob", "start", "x"});
  EXPECT_EQ(bob.Wait(), 0);
  ExpectPart(bob.text, "bob.pem ends in 13 days; ask for a new one");
  Terminal dora = Launch({"-u", "dora", "start", "x"});
  EXPECT_EQ(dora.Wait(), 0);
  EXPECT_EQ(dora.text, "jobworker: job 3\r\n");
}

TEST_F(CliTerminal, ASlowAnswerIsNoticed) {
  std::binary_semaphore noticed(0);
  worker_.stop = [&](const auto&, WorkerResponse& response) {
    noticed.acquire();
    response.set_log("job 3 is stopped\n");
    return grpc::Status::OK;
  };
  Terminal terminal = Launch({"stop", "3"});
  EXPECT_TRUE(terminal.ReadUntil(fmt::format("waiting for the answer of 127.0.0.1:{} ...", port_))) << terminal.text;
  noticed.release();
  EXPECT_EQ(terminal.Wait(), 0);
  ExpectPart(terminal.text, "job 3 is stopped\r\n");
}

TEST_F(CliTerminal, AListIsColouredAndCutToTheWidthUnlessNoColorIsSet) {
  ListOneLongJob();
  Terminal terminal = Launch({"list"});
  EXPECT_EQ(terminal.Wait(), 0);
  ExpectPart(terminal.text, "7      \x1b[32mrunning       \x1b[0m0 ms ago         xxx");
  EXPECT_EQ(terminal.text.find(string(60, 'x')), string::npos);
  for (const char* value : {"1", ""}) {
    Terminal plain = Launch({"list"}, value);
    EXPECT_EQ(plain.Wait(), 0);
    // Empty counts as not set.
    EXPECT_EQ(plain.text.find('\x1b') == string::npos, *value != '\0') << plain.text;
  }
}

TEST_F(CliTerminal, CtrlCIsTypedAndTold) {
  std::binary_semaphore signalled(0);
  worker_.start = [&](const auto&, auto& writer, auto&) {
    writer.Write(Output(""));
    signalled.acquire();
    writer.Write(Exited(0));
    return grpc::Status::OK;
  };
  worker_.signal = [&](const auto&, auto&) {
    signalled.release();
    return grpc::Status::OK;
  };
  Terminal terminal = Launch({"start", "x"});
  ASSERT_TRUE(terminal.ReadUntil("job 3\r\n")) << terminal.text;
  ASSERT_EQ(write(terminal.fd.Get(), "\3", 1), 1);
  EXPECT_EQ(terminal.Wait(), 0);
  ExpectPart(terminal.text, "sent SIGINT to job 3; Ctrl-C again within 2 seconds stops it");
}

}  // namespace
}  // namespace jobworker::testing
