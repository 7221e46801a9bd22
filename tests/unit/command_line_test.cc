#include "daemon/command_line.h"

#include <gtest/gtest.h>

#include "common/broker_protocol.h"
#include "daemon/worker_service.h"

namespace jobworker {
namespace {

using Words = std::vector<std::string>;

TEST(SplitWords, FollowsTheShell) {
  const std::pair<std::string, Words> cases[] = {
      {"", {}},
      {" \t\n", {}},
      {"ls", {"ls"}},
      {"  ls   -l\t/tmp\n", {"ls", "-l", "/tmp"}},
      {"echo 'a  b'c", {"echo", "a  bc"}},
      {"echo \"a 'b' \\\" \\$ \\` \\\\ \\n\"", {"echo", "a 'b' \" $ ` \\ \\n"}},
      {"echo '\\' \\' a\\ b", {"echo", "\\", "'", "a b"}},
      {"'' \"\"", {"", ""}},
      {"a\\\nb \"c\\\nd\"", {"ab", "cd"}},
      {"echo $HOME * ~ `id` ; rm | cat", {"echo", "$HOME", "*", "~", "`id`", ";", "rm", "|", "cat"}},
  };
  for (const auto& [command, words] : cases) {
    const auto split = SplitWords(command);
    ASSERT_TRUE(split) << command;
    EXPECT_EQ(*split, words) << command;
  }
}

TEST(SplitWords, RefusesWhatIsNotFinished) {
  for (const char* command : {"echo 'a", "echo \"a", "echo \"a\\\"", "echo \\"}) {
    EXPECT_FALSE(SplitWords(command)) << command;
  }
}

WorkerStartRequest Request(const std::string& command, const Words& args = {}, const Words& env = {}) {
  WorkerStartRequest request;
  request.set_command(command);
  for (const std::string& arg : args) request.add_args(arg);
  for (const std::string& entry : env) request.add_env(entry);
  return request;
}

TEST(ReadStartRequest, TakesTheCommandAsItIsWhenThereAreArguments) {
  EXPECT_EQ(ReadStartRequest(Request("a b", {"c d", ""}))->argv, (Words{"a b", "c d", ""}));
  EXPECT_EQ(ReadStartRequest(Request("a b"))->argv, (Words{"a", "b"}));
}

TEST(ReadStartRequest, HoldsTheBounds) {
  EXPECT_TRUE(ReadStartRequest(Request("a", Words(kMaxArguments - 1, ""))));
  EXPECT_FALSE(ReadStartRequest(Request("a", Words(kMaxArguments, ""))));
  EXPECT_TRUE(ReadStartRequest(Request("a", {std::string(kMaxArgumentBytes - 1, 'x')})));
  EXPECT_FALSE(ReadStartRequest(Request("a", {std::string(kMaxArgumentBytes, 'x')})));
  EXPECT_TRUE(ReadStartRequest(Request("a", {}, Words(kMaxEnvironment, "A="))));
  EXPECT_FALSE(ReadStartRequest(Request("a", {}, Words(kMaxEnvironment + 1, "A="))));
  EXPECT_TRUE(ReadStartRequest(Request("a", {}, {"A=" + std::string(kMaxEnvironmentBytes - 2, 'x')})));
  EXPECT_FALSE(ReadStartRequest(Request("a", {}, {"A=" + std::string(kMaxEnvironmentBytes - 1, 'x')})));
}

TEST(ReadStartRequest, NamesTheField) {
  using namespace std::string_literals;
  EXPECT_EQ(ReadStartRequest(Request("")).error().substr(0, 8), "command:");
  EXPECT_EQ(ReadStartRequest(Request("", {"a"})).error().substr(0, 8), "command:");
  EXPECT_EQ(ReadStartRequest(Request("a'")).error().substr(0, 8), "command:");
  EXPECT_EQ(ReadStartRequest(Request("a", {"b\0c"s})).error().substr(0, 16), "command and args");
  for (const std::string& entry : {""s, "A"s, "=A"s, "A=\0"s}) {
    EXPECT_EQ(ReadStartRequest(Request("a", {}, {entry})).error().substr(0, 4), "env:");
  }
}

TEST(ReadJobId, TakesNothingButPlainNumbers) {
  EXPECT_EQ(*ReadJobId("1"), 1U);
  EXPECT_EQ(*ReadJobId("18446744073709551615"), UINT64_MAX);
  using namespace std::string_literals;
  for (const std::string& text : {""s, "0"s, "01"s, "-1"s, "+1"s, " 1"s, "1 "s, "1\n"s, "1\0"s, "abc"s, "0x1"s, "1.0"s,
                                  "18446744073709551616"s, "99999999999999999999999"s, "../1"s}) {
    EXPECT_FALSE(ReadJobId(text)) << text;
  }
}

}  // namespace
}  // namespace jobworker
