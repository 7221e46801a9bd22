#include "daemon/config.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/temporary_directory.h"

namespace jobworker {
namespace {

using namespace std::chrono_literals;

void ExpectError(const tl::expected<JobTableLimits, std::string>& config, const std::string& part) {
  ASSERT_FALSE(config) << part;
  EXPECT_NE(config.error().find(part), std::string::npos) << config.error();
}
// Of one line: refused, with what is right.
void ExpectRefused(const std::string& line, const std::string& part) {
  const size_t section = line.find('.');
  const bool nested = section != std::string::npos && section < line.find('=');
  const std::string text = nested ? "[" + line.substr(0, section) + "]\n" + line.substr(section + 1) : "\n" + line;
  ExpectError(ParseConfig(text), "line 2: " + part);
}

TEST(Config, NothingIsTheDefaults) {
  for (const char* text : {"", "\n# nothing\n", "[output]\n[ended]\n"}) {
    const auto config = ParseConfig(text);
    ASSERT_TRUE(config) << config.error();
    EXPECT_EQ(config->stop_grace, 5s);
    EXPECT_EQ(config->ended_per_user, 1000U);
    EXPECT_EQ(config->ended_age, 7 * 24h);
    EXPECT_EQ(config->output.per_job, 64U << 20);
    EXPECT_EQ(config->output.per_user, 192U << 20);
    EXPECT_EQ(config->output.in_all, 512U << 20);
    EXPECT_EQ(config->output.policy, OutputPolicy::kDropOldest);
  }
}

TEST(Config, TakesWhatIsWritten) {
  const auto config = ParseConfig(
      "stop-grace = 2.5\n"
      "[output]\nper-job = 65_536\nper-user = 0x20000\ntotal = 1_125_899_906_842_624\npolicy = 'block'\n"
      "[ended]\nper-user = 7\ndays = 0.5\n");
  ASSERT_TRUE(config) << config.error();
  EXPECT_EQ(config->stop_grace, 2500ms);
  EXPECT_EQ(config->output.per_job, 65'536U);
  EXPECT_EQ(config->output.per_user, 0x20000U);
  EXPECT_EQ(config->output.in_all, uint64_t{1} << 50);
  EXPECT_EQ(config->output.policy, OutputPolicy::kBlock);
  EXPECT_EQ(config->ended_per_user, 7U);
  EXPECT_EQ(config->ended_age, 12h);
}

TEST(Config, WhatIsNotWrittenStays) {
  JobTableLimits limits;
  limits.ended_per_user = 3;
  limits.output.policy = OutputPolicy::kKill;
  const auto config = ParseConfig("stop-grace = 1", limits);
  ASSERT_TRUE(config);
  EXPECT_EQ(config->stop_grace, 1s);
  EXPECT_EQ(config->ended_per_user, 3U);
  EXPECT_EQ(config->output.policy, OutputPolicy::kKill);
}

TEST(Config, KnowsEveryPolicy) {
  for (const OutputPolicy policy : {OutputPolicy::kDropOldest, OutputPolicy::kBlock, OutputPolicy::kKill}) {
    const auto config = ParseConfig("[output]\npolicy = \"" + std::string(PolicyName(policy)) + "\"");
    ASSERT_TRUE(config) << config.error();
    EXPECT_EQ(config->output.policy, policy);
  }
  for (const char* value : {"\"\"", "\"drop\"", "\"Block\"", "1", "true", "[\"block\"]"}) {
    ExpectRefused("output.policy = " + std::string(value),
                  "output.policy must be \"drop-oldest\", \"block\" or \"kill\"");
  }
}

TEST(Config, HoldsTheBoundsOfMemory) {
  for (const char* key : {"per-job", "per-user", "total"}) {
    const std::string name = "output." + std::string(key);
    for (const char* value : {"65536", "1125899906842624"}) {
      EXPECT_TRUE(ParseConfig("[output]\n" + std::string(key) + " = " + value));
    }
    for (const char* value : {"65535", "0", "-65536", "1125899906842625", "65536.0", "\"65536\"", "inf"}) {
      ExpectRefused(name + " = " + value, name + " must be a number of bytes from 65536 to 1125899906842624");
    }
  }
}

TEST(Config, HoldsTheBoundsOfCounts) {
  for (const char* value : {"1", "1000000"}) EXPECT_TRUE(ParseConfig("[ended]\nper-user = " + std::string(value)));
  for (const char* value : {"0", "-1", "1000001", "1.0", "\"1\""}) {
    ExpectRefused("ended.per-user = " + std::string(value), "ended.per-user must be a whole number from 1 to 1000000");
  }
}

TEST(Config, HoldsTheBoundsOfTimes) {
  for (const char* value : {"0", "0.0", "3600", "3600.0", "0.001"}) {
    EXPECT_TRUE(ParseConfig("stop-grace = " + std::string(value))) << value;
  }
  for (const char* value : {"-0.001", "3600.001", "3601", "nan", "inf", "-inf", "\"1\"", "true", "2026-01-01"}) {
    ExpectRefused("stop-grace = " + std::string(value), "stop-grace must be a number from 0 to 3600");
  }
  EXPECT_EQ(ParseConfig("[ended]\ndays = 0")->ended_age, 0s);
  EXPECT_EQ(ParseConfig("[ended]\ndays = 36500")->ended_age, 36500 * 24h);
  ExpectRefused("ended.days = 36500.1", "ended.days must be a number from 0 to 36500");
}

TEST(Config, UnknownKeysAreErrors) {
  ExpectRefused("grace = 1",
                "there is no key grace; there are ended.days, ended.per-user, output.per-job, output.per-"
                "user, output.policy, output.total, stop-grace");
  ExpectRefused("output.perjob = 65536", "there is no key output.perjob;");
  ExpectRefused("output = 1", "there is no key output;");
  ExpectRefused("per-job = 65536", "there is no key per-job;");
  for (const char* text : {"[outptu]\n", "[outptu]\nx = 1\n", "outptu = {}\n", "outptu.x = 1\n"}) {
    ExpectError(ParseConfig(text), "line 1: there is no key outptu;");
  }
  ExpectError(ParseConfig("[output]\n[output.inner]\n"), "line 2: there is no key output.inner;");
  ExpectError(ParseConfig("[output.policy]\n"), "line 1: output.policy must be ");
  ExpectError(ParseConfig("[stop-grace]\nx = 1\n"), "line 1: stop-grace must be a number");
  ExpectError(ParseConfig("[[output]]\nper-job = 65536\n"), "line 1: there is no key output");
}

TEST(Config, WhatIsNotTomlIsAnError) {
  ExpectError(ParseConfig("stop-grace = 1\nstop-grace = 2\n"), "line 2: ");
  ExpectError(ParseConfig("\n\nstop-grace"), "line 3: ");
  ExpectError(ParseConfig(std::string("\0", 1)), "line 1: ");
  for (const char* text : {"[[[", "[[[a]]]", "[[ [", "[[[["}) ExpectError(ParseConfig(text), "line 1: ");
  ExpectError(ParseConfig("x = " + std::string(100'000, '[')), "line 1: ");
}

TEST(ConfigFile, MustBeItsOwnersAlone) {
  const testing::TemporaryDirectory directory;
  const auto config = LoadConfig(directory.Write("config", "stop-grace = 1\n", 0644));
  ASSERT_TRUE(config) << config.error();
  EXPECT_EQ(config->stop_grace, 1s);
  for (const unsigned mode : {0620U, 0602U, 0666U}) {
    const std::string path = directory.Write("config", "stop-grace = 1\n", mode);
    ExpectError(LoadConfig(path), path + " can be written by others");
  }
}

TEST(ConfigFile, ErrorsNameTheFile) {
  const testing::TemporaryDirectory directory;
  const std::string path = directory.Write("config", "stop-grace = -1\n", 0644);
  ExpectError(LoadConfig(path), "configuration file " + path + ": line 1: stop-grace must be");
  ExpectError(LoadConfig(path + ".none"), path + ".none: No such file");
  ExpectError(LoadConfig(directory.path()), "not a regular file");
}

}  // namespace
}  // namespace jobworker
