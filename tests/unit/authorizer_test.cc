#include "daemon/authorizer.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <string>

#include "tests/unit/temporary_directory.h"

namespace jobworker {
namespace {

constexpr Method kAll[] = {Method::kJobStart, Method::kJobStop, Method::kJobQuery};
constexpr auto kNoSuchMethod = static_cast<Method>(99);

void ExpectError(const tl::expected<Policy, std::string>& policy, const std::string& part) {
  ASSERT_FALSE(policy) << part;
  EXPECT_NE(policy.error().find(part), std::string::npos) << policy.error();
}

std::string PathOf(const MethodRow& row) { return "/" + std::string(row.service) + "/" + std::string(row.name); }

TEST(Methods, HaveOneRowEach) {
  std::set<std::string> paths;
  for (size_t i = 0; i < kMethods.size(); ++i) {
    const MethodRow& row = kMethods.at(i);
    EXPECT_EQ(row.method, static_cast<Method>(i));
    EXPECT_EQ(FindMethod(row.method), &row);
    EXPECT_EQ(FindMethod(PathOf(row)), &row);
    EXPECT_TRUE(row.right.empty() || std::count(kRights.begin(), kRights.end(), row.right) == 1) << row.name;
    paths.insert(PathOf(row));
  }
  EXPECT_EQ(paths.size(), kMethods.size());
  for (const std::string_view right : kRights) EXPECT_TRUE(right.starts_with(kRightPrefix));
}

TEST(Methods, AreFoundByTheirWholePathOnly) {
  for (const char* path :
       {"", "/", "//", "Worker/JobStart", "/Worker/", "/Worker", "/Worker/JobStart/", "//Worker/JobStart", "/JobStart",
        "/Worker/jobstart", "/Worker/Check", "/Health/Check", "/grpc.health.v1.Health/JobStart",
        "/Worker/Worker/JobStart", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"}) {
    EXPECT_EQ(FindMethod(path), nullptr) << path;
  }
}

TEST(Methods, WithoutARightAreEverybodys) {
  for (const MethodRow& row : kMethods) {
    EXPECT_EQ(Policy::BuiltIn().Allows("nobody-of-the-policy", row.method), row.right.empty()) << row.name;
    EXPECT_EQ(Policy::BuiltIn().Allows("carl", row.method), row.right.empty()) << row.name;
    EXPECT_TRUE(Policy::BuiltIn().Allows("alice", row.method)) << row.name;
  }
}

TEST(Policy, TellsARightsHolderInOneOrder) {
  const auto policy = Policy::Parse("dora allow_query allow_start\ncarl");
  EXPECT_EQ(policy->RightsOf("dora"), (std::vector<std::string_view>{kStartRight, kQueryRight}));
  EXPECT_TRUE(policy->RightsOf("carl").empty());
  EXPECT_TRUE(policy->RightsOf("nobody").empty());
}

TEST(Methods, AreFoundByTheirPathAndNothingLikeIt) {
  for (const MethodRow& row : kMethods) {
    const std::string service(row.service), path = "/" + service + "/" + std::string(row.name);
    EXPECT_EQ(FindMethod(path), &row);
    for (const std::string& other :
         {path + "/", path + " ", path + std::string(1, '\0'), "/" + path, path.substr(1),
          path.substr(0, path.size() - 1), "/worker/" + std::string(row.name),
          "/" + service + "//" + std::string(row.name), "/jobworker.Worker/" + std::string(row.name),
          std::string(row.name), path + "?x", "/Worker/.." + path}) {
      EXPECT_EQ(FindMethod(other), nullptr) << other;
    }
  }
  for (const char* path : {"", "/", "/Worker", "/Worker/", "/Worker/jobStart", "/Worker/JOBSTART",
                           "/Worker/allow_start", "/grpc.health.v1.Health/Start", "/Worker/Check"}) {
    EXPECT_EQ(FindMethod(path), nullptr) << path;
  }
}

TEST(Methods, WithoutARowAreDenied) {
  EXPECT_EQ(FindMethod(kNoSuchMethod), nullptr);
  EXPECT_FALSE(Policy::BuiltIn().Allows("alice", kNoSuchMethod));
}

TEST(Policy, BuiltIn) {
  const Policy policy = Policy::BuiltIn();
  for (const Method method : kAll) {
    EXPECT_TRUE(policy.Allows("alice", method));
    EXPECT_TRUE(policy.Allows("bob", method));
    for (const char* user : {"carl", "dora", "", "Alice", "alice ", "root"}) EXPECT_FALSE(policy.Allows(user, method));
  }
}

TEST(Policy, GivesJustTheRightsWritten) {
  const auto policy = Policy::Parse(
      "# the policy\n\n"
      "  dora\tallow_start allow_start # twice is once\n"
      "eve allow_query allow_stop\r\n"
      "#alice allow_start\n"
      "fay # allow_start\n"
      "gus allow_query");
  ASSERT_TRUE(policy) << policy.error();
  const auto rights = [&](std::string_view user) {
    std::string letters;
    if (policy->Allows(user, Method::kJobStart)) letters += 's';
    if (policy->Allows(user, Method::kJobStop)) letters += 'e';
    if (policy->Allows(user, Method::kJobQuery)) letters += 'q';
    return letters;
  };
  EXPECT_EQ(rights("dora"), "s");
  EXPECT_EQ(rights("eve"), "eq");
  EXPECT_EQ(rights("alice"), "");
  EXPECT_EQ(rights("fay"), "");
  EXPECT_EQ(rights("gus"), "q");
}

TEST(Policy, EmptyLetsNobodyIn) {
  const auto policy = Policy::Parse("");
  ASSERT_TRUE(policy);
  for (const Method method : kAll) EXPECT_FALSE(policy->Allows("alice", method));
}

TEST(Policy, ErrorsSayWhereAndWhat) {
  ExpectError(Policy::Parse("alice allow_start\nAlice allow_start\n"), "line 2: 'Alice' is not a user name");
  ExpectError(Policy::Parse("* allow_start"), "line 1: '*' is not a user name");
  ExpectError(Policy::Parse("alice allow_all"), "line 1: 'allow_all' is not a right (allow_start allow_stop allow_qu");
  ExpectError(Policy::Parse("alice ALLOW_START"), "'ALLOW_START' is not a right");
  ExpectError(Policy::Parse("alice allow_start,allow_stop"), "is not a right");
  ExpectError(Policy::Parse("alice allow_start\n\nalice"), "line 3: user 'alice' is there twice");
  ExpectError(Policy::Parse(std::string(33, 'a')), "is not a user name");
  ExpectError(Policy::Parse(std::string("ali\0ce allow_start", 18)), "is not a user name");
}

TEST(PolicyFile, MustBeWritableByItsOwnerOnly) {
  const testing::TemporaryDirectory directory;
  for (const unsigned mode : {0400U, 0600U, 0644U}) {
    const auto policy = Policy::Load(directory.Write("policy", "alice allow_start\n", mode));
    ASSERT_TRUE(policy) << policy.error();
    EXPECT_TRUE(policy->Allows("alice", Method::kJobStart));
    EXPECT_FALSE(policy->Allows("bob", Method::kJobStart));
  }
  for (const unsigned mode : {0620U, 0602U, 0666U, 0777U}) {
    const std::string path = directory.Write("policy", "alice allow_start\n", mode);
    ExpectError(Policy::Load(path), path + " can be written by others; run: chmod go-w " + path);
  }
}

TEST(PolicyFile, MustBelongToRootOrToUs) {
  if (geteuid() != 0) GTEST_SKIP() << "giving a file away takes root";
  const testing::TemporaryDirectory directory;
  const std::string path = directory.Write("policy", "alice allow_start\n", 0644);
  ASSERT_EQ(chown(path.c_str(), 12345, 0), 0);
  ExpectError(Policy::Load(path), path + " belongs to uid 12345; run: chown root " + path);
}

TEST(PolicyFile, ErrorsNameTheFile) {
  const testing::TemporaryDirectory directory;
  const std::string path = directory.Write("policy", "alice allow_everything\n", 0644);
  ExpectError(Policy::Load(path), "policy file " + path + ": line 1: ");
  ExpectError(Policy::Load(path + ".none"), path + ".none: No such file");
  ExpectError(Policy::Load(directory.path()), "not a regular file");
  const std::string pipe = directory.path() + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  ExpectError(Policy::Load(pipe), "not a regular file");
  ExpectError(Policy::Load(directory.Write("big", std::string((1 << 20) + 1, '#'), 0644)), "at most 1 MiB");
}

}  // namespace
}  // namespace jobworker
