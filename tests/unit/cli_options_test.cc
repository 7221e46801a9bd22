#include "cmd/cli_options.h"

#include <gtest/gtest.h>

#include <initializer_list>

namespace jobworker {
namespace {

using Words = std::vector<std::string>;

ParsedOptions Parse(std::initializer_list<const char*> arguments) {
  std::vector<const char*> argv = {"jobworker"};
  argv.insert(argv.end(), arguments);
  return ParseOptions(static_cast<int>(argv.size()), argv.data());
}

Options Accepted(std::initializer_list<const char*> arguments) {
  const ParsedOptions parsed = Parse(arguments);
  EXPECT_TRUE(parsed.options.has_value()) << parsed.text;
  return parsed.options.value_or(Options{});
}

TEST(CliOptions, TheSeedsExamples) {
  const Options bob = Accepted({"-u", "bob", "start", "ls"});
  EXPECT_EQ(bob.profile, "bob");
  EXPECT_EQ(bob.verb, Verb::kStart);
  EXPECT_EQ(bob.words, Words{"ls"});
  const Options stop = Accepted({"-h", "127.0.0.1", "stop", "3"});
  EXPECT_EQ(stop.host, "127.0.0.1");
  EXPECT_EQ(stop.verb, Verb::kStop);
  EXPECT_EQ(stop.id, "3");
  EXPECT_EQ(Accepted({"query", "3"}).verb, Verb::kQuery);
}

TEST(CliOptions, WordsAfterTheFirstBelongToTheJob) {
  EXPECT_EQ(Accepted({"start", "ls", "-l", "-d", "--env", "--", "--help"}).words,
            (Words{"ls", "-l", "-d", "--env", "--", "--help"}));
  EXPECT_EQ(Accepted({"start", "stop", "query", "start"}).words, (Words{"stop", "query", "start"}));
  EXPECT_EQ(Accepted({"start", "echo", "", "[a,b]", "-u", "x"}).words, (Words{"echo", "", "[a,b]", "-u", "x"}));
  EXPECT_EQ(Accepted({"start", "", "x"}).words, (Words{"", "x"}));
  EXPECT_FALSE(Accepted({"start", "ls", "--", "x"}).verbatim);
}

TEST(CliOptions, DoubleDashEndsFlags) {
  const Options options = Accepted({"start", "-d", "--", "-x", "-d", "--"});
  EXPECT_TRUE(options.verbatim);
  EXPECT_TRUE(options.detach);
  EXPECT_EQ(options.words, (Words{"-x", "-d", "--"}));
  EXPECT_EQ(Accepted({"start", "--", "--", "x"}).words, (Words{"--", "x"}));
  EXPECT_EQ(Accepted({"start", "--", "stop"}).words, Words{"stop"});
  EXPECT_EQ(Accepted({"query", "--", "-1"}).id, "-1");
}

TEST(CliOptions, EnvironmentTakesOneValueEach) {
  const Options options = Accepted({"start", "--env", "A=1,2", "--env=B=[x,y]", "printenv", "A"});
  EXPECT_EQ(options.env, (Words{"A=1,2", "B=[x,y]"}));
  EXPECT_EQ(options.words, (Words{"printenv", "A"}));
}

TEST(CliOptions, HostIsNotHelp) {
  EXPECT_EQ(Accepted({"-h", "[::1]:7", "--certs", "/c", "query", "1"}).host, "[::1]:7");
  EXPECT_EQ(Accepted({"-h10.0.0.1", "query", "1"}).host, "10.0.0.1");
  const ParsedOptions help = Parse({"--help"});
  EXPECT_FALSE(help.failed);
  EXPECT_NE(help.text.find("-h,--host"), std::string::npos) << help.text;
  EXPECT_NE(Parse({"start", "--help"}).text.find("--env"), std::string::npos);
  EXPECT_NE(Parse({"--version"}).text.find(JOBWORKER_VERSION), std::string::npos);
}

TEST(CliOptions, Refused) {
  for (const auto& arguments : std::initializer_list<std::initializer_list<const char*>>{{},
                                                                                         {"start"},
                                                                                         {"start", "--"},
                                                                                         {"start", "-d"},
                                                                                         {"start", "-x", "ls"},
                                                                                         {"start", "--wrong", "ls"},
                                                                                         {"stop"},
                                                                                         {"stop", "1", "2"},
                                                                                         {"query"},
                                                                                         {"list"},
                                                                                         {"-u"},
                                                                                         {"-x", "query", "1"},
                                                                                         {"start", "--env"}}) {
    const ParsedOptions parsed = Parse(arguments);
    EXPECT_TRUE(parsed.failed) << (arguments.size() > 0 ? *arguments.begin() : "");
    EXPECT_FALSE(parsed.options.has_value());
    EXPECT_NE(parsed.text.find("--help"), std::string::npos) << parsed.text;
  }
}

}  // namespace
}  // namespace jobworker
