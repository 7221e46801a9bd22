#include "daemon/command_line.h"

#include <gtest/gtest.h>

#include "common/broker_protocol.h"

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

}  // namespace
}  // namespace jobworker
