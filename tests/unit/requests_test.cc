// What the methods' requests ask for, and what is refused before anybody acts on it.
#include "daemon/requests.h"

#include <gtest/gtest.h>

#include <csignal>

namespace jobworker {
namespace {

using namespace std::chrono_literals;
using Words = std::vector<std::string>;

WorkerStartRequest Request(const std::string& command, const Words& args = {}, const Words& env = {}) {
  WorkerStartRequest request;
  request.set_command(command);
  for (const std::string& arg : args) request.add_args(arg);
  for (const std::string& entry : env) request.add_env(entry);
  return request;
}

TEST(ReadStartRequest, TakesTheCommandAsItIsWhenThereAreArguments) {
  EXPECT_EQ(ReadStartRequest(Request("a b", {"c d", ""}))->start.argv, (Words{"a b", "c d", ""}));
  EXPECT_EQ(ReadStartRequest(Request("a b"))->start.argv, (Words{"a", "b"}));
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

// The words begin with the field's name.
template <class T>
void ExpectRefused(const tl::expected<T, std::string>& read, const std::string& field) {
  ASSERT_FALSE(read) << field;
  EXPECT_EQ(read.error().substr(0, field.size() + 1), field + ":") << read.error();
}

TEST(ReadStartRequest, TheRequestKeyIsAtMost64Bytes) {
  WorkerStartRequest request = Request("a");
  EXPECT_EQ(ReadStartRequest(request)->note.request_key(), "");
  request.set_request_key(std::string(64, '\0'));
  EXPECT_EQ(ReadStartRequest(request)->note.request_key(), std::string(64, '\0'));
  request.set_request_key(std::string(65, 'x'));
  ExpectRefused(ReadStartRequest(request), "request_key");
}

TEST(ReadStartRequest, LimitsAreWithinTheirBoundsAndUnsetIsTheDefault) {
  using Set = void (ResourceLimits::*)(uint64_t);
  const std::pair<const char*, Set> fields[] = {{"cpu_milli", &ResourceLimits::set_cpu_milli},
                                                {"memory_bytes", &ResourceLimits::set_memory_bytes},
                                                {"pids", &ResourceLimits::set_pids},
                                                {"read_bytes_per_second", &ResourceLimits::set_read_bytes_per_second},
                                                {"write_bytes_per_second", &ResourceLimits::set_write_bytes_per_second},
                                                {"read_ops_per_second", &ResourceLimits::set_read_ops_per_second},
                                                {"write_ops_per_second", &ResourceLimits::set_write_ops_per_second}};
  EXPECT_EQ(ReadStartRequest(Request("a"))->start.limits, Limits{});
  for (size_t i = 0; i < kLimitCount; ++i) {
    const auto& bounds = kLimitFields.at(i);
    for (const uint64_t value :
         {uint64_t{0}, bounds.least - 1, bounds.least, bounds.most, bounds.most + 1, UINT64_MAX}) {
      WorkerStartRequest request = Request("a");
      (request.mutable_limits()->*fields[i].second)(value);
      const auto read = ReadStartRequest(request);
      if (value < bounds.least || value > bounds.most) {
        ExpectRefused(read, std::string("limits.") + fields[i].first);
      } else {
        EXPECT_EQ(read->start.limits.at(i), value);
      }
    }
  }
}

TEST(ReadFollowRequest, TakesOneBeginningAtMost) {
  WorkerPIDRequest request;
  auto spec = ReadFollowRequest(request);
  ASSERT_TRUE(spec);
  EXPECT_EQ(spec->offset, 0U);
  EXPECT_FALSE(spec->tail_bytes || spec->tail_lines || spec->only || spec->no_follow);
  request.set_offset(UINT64_MAX);
  EXPECT_EQ(ReadFollowRequest(request)->offset, UINT64_MAX);
  request.set_tail_bytes(0);
  ExpectRefused(ReadFollowRequest(request), "offset, tail_bytes and tail_lines");
  request.clear_offset();
  EXPECT_EQ(ReadFollowRequest(request)->tail_bytes, 0U);
  request.set_tail_lines(0);
  ExpectRefused(ReadFollowRequest(request), "offset, tail_bytes and tail_lines");
  request.clear_tail_bytes();
  EXPECT_EQ(ReadFollowRequest(request)->tail_lines, 0U);
  request.set_offset(1);
  ExpectRefused(ReadFollowRequest(request), "offset, tail_bytes and tail_lines");
}

TEST(ReadFollowRequest, KnowsTheStreams) {
  WorkerPIDRequest request;
  request.set_streams(WorkerPIDRequest::ONLY_STDOUT);
  EXPECT_EQ(ReadFollowRequest(request)->only, OutputStream::kStdout);
  request.set_streams(WorkerPIDRequest::ONLY_STDERR);
  request.set_no_follow(true);
  EXPECT_EQ(ReadFollowRequest(request)->only, OutputStream::kStderr);
  EXPECT_TRUE(ReadFollowRequest(request)->no_follow);
  for (const int other : {-1, 3, 1 << 30}) {
    request.set_streams(static_cast<WorkerPIDRequest::Streams>(other));
    ExpectRefused(ReadFollowRequest(request), "streams");
  }
}

TEST(ReadStopRequest, SignalsFrom1To64) {
  WorkerPIDRequest request;
  for (const int signal : {-1, 65, INT32_MIN, INT32_MAX, 256 + SIGTERM}) {
    request.set_signal(signal);
    ExpectRefused(ReadStopRequest(request, 5s), "signal");
  }
  for (const int signal : {1, 64}) {
    request.set_signal(signal);
    EXPECT_EQ(ReadStopRequest(request, 5s)->signal, signal);
  }
  request.clear_signal();
  EXPECT_EQ(ReadStopRequest(request, 5s)->signal, SIGTERM);
  EXPECT_EQ(ReadStopRequest(request, 5s)->kind, StopKind::kAsked);
  request.set_now(true);
  EXPECT_EQ(ReadStopRequest(request, 5s)->signal, 0);
  request.set_signal(SIGINT);
  EXPECT_EQ(ReadStopRequest(request, 5s)->signal, 0);
}

TEST(ReadStopRequest, AGraceOfAtMostAnHour) {
  WorkerPIDRequest request;
  EXPECT_EQ(ReadStopRequest(request, 5s)->grace, 5s);
  request.set_grace_ms(0);
  EXPECT_EQ(ReadStopRequest(request, 5s)->grace, 0s);
  request.set_grace_ms(3'600'000);
  EXPECT_EQ(ReadStopRequest(request, 5s)->grace, 1h);
  for (const uint64_t grace : {uint64_t{3'600'001}, UINT64_MAX}) {
    request.set_grace_ms(grace);
    ExpectRefused(ReadStopRequest(request, 5s), "grace_ms");
  }
}

}  // namespace
}  // namespace jobworker
