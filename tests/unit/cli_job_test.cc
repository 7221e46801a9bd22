#include "cmd/cli_job.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <clocale>
#include <csignal>
#include <thread>

#include "cmd/cli_connection.h"
#include "cmd/cli_text.h"
#include "common/unique_fd.h"

namespace jobworker {
namespace {

WorkerResponse Ended(JobEnd::Cause cause, int value) {
  WorkerResponse response;
  response.set_pid("3");
  JobEnd& end = *response.mutable_end();
  end.set_cause(cause);
  if (cause == JobEnd::EXITED) end.set_exit_code(value);
  if (cause == JobEnd::SIGNALLED) end.set_signal(value);
  return response;
}

struct Outcome {
  int status;
  std::string words;
};

Outcome Show(const WorkerResponse& response) {
  JobView job("alice", STDOUT_FILENO, STDERR_FILENO);
  EXPECT_EQ(job.Show(response), 0);
  EXPECT_TRUE(job.Complete());
  return {job.ExitStatus(), job.DescribeEnd()};
}

TEST(JobView, PlainExitNeedsNoWords) {
  EXPECT_EQ(Show(Ended(JobEnd::EXITED, 0)).words, "");
  EXPECT_EQ(Show(Ended(JobEnd::EXITED, 7)).status, 7);
  EXPECT_EQ(Show(Ended(JobEnd::EXITED, 7)).words, "");
}

TEST(JobView, SignalsAreNamed) {
  WorkerResponse response = Ended(JobEnd::SIGNALLED, SIGTERM);
  response.mutable_end()->set_stopped(true);
  EXPECT_EQ(Show(response).status, 143);
  EXPECT_EQ(Show(response).words, "job 3 was terminated by signal 15 (SIGTERM), stopped");
  EXPECT_EQ(Show(Ended(JobEnd::SIGNALLED, 44)).words, "job 3 was terminated by signal 44");
}

TEST(JobView, OutOfMemorySaysWhoseLimit) {
  WorkerResponse response = Ended(JobEnd::SIGNALLED, SIGKILL);
  response.mutable_end()->set_oom_level(JobEnd::USER);
  EXPECT_EQ(Show(response).status, 137);
  EXPECT_EQ(Show(response).words, "job 3 was killed: out of memory (the limit of all alice's jobs together)");
  response.mutable_end()->set_oom_level(JobEnd::JOB);
  EXPECT_EQ(Show(response).words, "job 3 was killed: out of memory (the job's own limit)");
}

TEST(JobView, LeftoversAndUnknownEnds) {
  WorkerResponse response = Ended(JobEnd::EXITED, 0);
  response.mutable_end()->set_leftovers(2);
  EXPECT_EQ(Show(response).words, "job 3 left 2 processes running; what was left has been killed");
  EXPECT_EQ(Show(Ended(JobEnd::UNKNOWN, 0)).status, kOurFailure);
  EXPECT_NE(Show(Ended(JobEnd::UNKNOWN, 0)).words, "");
}

TEST(JobView, BytesGoToTheirStreamUnchanged) {
  int out[2];
  int err[2];
  ASSERT_EQ(pipe(out), 0);
  ASSERT_EQ(pipe(err), 0);
  const UniqueFd ends[] = {UniqueFd(out[0]), UniqueFd(out[1]), UniqueFd(err[0]), UniqueFd(err[1])};
  JobView job("alice", out[1], err[1]);
  const std::string bytes("\0\xff\x1b[31m\r\n", 9);
  WorkerResponse response;
  response.set_log(bytes);
  ASSERT_EQ(job.Show(response), 0);
  response.set_stream(STDERR);
  ASSERT_EQ(job.Show(response), 0);
  for (const int fd : {out[0], err[0]}) {
    char buffer[64];
    const ssize_t size = read(fd, buffer, sizeof buffer);
    EXPECT_EQ(std::string(buffer, static_cast<size_t>(size)), bytes);
  }
}

TEST(WriteFully, WaitsForASlowReaderOfANonBlockingPipe) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_NONBLOCK), 0);
  const std::string bytes(1 << 20, 'x');
  size_t received = 0;
  std::thread reader([&, from = UniqueFd(ends[0])] {
    fcntl(from.Get(), F_SETFL, 0);
    char buffer[4096];
    for (ssize_t size; (size = read(from.Get(), buffer, sizeof buffer)) > 0;) received += static_cast<size_t>(size);
  });
  EXPECT_EQ(WriteFully(ends[1], bytes), 0);
  close(ends[1]);
  reader.join();
  EXPECT_EQ(received, bytes.size());
}

TEST(WriteFully, ReportsWhatFailed) {
  const UniqueFd full(open("/dev/full", O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(WriteFully(full.Get(), "x"), ENOSPC);
}

TEST(Text, Escape) {
  EXPECT_EQ(Escape("plain ~"), "plain ~");
  EXPECT_EQ(Escape("\x1b[2J\n\x7f\xc2\x9b"), "\\x1b[2J\\x0a\\x7f\\xc2\\x9b");
}

// setlocale(3) is the program's, so a test puts it back.
struct InLocale {
  explicit InLocale(const char* name) { EXPECT_NE(setlocale(LC_CTYPE, name), nullptr); }
  ~InLocale() { (void)setlocale(LC_CTYPE, "C"); }
};

TEST(Text, EscapeLeavesWhatATerminalOfTheLocaleShows) {
  EXPECT_EQ(Escape("\u00fc"), "\\xc3\\xbc");
  const InLocale utf8("C.UTF-8");
  for (const char* shown : {"gr\u00fc\u00dfe \u2026", "\u65e5\u672c", "\U0001f600"}) EXPECT_EQ(Escape(shown), shown);
  // C1 control characters, cut short, too long, a surrogate, beyond Unicode, and what turns or hides the text behind
  // it.
  for (const auto& [text, escaped] :
       std::initializer_list<std::pair<const char*, const char*>>{{"\x1b[2J\n\x7f", R"(\x1b[2J\x0a\x7f)"},
                                                                  {"\u009b2J", R"(\xc2\x9b2J)"},
                                                                  {"a\xc3", R"(a\xc3)"},
                                                                  {"\xc3(", R"(\xc3()"},
                                                                  {"\xc0\x9b", R"(\xc0\x9b)"},
                                                                  {"\xed\xa0\x80", R"(\xed\xa0\x80)"},
                                                                  {"\xf4\x90\x80\x80", R"(\xf4\x90\x80\x80)"},
                                                                  {"\u202eevil", R"(\xe2\x80\xaeevil)"},
                                                                  {"\u2066", R"(\xe2\x81\xa6)"},
                                                                  {"a\u200bb", R"(a\xe2\x80\x8bb)"},
                                                                  {"\u2028", R"(\xe2\x80\xa8)"}}) {
    EXPECT_EQ(Escape(text), escaped);
  }
  EXPECT_EQ(Escape(std::string_view("a\0b", 3)), R"(a\x00b)");
}

TEST(Text, ClipCountsColumnsAndCutsNoCharacter) {
  EXPECT_EQ(Clip("abc", 3), "abc");
  EXPECT_EQ(Clip("abc", 2), "ab");
  EXPECT_EQ(Clip("abc", 0), "");
  const InLocale utf8("C.UTF-8");
  EXPECT_EQ(Clip("\u00fc\u00fcx", 3), "\u00fc\u00fcx");
  EXPECT_EQ(Clip("\u00fc\u00fcx", 2), "\u00fc\u00fc");
  // Two columns each.
  EXPECT_EQ(Clip("\u65e5\u672c", 3), "\u65e5");
  EXPECT_EQ(Clip("\u65e5\u672c", 4), "\u65e5\u672c");
}

TEST(Text, QuoteWord) {
  EXPECT_EQ(QuoteWord("/usr/bin/ls"), "/usr/bin/ls");
  EXPECT_EQ(QuoteWord(""), "''");
  EXPECT_EQ(QuoteWord("a b$c"), "'a b$c'");
  EXPECT_EQ(QuoteWord("it's"), "'it'\\''s'");
}

grpc::Status StartFailed(const std::string& stage, int error) {
  StartFailure failure;
  failure.set_stage(stage);
  failure.set_error(error);
  return {grpc::StatusCode::FAILED_PRECONDITION, "cannot start", failure.SerializeAsString()};
}

TEST(FailureExitStatus, TellsNotFoundFromNotExecutable) {
  EXPECT_EQ(FailureExitStatus(StartFailed("exec", ENOENT)), 127);
  EXPECT_EQ(FailureExitStatus(StartFailed("exec", EACCES)), 126);
  EXPECT_EQ(FailureExitStatus(StartFailed("cgroup", ENOENT)), 125);
  EXPECT_EQ(FailureExitStatus({grpc::StatusCode::NOT_FOUND, "x"}), 125);
  EXPECT_EQ(FailureExitStatus({grpc::StatusCode::FAILED_PRECONDITION, "x", "not a message \xff"}), 125);
}

UniqueFd Loopback(sockaddr_in& address, bool listener) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  socklen_t size = sizeof address;
  if (listener) {
    EXPECT_EQ(bind(fd.Get(), generic, size), 0);
    EXPECT_EQ(listen(fd.Get(), 2), 0);
    EXPECT_EQ(getsockname(fd.Get(), generic, &size), 0);
  } else {
    EXPECT_EQ(connect(fd.Get(), generic, size), 0);
  }
  return fd;
}

int SocketOption(const UniqueFd& fd, int level, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  EXPECT_EQ(getsockopt(fd.Get(), level, option, &value, &size), 0);
  return value;
}

TEST(NoticeDeadPeers, AsksTheKernelForConnectionsToThatPortOnly) {
  sockaddr_in ours{};
  ours.sin_family = AF_INET;
  ours.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_in others = ours;
  const UniqueFd listeners[] = {Loopback(ours, true), Loopback(others, true)};
  const UniqueFd fd = Loopback(ours, false);
  const UniqueFd other = Loopback(others, false);
  NoticeDeadPeers(ntohs(ours.sin_port));
  EXPECT_EQ(SocketOption(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(SocketOption(fd, IPPROTO_TCP, TCP_KEEPIDLE), 30);
  EXPECT_EQ(SocketOption(fd, IPPROTO_TCP, TCP_KEEPINTVL), 10);
  EXPECT_EQ(SocketOption(fd, IPPROTO_TCP, TCP_KEEPCNT), 3);
  EXPECT_EQ(SocketOption(other, SOL_SOCKET, SO_KEEPALIVE), 0);
}

}  // namespace
}  // namespace jobworker
