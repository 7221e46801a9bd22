#include "daemon/file_watch.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/temporary_directory.h"

namespace jobworker {
namespace {

namespace fs = std::filesystem;

class DirectoryWatchTest : public ::testing::Test {
 protected:
  DirectoryWatchTest() { fs::create_directory(certs_); }
  void Watch(const std::string& path) {
    watch_.emplace(loop_, path, [this] { ++told_; });
    const auto begun = watch_->Begin();
    ASSERT_TRUE(begun) << begun.error();
  }
  // Until it has been told, and all that it was told of before with it.
  void ExpectTold(const std::string& of) {
    SCOPED_TRACE(of);
    const int before = told_;
    while (told_ == before) loop_.RunOnce();
    EXPECT_EQ(told_, before + 1);
  }
  static void Write(const fs::path& path) { std::ofstream(path) << "x"; }

  const testing::TemporaryDirectory directory_;
  const fs::path root_ = directory_.path(), certs_ = root_ / "certs";
  EventLoop loop_;
  int told_ = 0;
  std::optional<DirectoryWatch> watch_;
};

TEST_F(DirectoryWatchTest, TellsOfEveryKindOfChange) {
  Write(root_ / "another");
  Write(certs_ / "old");
  Watch(certs_);
  Write(certs_ / "ca.pem");
  ExpectTold("a new file");
  Write(certs_ / "ca.pem");
  ExpectTold("a file that is written again");
  fs::permissions(certs_ / "ca.pem", fs::perms::owner_read);
  ExpectTold("a mode");
  fs::rename(root_ / "another", certs_ / "ca.pem");
  ExpectTold("a file that is moved in over another");
  fs::rename(certs_ / "old", root_ / "old");
  ExpectTold("a file that is moved out");
  fs::create_symlink("..data/ca.pem", certs_ / "link.pem");
  ExpectTold("a link");
  fs::create_hard_link(root_ / "old", certs_ / "hard.pem");
  ExpectTold("a hard link");
  fs::remove(certs_ / "ca.pem");
  ExpectTold("a file that is removed");
}

// As Kubernetes does it: ca.pem -> ..data/ca.pem, ..data -> ..1.
TEST_F(DirectoryWatchTest, TellsOfALinkThatIsExchanged) {
  for (const char* version : {"..1", "..2"}) {
    fs::create_directory(certs_ / version);
    Write(certs_ / version / "ca.pem");
  }
  fs::create_directory_symlink("..1", certs_ / "..data");
  fs::create_symlink("..data/ca.pem", certs_ / "ca.pem");
  Watch(certs_);
  fs::create_directory_symlink("..2", certs_ / "..new");
  fs::rename(certs_ / "..new", certs_ / "..data");
  ExpectTold("the link");
}

TEST_F(DirectoryWatchTest, TellsOnceOfWhatComesTogether) {
  Watch(certs_);
  for (int i = 0; i < 1000; ++i) Write(certs_ / std::to_string(i));
  ExpectTold("a thousand files");
  Write(certs_ / "one more");
  ExpectTold("one more");
  EXPECT_EQ(told_, 2);
}

TEST_F(DirectoryWatchTest, GoesOnWithWhatTakesTheDirectorysName) {
  fs::create_directory(root_ / "next");
  Watch(certs_.string() + "//");
  fs::rename(certs_, root_ / "last");
  fs::rename(root_ / "next", certs_);
  ExpectTold("another directory");
  Write(certs_ / "ca.pem");
  ExpectTold("a file in it");

  fs::remove_all(certs_);
  ExpectTold("none");
  fs::create_directory(certs_);
  ExpectTold("a new directory");
  Write(certs_ / "ca.pem");
  ExpectTold("a file in it");
  Write(root_ / "last" / "ca.pem");
  Write(root_ / "certs2");
  Write(certs_ / "worker.pem");
  ExpectTold("nothing of others");
  EXPECT_EQ(told_, 6);
}

TEST_F(DirectoryWatchTest, FollowsALinkThatTakesAnotherTarget) {
  fs::create_directory(root_ / "next");
  fs::create_directory_symlink("certs", root_ / "link");
  Watch(root_ / "link");
  Write(certs_ / "ca.pem");
  ExpectTold("a file in the target");
  fs::create_directory_symlink("next", root_ / "new");
  fs::rename(root_ / "new", root_ / "link");
  ExpectTold("another target");
  Write(root_ / "next" / "ca.pem");
  ExpectTold("a file in it");
}

TEST_F(DirectoryWatchTest, SaysWhyItCannot) {
  DirectoryWatch none(loop_, root_ / "none", [] {});
  const auto begun = none.Begin();
  ASSERT_FALSE(begun);
  EXPECT_EQ(begun.error(), (root_ / "none").string() + ": No such file or directory");
  Write(root_ / "file");
  DirectoryWatch file(loop_, root_ / "file", [] {});
  EXPECT_FALSE(file.Begin());
}

TEST_F(DirectoryWatchTest, MayEndWhileSomethingSettles) {
  Watch(certs_);
  Write(certs_ / "ca.pem");
  loop_.RunOnce();  // the event; its timer is not due
  watch_.reset();
  bool due = false;
  loop_.At(EventLoop::Clock::now() + DirectoryWatch::kSettles, [&] { due = true; });
  while (!due) loop_.RunOnce();
  EXPECT_EQ(told_, 0);
}

}  // namespace
}  // namespace jobworker
