#include "cmd/cli_units.h"

#include <gtest/gtest.h>

#include <csignal>

namespace jobworker {
namespace {

template <class T>
void ExpectRefused(Parsed<T> (*parse)(std::string_view), std::initializer_list<std::string_view> texts) {
  for (const auto text : texts) {
    const auto parsed = parse(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_NE(parsed.error().find(text.substr(0, 40)), std::string::npos) << parsed.error();
  }
}

TEST(Units, Sizes) {
  ExpectRefused<uint64_t>(ParseSize, {"", "-1", "+1", "1.", ".5", "1e3", "1X", "1 M B", "0x10", "M", "1.2.3", " 1",
                                      "9223372036854775808", "8388608T", "99999999999999999999", "nan", "inf"});
  EXPECT_EQ(ParseSize("0"), 0U);
  EXPECT_EQ(ParseSize("4096"), 4096U);
  EXPECT_EQ(ParseSize("9223372036854775807"), 9223372036854775807U);
  EXPECT_EQ(ParseSize("128M"), 134217728U);
  EXPECT_EQ(ParseSize("1.5G"), 1610612736U);
  EXPECT_EQ(ParseSize("64 KiB"), 65536U);
  EXPECT_EQ(ParseSize("0.1B"), 1U);
  EXPECT_EQ(ParseSize("8388607T"), 8388607ULL << 40U);
}

TEST(Units, Rates) {
  ExpectRefused<uint64_t>(ParseRate, {"0", "1M/m", "/s", "-1M"});
  EXPECT_EQ(ParseRate("10M/s"), 10485760U);
  EXPECT_EQ(ParseRate("1"), 1U);
}

TEST(Units, Counts) {
  ExpectRefused<uint64_t>(ParseCount, {"0", "1.0", "1K", "-1", ""});
  EXPECT_EQ(ParseCount("100"), 100U);
}

TEST(Units, Cpu) {
  ExpectRefused<uint64_t>(ParseCpu, {"0", "0%", "-1", "half", "50 percent", "1M"});
  EXPECT_EQ(ParseCpu("0.5"), 500U);
  EXPECT_EQ(ParseCpu("50%"), 500U);
  EXPECT_EQ(ParseCpu("150%"), 1500U);
  EXPECT_EQ(ParseCpu("1.5 CPU"), 1500U);
  EXPECT_EQ(ParseCpu("250m"), 250U);
  EXPECT_EQ(ParseCpu("0.0001"), 1U);
  EXPECT_EQ(ParseCpu("4.001"), 4001U);
  EXPECT_EQ(ParseCpu("0.29%"), 3U);
  EXPECT_EQ(ParseCpu("1.0004"), 1000U);
}

TEST(Units, Durations) {
  ExpectRefused<uint64_t>(ParseDuration, {"", "s", "-1s", "1w", "10 seconds", "1h30"});
  EXPECT_EQ(ParseDuration("10"), 10000U);
  EXPECT_EQ(ParseDuration("10s"), 10000U);
  EXPECT_EQ(ParseDuration("250ms"), 250U);
  EXPECT_EQ(ParseDuration("1.5m"), 90000U);
  EXPECT_EQ(ParseDuration("2h"), 7200000U);
  EXPECT_EQ(ParseDuration("1d"), 86400000U);
  EXPECT_EQ(ParseDuration("0"), 0U);
}

TEST(Units, Signals) {
  ExpectRefused<int>(ParseSignal,
                     {"", "0", "65", "-9", "SIG", "NOTHING", "TERMX", "9.0", "RTMIN+", "RTMIN+31", "RTMAX+1"});
  EXPECT_EQ(ParseSignal("1"), SIGHUP);
  EXPECT_EQ(ParseSignal("64"), 64);
  EXPECT_EQ(ParseSignal("term"), SIGTERM);
  EXPECT_EQ(ParseSignal("SIGKILL"), SIGKILL);
  EXPECT_EQ(ParseSignal("RTMIN+1"), SIGRTMIN + 1);
  EXPECT_EQ(ParseSignal("RTMAX"), 64);
}

TEST(Units, Ids) {
  ExpectRefused<std::string>(ParseId,
                             {"", "0", "01", "-1", "+1", " 1", "1 ", "0x1", "@", "@first", "18446744073709551616"});
  for (const char* text : {"1", "18446744073709551615", "@last"}) EXPECT_EQ(ParseId(text), text);
}

// What is too long, or has other characters, is the server's to say.
TEST(Units, Labels) {
  EXPECT_EQ(ParseLabel("a/b.c_d-e="), std::pair(std::string("a/b.c_d-e"), std::string()));
  EXPECT_EQ(ParseLabel("a=b=c")->second, "b=c");
  EXPECT_EQ(ParseLabel("=v")->first, "");
  for (const char* text : {"", "a", "a=\xff", "\xff=a"}) EXPECT_FALSE(ParseLabel(text)) << text;
}

TEST(Units, Utf8) {
  for (const char* text : {"", "plain", "ä", "€", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf"}) {
    EXPECT_TRUE(IsUtf8(text)) << text;
  }
  for (const char* text : {"\x80", "\xc3", "\xc1\x81", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                           "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "a\xff"}) {
    EXPECT_FALSE(IsUtf8(text)) << text;
  }
}

TEST(Units, WrittenOut) {
  EXPECT_EQ(SizeText(0), "0 bytes");
  EXPECT_EQ(SizeText(1), "1 byte");
  EXPECT_EQ(SizeText(1023), "1023 bytes");
  EXPECT_EQ(SizeText(1024), "1 KiB");
  EXPECT_EQ(SizeText(134217728), "128 MiB");
  EXPECT_EQ(SizeText(1610612736), "1.5 GiB");
  EXPECT_EQ(DurationText(999'999), "999 ms");
  EXPECT_EQ(DurationText(1'550'000), "1.5 s");
  EXPECT_EQ(DurationText(60'000'000), "1 min 0 s");
  EXPECT_EQ(DurationText(3'660'000'000), "1 h 1 min");
  EXPECT_EQ(DurationText(90'000'000'000), "1 d 1 h");
  EXPECT_EQ(TimeText(1'795'517'538'123'456, true), "2026-11-24T10:52:18.123456Z");
  EXPECT_EQ(TimeText(1'795'517'538'123'456, false), "2026-11-24T10:52:18Z");
}

}  // namespace
}  // namespace jobworker
