#include "broker/users.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/try.h"

namespace jobworker {
namespace {

namespace fs = std::filesystem;

const std::string kAlice = "alice uid=70001 gid=70001 dir=/srv/alice";

std::string WhyRefused(std::string_view text) {
  const Result<Users> users = Try([](std::string_view list) { return ParseUsers(list); }, text);
  return users.has_value() ? "accepted" : users.error().what;
}

TEST(Users, TheBuiltInOnesAreForATryOut) {
  const Users users = LoadUsers("");
  ASSERT_EQ(users.size(), 3U);
  for (const auto& [name, uid] : {std::pair{"alice", 70001U}, {"bob", 70002U}, {"carl", 70003U}}) {
    const User& user = users.at(name);
    EXPECT_EQ(user.uid, uid);
    EXPECT_EQ(user.gid, uid);
    EXPECT_EQ(user.directory, std::string("/var/lib/jobworker/") + name);
    EXPECT_EQ(user.ceiling[kCpuLimit], 500U);
    EXPECT_EQ(user.ceiling[kMemoryLimit], 134'217'728U);
    EXPECT_EQ(user.ceiling[kWriteBytesLimit], 1'048'576U);
    EXPECT_EQ(user.ceiling[kWriteOpsLimit], 120U);
    EXPECT_EQ(user.ceiling[kPidsLimit], 2048U);
    EXPECT_EQ(user.job[kPidsLimit], 128U);
    EXPECT_EQ(user.max_jobs, 4096U);
  }
}

TEST(Users, ReadsEverySetting) {
  Result<Users> users =
      Try([](std::string_view text) { return ParseUsers(text); },
          "# all of them\n\n  \t\n" + kAlice +
              " jobs=7 cpu=1500 memory=1 pids=2 read-bytes=3 write-bytes=4 read-ops=5 write-ops=max"
              " job-cpu=max job-memory=8 job-pids=9 job-read-bytes=10 job-write-bytes=11 job-read-ops=12 "
              "job-write-ops=13 # x\n"
              "\tbob\tuid=1000 gid=1000 dir=/b");
  ASSERT_TRUE(users.has_value()) << users.error().what;
  ASSERT_EQ(users.value().size(), 2U);
  const User& alice = users.value().at("alice");
  EXPECT_EQ(alice.max_jobs, 7U);
  EXPECT_EQ(alice.directory, "/srv/alice");
  EXPECT_EQ(alice.ceiling, (Limits{1500, 1, 2, 3, 4, 5, kUnlimited}));
  EXPECT_EQ(alice.job, (Limits{kUnlimited, 8, 9, 10, 11, 12, 13}));
  EXPECT_EQ(users.value().at("bob").uid, 1000U);
}

TEST(Users, IdsThatNoUserMayHaveAreRefused) {
  for (const char* id : {"0", "1", "999", "-1", "65534", "65535", "4294967295", "4294967296", "5000000000", "1e4", "",
                         " ", "0x3e8", "+1000", "1000x", "x", "18446744073709551616", "max"}) {
    EXPECT_NE(WhyRefused("a gid=1000 dir=/a uid=" + std::string(id)), "accepted") << id;
    EXPECT_NE(WhyRefused("a uid=1000 dir=/a gid=" + std::string(id)), "accepted") << id;
  }
  for (const char* id : {"1000", "65533", "65536", "4294967294"}) {
    EXPECT_EQ(WhyRefused("a gid=" + std::string(id) + " dir=/a uid=" + id), "accepted") << id;
  }
}

TEST(Users, NumbersThatAreNoneAreRefused) {
  for (const char* key : {"cpu", "memory", "pids", "read-bytes", "write-bytes", "read-ops", "write-ops", "job-cpu",
                          "job-memory", "job-pids", "job-write-ops", "jobs"}) {
    for (const char* value : {"0", "-1", "", "1k", "Max", "18446744073709551616", "0x10", "1.5"}) {
      EXPECT_NE(WhyRefused(kAlice + " " + key + "=" + value), "accepted") << key << "=" << value;
    }
  }
}

TEST(Users, LinesThatAreWrongAreRefusedWithTheirNumber) {
  const std::string good = "# x\n" + kAlice + "\n";
  for (const char* bad :
       {"bob", "bob uid=2000", "bob uid=2000 gid=2000", "bob gid=2000 dir=/b", "bob uid=2000 dir=/b",
        "bob uid=2000 gid=2000 dir=b", "bob uid=2000 gid=2000 dir=relative", "bob uid=2000 gid=2000 dir=/",
        "bob uid=2000 gid=2000 dir=/b/", "bob uid=2000 gid=2000 dir=", "bob uid=2000 gid=2000 dir=/b color=red",
        "bob uid=2000 uid=2001 gid=2000 dir=/b", "bob uid=2000 gid=2000 dir=/b job-jobs=1",
        "bob uid=2000 gid=2000 dir=/b job-uid=1", "bob uid 2000", "Bob uid=2000 gid=2000 dir=/b",
        "abcdefghijklmnopqrstuvwxyz0123456 uid=2000 gid=2000 dir=/b", "../bob uid=2000 gid=2000 dir=/b",
        "1000 uid=2000 gid=2000 dir=/b"}) {
    const std::string why = WhyRefused(good + bad);
    EXPECT_NE(why.find("line 3: "), why.npos) << bad << " -> " << why;
  }
}

TEST(Users, NoTwoUsersShareAName) {
  for (const char* bad : {"alice uid=2000 gid=2000 dir=/b", "bob uid=70001 gid=2000 dir=/b",
                          "bob uid=2000 gid=70001 dir=/b", "bob uid=2000 gid=2000 dir=/srv/alice"}) {
    const std::string why = WhyRefused(kAlice + "\n" + bad);
    EXPECT_NE(why.find("line 2: "), why.npos) << bad << " -> " << why;
  }
}

TEST(Users, AListWithoutUsersIsRefused) {
  EXPECT_NE(WhyRefused(""), "accepted");
  EXPECT_NE(WhyRefused("# nobody\n\n"), "accepted");
}

TEST(Users, WhatAJobAsksForIsHeldUnderTheCeiling) {
  User user;
  user.ceiling = {500, 100, 10, kUnlimited, 5, kUnlimited, 6};
  user.job = {kUnlimited, 50, kUnlimited, 7, kUnlimited, kUnlimited, kUnlimited};
  const std::optional<Limits> defaults = JobLimits(user, {});
  ASSERT_TRUE(defaults.has_value());
  EXPECT_EQ(defaults.value(), user.job);
  ASSERT_TRUE(JobLimits(user, user.ceiling).has_value());
  EXPECT_EQ(JobLimits(user, user.ceiling).value(), user.ceiling);
  for (size_t i = 0; i < kLimitCount; ++i) {
    if (user.ceiling[i] == kUnlimited) continue;
    for (const uint64_t above : {user.ceiling[i] + 1, kUnlimited}) {
      Limits asked{};
      asked[i] = above;
      const std::optional<Limits> limits = JobLimits(user, asked);
      ASSERT_FALSE(limits.has_value()) << i;
    }
  }
}

// What follows needs files that are root's or another user's.
class UsersAsRoot : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root, to own and give away files";
    char name[] = "/tmp/users_test.XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    user_.uid = user_.gid = 70001;
    user_.directory = directory_ / "deeper" / "alice";
  }
  void TearDown() override {
    std::error_code ignored;
    if (!directory_.empty()) fs::remove_all(directory_, ignored);
  }
  std::string Write(const std::string& text, mode_t mode) {
    const std::string path = directory_ / "users";
    std::ofstream(path) << text;
    EXPECT_EQ(chmod(path.c_str(), mode), 0);
    return path;
  }

  fs::path directory_;
  User user_;
};

TEST_F(UsersAsRoot, LoadsAFileOfRoots) {
  const std::string path = Write(kAlice, 0644);
  EXPECT_TRUE(Try(LoadUsers, path).has_value());
  ASSERT_EQ(chown(path.c_str(), 0, 70001), 0);
  EXPECT_TRUE(Try(LoadUsers, path).has_value());
}

TEST_F(UsersAsRoot, RefusesAFileThatOthersCanWrite) {
  for (const mode_t mode : {0664U, 0646U, 0602U, 0666U}) {
    const Result<Users> users = Try(LoadUsers, Write(kAlice, mode));
    ASSERT_FALSE(users.has_value()) << mode;
    EXPECT_NE(users.error().what.find("not writable by others"), std::string::npos);
    EXPECT_NE(users.error().what.find(directory_ / "users"), std::string::npos);
  }
  const std::string path = Write(kAlice, 0600);
  ASSERT_EQ(chown(path.c_str(), 70001, 0), 0);
  EXPECT_FALSE(Try(LoadUsers, path).has_value());
}

TEST_F(UsersAsRoot, RefusesWhatIsNoFile) {
  EXPECT_EQ(Try(LoadUsers, directory_ / "nothing").error().code, ENOENT);
  EXPECT_FALSE(Try(LoadUsers, directory_).has_value());
  const std::string fifo = directory_ / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_FALSE(Try(LoadUsers, fifo).has_value());
}

TEST_F(UsersAsRoot, AnErrorNamesTheFileAndTheLine) {
  const std::string path = Write("\n" + kAlice + " pids=no\n", 0600);
  const Result<Users> users = Try(LoadUsers, path);
  ASSERT_FALSE(users.has_value());
  EXPECT_NE(users.error().what.find(path + ": line 2: 'pids=no'"), std::string::npos) << users.error().what;
}

TEST_F(UsersAsRoot, MakesTheWorkingDirectoryForItsUserAlone) {
  const Result<dev_t> device = Try(PrepareDirectory, user_);
  ASSERT_TRUE(device.has_value()) << device.error().what;
  struct stat info {};
  ASSERT_EQ(lstat(user_.directory.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode, S_IFDIR | 0700U);
  EXPECT_EQ(info.st_uid, user_.uid);
  EXPECT_EQ(info.st_gid, user_.gid);
  EXPECT_EQ(info.st_dev, device.value());
  EXPECT_TRUE(Try(PrepareDirectory, user_).has_value());
}

TEST_F(UsersAsRoot, RefusesAWorkingDirectoryThatIsNotTheUsersOwn) {
  fs::create_directories(user_.directory);
  EXPECT_FALSE(Try(PrepareDirectory, user_).has_value());  // root's
  ASSERT_EQ(chown(user_.directory.c_str(), 70002, 70001), 0);
  EXPECT_FALSE(Try(PrepareDirectory, user_).has_value());
  ASSERT_EQ(chown(user_.directory.c_str(), 70001, 70001), 0);
  EXPECT_TRUE(Try(PrepareDirectory, user_).has_value());
  ASSERT_EQ(chmod(user_.directory.c_str(), 0770), 0);
  EXPECT_FALSE(Try(PrepareDirectory, user_).has_value());
}

TEST_F(UsersAsRoot, DoesNotFollowALink) {
  fs::create_directories(directory_ / "deeper");
  fs::create_directory(directory_ / "elsewhere");
  ASSERT_EQ(chown((directory_ / "elsewhere").c_str(), 70001, 70001), 0);
  fs::create_symlink(directory_ / "elsewhere", user_.directory);
  EXPECT_FALSE(Try(PrepareDirectory, user_).has_value());
}

}  // namespace
}  // namespace jobworker
