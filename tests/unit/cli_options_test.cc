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
  EXPECT_EQ(stop.ids, Words{"3"});
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
  EXPECT_EQ(Accepted({"query", "--", "1"}).ids, Words{"1"});
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
  EXPECT_NE(help.text.find("-h, --host"), std::string::npos) << help.text;
  EXPECT_NE(Parse({"start", "--help"}).text.find("--env"), std::string::npos);
  EXPECT_TRUE(Parse({"start", "--help"}).text.find("Exit status") == std::string::npos);
  EXPECT_NE(Parse({"--version"}).text.find(JOBWORKER_VERSION), std::string::npos);
}

TEST(CliOptions, GlobalFlagsMayComeAfterTheVerb) {
  const Options list = Accepted({"list", "--json", "-u", "bob", "-h", "x", "--no-reconnect"});
  EXPECT_TRUE(list.json);
  EXPECT_FALSE(list.reconnect);
  EXPECT_EQ(list.profile, "bob");
  EXPECT_EQ(list.host, "x");
  const Options start = Accepted({"start", "-u", "bob", "--json", "ls", "-u", "carl"});
  EXPECT_EQ(start.profile, "bob");
  EXPECT_TRUE(start.json);
  EXPECT_EQ(start.words, (Words{"ls", "-u", "carl"}));
}

TEST(CliOptions, Start) {
  const Options options = Accepted(
      {"start", "--cwd",     "/srv", "--timeout",  "10m",   "--cpu",   "150%", "--memory", "128M",    "--pids",
       "10",    "--io-read", "1M",   "--io-write", "64K/s", "--label", "a=b",  "--label",  "c=[d,e]", "--on-disconnect",
       "stop",  "--lease",   "30s",  "--stdin",    "cat"});
  EXPECT_EQ(options.directory, "/srv");
  EXPECT_EQ(options.timeout_ms, 600000U);
  EXPECT_EQ(options.cpu_milli, 1500U);
  EXPECT_EQ(options.memory_bytes, 134217728U);
  EXPECT_EQ(options.pids, 10U);
  EXPECT_EQ(options.read_rate, 1048576U);
  EXPECT_EQ(options.write_rate, 65536U);
  EXPECT_EQ(options.labels, (std::map<std::string, std::string>{{"a", "b"}, {"c", "[d,e]"}}));
  EXPECT_TRUE(options.stop_on_disconnect);
  EXPECT_EQ(options.lease_ms, 30000U);
  EXPECT_TRUE(options.send_stdin);
  EXPECT_FALSE(Accepted({"start", "--on-disconnect", "keep", "x"}).stop_on_disconnect);
}

TEST(CliOptions, Query) {
  const Options options = Accepted({"query", "--from", "64K", "--no-follow", "--stdout", "--timestamps", "@last"});
  EXPECT_EQ(options.begin.offset, 65536U);
  EXPECT_FALSE(options.follow);
  EXPECT_TRUE(options.only_stdout);
  EXPECT_FALSE(options.only_stderr);
  EXPECT_TRUE(options.timestamps);
  EXPECT_EQ(options.ids, Words{"@last"});
  EXPECT_EQ(Accepted({"query", "--tail", "20", "3"}).begin.tail_lines, 20U);
  EXPECT_EQ(Accepted({"query", "--tail", "0", "3"}).begin.tail_lines, 0U);
  EXPECT_EQ(Accepted({"query", "--tail", "4K", "--stderr", "3"}).begin.tail_bytes, 4096U);
}

TEST(CliOptions, TheOtherVerbs) {
  const Options stop = Accepted({"stop", "--signal", "int", "--grace", "1m", "3", "4"});
  EXPECT_EQ(stop.signal, 2);
  EXPECT_EQ(stop.grace_ms, 60000U);
  EXPECT_EQ(stop.ids, (Words{"3", "4"}));
  EXPECT_TRUE(Accepted({"stop", "--now", "3"}).now);
  const Options list = Accepted({"list", "--live", "-q", "--label", "a=b", "-n", "5"});
  EXPECT_TRUE(list.only_live);
  EXPECT_TRUE(list.ids_only);
  EXPECT_EQ(list.labels.at("a"), "b");
  EXPECT_EQ(list.count, 5U);
  EXPECT_EQ(Accepted({"status", "1", "2"}).ids, (Words{"1", "2"}));
  EXPECT_TRUE(Accepted({"wait", "--any", "1", "2"}).any);
  const Options signal = Accepted({"signal", "HUP", "3", "4"});
  EXPECT_EQ(signal.signal, 1);
  EXPECT_EQ(signal.ids, (Words{"3", "4"}));
  EXPECT_EQ(Accepted({"rm", "3"}).verb, Verb::kRemove);
  EXPECT_EQ(Accepted({"whoami"}).verb, Verb::kWhoAmI);
  EXPECT_EQ(Accepted({"version"}).verb, Verb::kVersion);
  EXPECT_EQ(Accepted({"config"}).verb, Verb::kConfig);
  EXPECT_EQ(Accepted({"completion", "zsh"}).shell, "zsh");
}

TEST(CliOptions, EveryVerbHasHelpWithAnExample) {
  for (const char* verb : {"start", "stop", "query", "list", "status", "wait", "signal", "rm", "whoami", "version",
                           "config", "completion"}) {
    const ParsedOptions help = Parse({verb, "--help"});
    EXPECT_FALSE(help.failed) << verb;
    EXPECT_NE(help.text.find("Usage: jobworker"), std::string::npos) << help.text;
    EXPECT_NE(help.text.find("Example"), std::string::npos) << help.text;
    EXPECT_NE(help.text.find(std::string("  jobworker ")), std::string::npos) << help.text;
  }
}

TEST(CliOptions, BadAmountsNameTheFlagAndWhatIsTaken) {
  const struct {
    std::initializer_list<const char*> arguments;
    const char* part;
  } cases[] = {
      {{"start", "--memory", "1X", "ls"}, "--memory: '1X' is not a size"},
      {{"start", "--memory", "-1", "ls"}, "--memory: '-1' is not a size"},
      {{"start", "--cpu", "0", "ls"}, "--cpu: '0' is not an amount of CPU"},
      {{"start", "--pids", "0", "ls"}, "--pids: '0' is not a whole number from 1"},
      {{"start", "--pids", "1.5", "ls"}, "--pids: '1.5' is not a whole number from 1"},
      {{"start", "--memory", "8388608T", "ls"},
       "--memory: '8388608T' is not a size; say a number of bytes, or 64K, 128M, 1.5G, below 2^63"},
      {{"start", "--memory", "9223372036854775808", "ls"}, "below 2^63"},
      {{"start", "--timeout", "106751991168d", "ls"}, "below 2^63 ms"},
      {{"start", "--timeout", "-1s", "ls"}, "--timeout: '-1s' is not"},
      {{"start", "--cwd", "", "ls"}, "--cwd: '' is not an absolute path"},
      {{"start", "--memory"}, "--memory needs a value"},
      {{"start", "--memory", "1G", "--memory", "2G", "ls"}, "--memory is given more than once"},
      {{"query", "1", "2"}, "query takes one ID"},
      {{"stop", "3", "x"}, "ID: 'x' is not a job's id, a number from 1 to 18446744073709551615, and not @last"},
      {{"stop", ""}, "ID: '' is not"},
      {{"stop", "0"}, "ID: '0' is not"},
      {{"stop", "01"}, "ID: '01' is not"},
      {{"stop", "--", "-1"}, "ID: '-1' is not"},
      {{"stop", "1 "}, "ID: '1 ' is not"},
      {{"stop", "18446744073709551616"}, "ID: '18446744073709551616' is not"},
      {{"list", "3"}, "list does not take '3'"},
      {{"list", "--tail", "3"}, "list does not know the flag --tail"},
      {{"--tail", "query", "3"}, "--tail is not a flag of every verb; flags of query alone stand behind it"},
      {{"strat", "ls"}, "there is no verb 'strat'"},
      {{}, "say what to do"},
      {{"start", "--io-write", "0", "ls"}, "--io-write: '0' is not a rate"},
      {{"start", "--io-read", "x", "ls"}, "--io-read: 'x' is not a rate"},
      {{"start", "--timeout", "0", "ls"}, "--timeout: 0 is not"},
      {{"start", "--timeout", "1y", "ls"}, "--timeout: '1y' is not a length of time"},
      {{"start", "--label", "a", "ls"}, "--label: the label 'a' is not KEY=VALUE"},
      {{"start", "--env", "A", "ls"}, "--env: 'A' is not NAME=VALUE"},
      {{"start", "--env", "=A", "ls"}, "--env: '=A' is not NAME=VALUE"},
      {{"start", "--cwd", "srv", "ls"}, "--cwd: 'srv' is not an absolute path"},
      {{"start", "-d", "--stdin", "ls"}, "--stdin needs somebody"},
      {{"start", "--lease", "5s", "ls"}, "--lease goes with"},
      {{"start", "--on-disconnect", "drop", "ls"}, "--on-disconnect: 'drop' is neither keep nor stop"},
      {{"query", "--tail", "x", "3"}, "--tail: 'x' is not a number of lines"},
      {{"query", "--tail", "1", "--from", "2", "3"}, "excludes"},
      {{"query", "--stdout", "--stderr", "3"}, "excludes"},
      {{"stop", "--signal", "SIGX", "3"}, "--signal: 'SIGX' is not a signal"},
      {{"stop", "--now", "--grace", "1s", "3"}, "excludes"},
      {{"signal", "99", "3"}, "'99' is not a signal"},
      {{"completion", "csh"}, "bash, zsh and fish"}};
  for (const auto& bad : cases) {
    const ParsedOptions parsed = Parse(bad.arguments);
    EXPECT_TRUE(parsed.failed) << bad.part;
    EXPECT_NE(parsed.text.find(bad.part), std::string::npos) << parsed.text;
  }
}

TEST(CliOptions, Refused) {
  for (const auto& arguments : std::initializer_list<std::initializer_list<const char*>>{{},
                                                                                         {"start"},
                                                                                         {"start", "--"},
                                                                                         {"start", "-d"},
                                                                                         {"start", "-x", "ls"},
                                                                                         {"start", "--wrong", "ls"},
                                                                                         {"stop"},
                                                                                         {"query"},
                                                                                         {"list", "3"},
                                                                                         {"query", "1", "2"},
                                                                                         {"signal", "3"},
                                                                                         {"wait"},
                                                                                         {"rm"},
                                                                                         {"status"},
                                                                                         {"nothing"},
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
