#include "cmd/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace jobworker {
namespace {

Result<std::unique_ptr<int>> Make(bool works) {
  if (!works) return Error{EPERM, "make it"};
  return std::make_unique<int>(3);
}

TEST(Result, HoldsAValue) {
  Result<std::unique_ptr<int>> made = Make(true);
  ASSERT_TRUE(made.Ok());
  const std::unique_ptr<int> taken = std::move(made.value());
  EXPECT_EQ(*taken, 3);
}

TEST(Result, HoldsAnError) {
  const Result<std::unique_ptr<int>> made = Make(false);
  ASSERT_FALSE(made.Ok());
  EXPECT_EQ(made.error().code, EPERM);
  EXPECT_EQ(made.error().what, "make it");
}

TEST(Result, ErrnoErrorTakesErrno) {
  errno = ENOSPC;
  const Error error = ErrnoError("write");
  EXPECT_EQ(error.code, ENOSPC);
  EXPECT_EQ(error.what, "write");
}

TEST(Result, AStatusIsDoneOrAnError) {
  const auto status = [](bool works) -> Status {
    if (!works) return Error{EIO, "flush"};
    return Done{};
  };
  EXPECT_TRUE(status(true).Ok());
  EXPECT_EQ(status(false).error().code, EIO);
}

TEST(ResultDeathTest, TheWrongOneAborts) { EXPECT_DEATH((void)Make(false).value(), ""); }

}  // namespace
}  // namespace jobworker
