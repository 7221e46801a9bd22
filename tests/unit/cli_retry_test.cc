#include "cmd/cli_retry.h"

#include <gtest/gtest.h>

namespace jobworker {
namespace {

using grpc::StatusCode;
using std::chrono::milliseconds;

constexpr Circumstances kNeverReached{};
constexpr Circumstances kRefusedByServer{.reached = true, .connected = true};
constexpr Circumstances kBroken{.reached = true};
constexpr Circumstances kLost{.reached = true, .connected = true, .lost = true};
constexpr Circumstances kFollowing{.reached = true, .connected = true, .following = true};

TEST(WorthARetry, NothingOfAServerThatNeverWasReached) {
  for (const StatusCode code : {StatusCode::UNAVAILABLE, StatusCode::CANCELLED, StatusCode::OK}) {
    EXPECT_FALSE(WorthARetry(code, kNeverReached));
    EXPECT_FALSE(WorthARetry(code, {.lost = true, .following = true}));
  }
}

TEST(WorthARetry, ALostConnectionAndAServerThatIsBeingStopped) {
  for (const StatusCode code : {StatusCode::UNAVAILABLE, StatusCode::CANCELLED}) {
    EXPECT_FALSE(WorthARetry(code, kRefusedByServer));
    EXPECT_TRUE(WorthARetry(code, kBroken));
    EXPECT_TRUE(WorthARetry(code, kLost));
    EXPECT_TRUE(WorthARetry(code, kFollowing));
  }
}

TEST(WorthARetry, OnlyWhatFollowsGoesOnAfterAStreamWithoutEndOrAFullServer) {
  for (const StatusCode code : {StatusCode::OK, StatusCode::RESOURCE_EXHAUSTED}) {
    EXPECT_TRUE(WorthARetry(code, kFollowing));
    for (const auto& other : {kRefusedByServer, kBroken, kLost}) EXPECT_FALSE(WorthARetry(code, other));
  }
}

TEST(WorthARetry, EverythingElseIsFinal) {
  for (const StatusCode code :
       {StatusCode::UNKNOWN, StatusCode::INVALID_ARGUMENT, StatusCode::DEADLINE_EXCEEDED, StatusCode::NOT_FOUND,
        StatusCode::ALREADY_EXISTS, StatusCode::PERMISSION_DENIED, StatusCode::FAILED_PRECONDITION, StatusCode::ABORTED,
        StatusCode::OUT_OF_RANGE, StatusCode::UNIMPLEMENTED, StatusCode::INTERNAL, StatusCode::DATA_LOSS,
        StatusCode::UNAUTHENTICATED}) {
    for (const auto& each : {kRefusedByServer, kBroken, kLost, kFollowing}) EXPECT_FALSE(WorthARetry(code, each));
  }
}

constexpr Backoff::Clock::time_point kStart{std::chrono::hours(1)};

TEST(Backoff, DoublesUpToFiveSecondsAndStaysWithinHalfOfIt) {
  for (const double random : {0.0, 1.0}) {
    Backoff backoff([random] { return random; });
    for (const int whole : {100, 200, 400, 800, 1600, 3200, 5000, 5000}) {
      EXPECT_EQ(backoff.Next(kStart), milliseconds(random == 0 ? whole / 2 : whole));
    }
    for (int i = 0; i < 100; ++i) EXPECT_LE(backoff.Next(kStart), milliseconds(5000));
  }
}

TEST(Backoff, BeginsAgainAfterAConnectionThatHeld) {
  Backoff backoff([] { return 1.0; });
  for (int i = 0; i < 10; ++i) backoff.Next(kStart);
  backoff.Connected(kStart);
  EXPECT_EQ(backoff.Next(kStart + milliseconds(5000)), milliseconds(5000));
  backoff.Connected(kStart);
  EXPECT_EQ(backoff.Next(kStart + milliseconds(5001)), milliseconds(100));
  EXPECT_EQ(backoff.Next(kStart + milliseconds(90000)), milliseconds(200));
}

TEST(Backoff, ClientsDoNotComeBackTogether) {
  Backoff one;
  Backoff other;
  bool differ = false;
  for (int i = 0; i < 20; ++i) differ = differ || one.Next(kStart) != other.Next(kStart);
  EXPECT_TRUE(differ);
}

}  // namespace
}  // namespace jobworker
