#include "broker/spawn.h"

#include <gtest/gtest.h>

namespace jobworker {
namespace {

using Strings = std::vector<std::string>;

Start StartWith(Strings env) { return Start{{"alice", 7}, {}, {"ls"}, std::move(env)}; }

User Alice() {
  User user;
  user.directory = "/srv/alice";
  return user;
}

TEST(JobEnvironment, IsFixedWhenNothingIsAsked) {
  EXPECT_EQ(JobEnvironment(Alice(), StartWith({})),
            (Strings{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/srv/alice", "USER=alice", "LOGNAME=alice",
                     "SHELL=/bin/sh", "LANG=C.UTF-8", "JOB_ID=7"}));
}

TEST(JobEnvironment, TheRequestsVariablesReplaceOnesOfTheSameName) {
  EXPECT_EQ(JobEnvironment(Alice(), StartWith({"LANG=C", "LANGUAGE=en", "X=", "X=2", "PATH=/bin"})),
            (Strings{"HOME=/srv/alice", "USER=alice", "LOGNAME=alice", "SHELL=/bin/sh", "JOB_ID=7", "LANG=C",
                     "LANGUAGE=en", "X=2", "PATH=/bin"}));
}

TEST(ExecCandidates, ASlashMeansThatPathAlone) {
  EXPECT_EQ(ExecCandidates("./x", {"PATH=/bin"}), Strings{"./x"});
  EXPECT_EQ(ExecCandidates("/bin/ls", {"PATH=/usr/bin"}), Strings{"/bin/ls"});
}

TEST(ExecCandidates, TheDirectoriesOfPathInOrder) {
  EXPECT_EQ(ExecCandidates("ls", {"A=1", "PATH=/usr/bin:/bin"}), (Strings{"/usr/bin/ls", "/bin/ls"}));
  EXPECT_EQ(ExecCandidates("ls", {"PATH=:/bin:"}), (Strings{"./ls", "/bin/ls", "./ls"}));
  EXPECT_EQ(ExecCandidates("ls", {"PATH="}), Strings{"./ls"});
  EXPECT_EQ(ExecCandidates("ls", {"MYPATH=/bin"}), Strings{});
}

// A name that no file can have is not multiplied by the length of PATH: 16 KiB of colons times 40 KiB is 640 MiB.
TEST(ExecCandidates, ANameThatIsTooLongIsNotLookedUp) {
  const std::string longest(255, 'x'), longer(256, 'x');
  EXPECT_EQ(ExecCandidates(longest, {"PATH=/a:/b"}).size(), 2U);
  EXPECT_EQ(ExecCandidates(longer, {"PATH=" + std::string(1000, ':')}), Strings{longer});
}

}  // namespace
}  // namespace jobworker
