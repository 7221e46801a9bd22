#include "daemon/log.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>
#include <vector>

#include "common/unique_fd.h"

namespace jobworker {
namespace {

using namespace std::string_view_literals;

TEST(Escaped, LeavesPlainWordsAlone) {
  for (const char* text : {"alice", "ipv4:127.0.0.1:57533", "a/b", "'", "%s", "~!@#$^&*()[]{}<>?;,."}) {
    EXPECT_EQ(Escaped(text), text);
  }
}

TEST(Escaped, QuotesWhatWouldReadAsSomethingElse) {
  EXPECT_EQ(Escaped(""), R"("")");
  EXPECT_EQ(Escaped("ls -l"), R"("ls -l")");
  EXPECT_EQ(Escaped("user=alice"), R"("user=alice")");
  EXPECT_EQ(Escaped(R"(a"b)"), R"("a\"b")");
  EXPECT_EQ(Escaped(R"(a\b)"), R"("a\\b")");
  EXPECT_EQ(Escaped(R"(\x0a)"), R"("\\x0a")") << "not to be taken for a newline";
}

TEST(Escaped, ShowsControlAndHighBytes) {
  EXPECT_EQ(Escaped("a\nb"), R"(a\x0ab)");
  EXPECT_EQ(Escaped("\r\t\x1b[2J\x7f"), R"(\x0d\x09\x1b[2J\x7f)");
  EXPECT_EQ(Escaped("a\0b"sv), R"(a\x00b)");
  EXPECT_EQ(Escaped("\xe2\x80\xae\xff"), R"(\xe2\x80\xae\xff)");
}

TEST(Escaped, CutsWithAMark) {
  EXPECT_EQ(Escaped(std::string(256, 'a')), std::string(256, 'a'));
  EXPECT_EQ(Escaped(std::string(257, 'a')), std::string(256, 'a') + "...");
  EXPECT_EQ(Escaped(std::string(60000, '\n')).size(), 256 * 4 + 3U);
}

// Standard error is a datagram socket here, so that each write(2) is one message.
class Lines : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    reader_.Reset(ends[0]);
    saved_.Reset(dup(STDERR_FILENO));
    ASSERT_EQ(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
    close(ends[1]);
  }
  void TearDown() override {
    dup2(saved_.Get(), STDERR_FILENO);
    unsetenv("JOURNAL_STREAM");
  }
  std::string Next(int flags = 0) {
    char buffer[8192];
    const ssize_t size = recv(reader_.Get(), buffer, sizeof(buffer), flags);
    return {buffer, size > 0 ? static_cast<size_t>(size) : 0};
  }
  UniqueFd reader_, saved_;
};

TEST_F(Lines, AreOneWriteWithTheTime) {
  Log("denied", {{"user", "carl"}, {"reason", "not in the policy"}, {"text", "a\njobserver: allowed"}});
  std::string line = Next();
  const std::string words = R"(jobserver: denied user=carl reason="not in the policy" text="a\x0ajobserver: allowed" )";
  ASSERT_TRUE(line.starts_with(words)) << line;
  for (char& c : line) c = c >= '0' && c <= '9' ? 'n' : c;
  EXPECT_EQ(line.substr(words.size()), "time=nnnn-nn-nnTnn:nn:nn.nnnZ\n");
}

TEST_F(Lines, LeaveTheTimeToTheJournal) {
  struct stat info {};
  ASSERT_EQ(fstat(STDERR_FILENO, &info), 0);
  setenv("JOURNAL_STREAM", fmt::format("{}:{}", info.st_dev, info.st_ino).c_str(), 1);
  Log("stopped", {});
  const bool journal = access("/run/systemd/journal/socket", F_OK) == 0;
  EXPECT_EQ(Next(MSG_DONTWAIT), journal ? "" : "jobserver: stopped\n");
  setenv("JOURNAL_STREAM", "1:1", 1);
  Log("stopped", {});
  EXPECT_TRUE(Next().starts_with("jobserver: stopped time=")) << "that journal is not on this descriptor";
}

TEST(JournalFields, AreTheLineAndEachValueAsItIs) {
  EXPECT_EQ(JournalFields("denied", {{"user", "carl"}, {"reason", "a\nPRIORITY=0"}}),
            (std::vector<std::string>{"MESSAGE=denied user=carl reason=\"a\\x0aPRIORITY=0\"", "PRIORITY=4",
                                      "SYSLOG_IDENTIFIER=jobserver", "JOBWORKER_EVENT=denied", "JOBWORKER_USER=carl",
                                      "JOBWORKER_REASON=a\nPRIORITY=0"}));
  EXPECT_EQ(JournalFields("stopped", {})[1], "PRIORITY=6");
}

TEST(JournalFields, AreCutAtTheirBound) {
  EXPECT_EQ(JournalFields("event", {{"text", std::string(256, 'a')}}).back(),
            "JOBWORKER_TEXT=" + std::string(256, 'a'));
  EXPECT_EQ(JournalFields("event", {{"oom_kills", std::string(257, 'a')}}).back(),
            "JOBWORKER_OOM_KILLS=" + std::string(256, 'a'));
}

TEST_F(Lines, OfSeveralThreadsStayWhole) {
  constexpr int kThreads = 4;
  constexpr int kEach = 100;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([] {
      for (int j = 0; j < kEach; ++j) Log("event", {{"text", std::string(300, '\n')}});
    });
  }
  for (int i = 0; i < kThreads * kEach; ++i) {
    const std::string line = Next();
    EXPECT_TRUE(line.starts_with("jobserver: event text=\\x0a"));
    EXPECT_EQ(line.find('\n'), line.size() - 1);
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace jobworker
