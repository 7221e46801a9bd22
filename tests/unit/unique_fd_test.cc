#include "common/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

namespace jobworker {
namespace {

int OpenNull() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }
bool IsOpen(int fd) { return fcntl(fd, F_GETFD) >= 0; }

TEST(UniqueFd, ClosesWhenItEnds) {
  const int fd = OpenNull();
  {
    const UniqueFd owner(fd);
    EXPECT_TRUE(owner.IsOpen());
    EXPECT_EQ(owner.Get(), fd);
  }
  EXPECT_FALSE(IsOpen(fd));
}

TEST(UniqueFd, OwnsNothingAtFirst) {
  const UniqueFd none;
  EXPECT_FALSE(none.IsOpen());
  EXPECT_EQ(none.Get(), -1);
}

TEST(UniqueFd, MovingLeavesTheSourceEmpty) {
  const int fd = OpenNull();
  UniqueFd first(fd), second(std::move(first));
  EXPECT_FALSE(first.IsOpen());  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(second.Get(), fd);
}

TEST(UniqueFd, AssigningClosesWhatItHeld) {
  const int old = OpenNull(), fresh = OpenNull();
  UniqueFd owner(old);
  owner = UniqueFd(fresh);
  EXPECT_FALSE(IsOpen(old));
  EXPECT_EQ(owner.Get(), fresh);
  UniqueFd& same = owner;
  owner = std::move(same);
  EXPECT_TRUE(IsOpen(fresh));
}

TEST(UniqueFd, ReleaseGivesItUp) {
  UniqueFd owner(OpenNull());
  const int fd = owner.Release();
  EXPECT_FALSE(owner.IsOpen());
  EXPECT_TRUE(IsOpen(fd));
  owner.Reset(fd);
  owner.Reset();
  EXPECT_FALSE(IsOpen(fd));
}

TEST(UniqueFd, ClosingKeepsErrno) {
  errno = EAGAIN;
  UniqueFd(1'000'000).Reset();  // close fails with EBADF
  EXPECT_EQ(errno, EAGAIN);
}

}  // namespace
}  // namespace jobworker
