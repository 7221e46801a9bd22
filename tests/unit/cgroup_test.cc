// The cgroup code against directories of ordinary files with the kernel's names.
#include "broker/cgroup.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/unit/try.h"

namespace jobworker {
namespace {

namespace fs = std::filesystem;

constexpr Limits kNoLimits{kUnlimited, kUnlimited, kUnlimited, kUnlimited, kUnlimited, kUnlimited, kUnlimited};

class Cgroup : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/cgroup_test.XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    path_ = name;
    fd_.Reset(open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  void TearDown() override { fs::remove_all(path_); }
  void Write(const char* file, const std::string& text) { std::ofstream(path_ / file) << text; }
  std::string Read(const char* file) {
    std::ostringstream text;
    text << std::ifstream(path_ / file).rdbuf();
    return text.str();
  }
  void WriteAllLimitFiles() {
    for (const char* file : {"cpu.max", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "io.max"}) {
      Write(file, "");
    }
  }

  fs::path path_;
  UniqueFd fd_;
};

TEST_F(Cgroup, ControllerNames) {
  EXPECT_EQ(ControllerNames(0), "");
  EXPECT_EQ(ControllerNames(kAllControllers), " cpu io memory pids");
  EXPECT_EQ(ControllerNames(kIo | kPids), " io pids");
}

TEST_F(Cgroup, OnlyIoLimitsNeedADisk) {
  EXPECT_FALSE(NeedsDisk(kNoLimits));
  for (size_t i = 0; i < kLimitCount; ++i) {
    Limits limits = kNoLimits;
    limits[i] = 1;
    EXPECT_EQ(NeedsDisk(limits), i >= kReadBytesLimit) << i;
  }
}

TEST_F(Cgroup, WritesEachLimitInTheKernelsWords) {
  WriteAllLimitFiles();
  const Result<Limits> applied =
      Try(ApplyLimits, fd_.Get(), Limits{500, 4096, 10, 1, 2, 3, kUnlimited}, uint8_t{0}, makedev(8, 16));
  ASSERT_TRUE(applied.has_value()) << applied.error().what;
  EXPECT_EQ(Read("cpu.max"), "100000 200000");
  EXPECT_EQ(Read("memory.max"), "4096");
  EXPECT_EQ(Read("memory.swap.max"), "0");
  EXPECT_EQ(Read("pids.max"), "10");
  EXPECT_EQ(Read("io.max"), "8:16 riops=3");
  EXPECT_EQ(applied.value(), (Limits{500, 4096, 10, 1, 2, 3, kUnlimited}));
}

TEST_F(Cgroup, LeavesOutMissingControllersAndSaysSo) {
  WriteAllLimitFiles();
  const Limits asked{500, 4096, 10, 1, 2, 3, 4};
  for (const uint8_t missing : {kCpu, kIo, kMemory, kPids, kAllControllers}) {
    const Result<Limits> applied = Try(ApplyLimits, fd_.Get(), asked, missing, makedev(8, 0));
    ASSERT_TRUE(applied.has_value());
    EXPECT_EQ(applied.value()[kCpuLimit], (missing & kCpu) != 0 ? kUnlimited : 500);
    EXPECT_EQ(applied.value()[kMemoryLimit], (missing & kMemory) != 0 ? kUnlimited : 4096);
    EXPECT_EQ(applied.value()[kPidsLimit], (missing & kPids) != 0 ? kUnlimited : 10);
    EXPECT_EQ(applied.value()[kWriteOpsLimit], (missing & kIo) != 0 ? kUnlimited : 4);
  }
}

TEST_F(Cgroup, ALimitThatCannotBeWrittenIsAnError) {
  for (const size_t limit : {kCpuLimit, kMemoryLimit, kPidsLimit, kWriteBytesLimit}) {
    Limits limits = kNoLimits;
    limits[limit] = 100;
    const Result<Limits> applied = Try(ApplyLimits, fd_.Get(), limits, uint8_t{0}, makedev(8, 0));
    ASSERT_FALSE(applied.has_value()) << limit;
    EXPECT_EQ(applied.error().code, ENOENT);
  }
  EXPECT_TRUE(Try(ApplyLimits, fd_.Get(), kNoLimits, uint8_t{0}, dev_t{0}).has_value());
}

TEST_F(Cgroup, AKernelWithoutSwapHasNothingToForbid) {
  Write("memory.max", "");
  Limits limits = kNoLimits;
  limits[kMemoryLimit] = 4096;
  EXPECT_TRUE(Try(ApplyLimits, fd_.Get(), limits, uint8_t{0}, dev_t{0}).has_value());
  EXPECT_EQ(Read("memory.max"), "4096");
}

TEST_F(Cgroup, ACpuLimitThatWouldOverflowIsAnError) {
  WriteAllLimitFiles();
  Limits limits = kNoLimits;
  limits[kCpuLimit] = uint64_t{UINT32_MAX} + 1;
  EXPECT_FALSE(Try(ApplyLimits, fd_.Get(), limits, uint8_t{0}, dev_t{0}).has_value());
}

TEST_F(Cgroup, DoesNotFollowALinkToAControlFile) {
  Write("elsewhere", "untouched");
  fs::create_symlink(path_ / "elsewhere", path_ / "pids.max");
  Limits limits = kNoLimits;
  limits[kPidsLimit] = 5;
  EXPECT_FALSE(Try(ApplyLimits, fd_.Get(), limits, uint8_t{0}, dev_t{0}).has_value());
  EXPECT_EQ(Read("elsewhere"), "untouched");
}

TEST_F(Cgroup, ReadsTheCounters) {
  Write("cpu.stat", "usage_usec 30\nuser_usec 10\nsystem_usec 20\ncore_sched.force_idle_usec 0\n");
  Write("memory.peak", "4096\n");
  Write("pids.peak", "3\n");
  Write("io.stat",
        "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n259:1 rbytes=1 wbytes=2 rios=1 wios=2 dbytes=0\n");
  const Counters counters = ReadCounters(fd_.Get());
  EXPECT_EQ(counters[kCpuUser], 10U);
  EXPECT_EQ(counters[kCpuSystem], 20U);
  EXPECT_EQ(counters[kMemoryPeak], 4096U);
  EXPECT_EQ(counters[kPidsPeak], 3U);
  EXPECT_EQ(counters[kReadBytes], 101U);
  EXPECT_EQ(counters[kWriteBytes], 202U);
}

TEST_F(Cgroup, CountersThatAreNotThereAreZero) { EXPECT_EQ(ReadCounters(fd_.Get()), Counters{}); }

TEST_F(Cgroup, CountsProcesses) {
  EXPECT_EQ(CountProcesses(fd_.Get()), 0U);
  Write("cgroup.procs", "1\n22\n333\n");
  EXPECT_EQ(CountProcesses(fd_.Get()), 3U);
  std::string many;
  for (int pid = 1000; pid < 4000; ++pid) many += std::to_string(pid) + "\n";
  Write("cgroup.procs", many);
  EXPECT_EQ(CountProcesses(fd_.Get()), 3000U);
}

TEST_F(Cgroup, TellsWhoseMemoryLimitKilled) {
  const auto expect = [this](const char* events, uint32_t kills, OomLevel level) {
    Write("memory.events", events);
    uint32_t read_kills = 99;
    OomLevel read_level = OomLevel::kNone;
    ReadOomKills(fd_.Get(), read_kills, read_level);
    EXPECT_EQ(read_kills, kills) << events;
    EXPECT_EQ(read_level, level) << events;
  };
  expect("", 0, OomLevel::kNone);
  expect("low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 0\n", 0, OomLevel::kNone);
  expect("low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 1\n", 2, OomLevel::kJob);
  expect("low 0\nhigh 0\nmax 0\noom 0\noom_kill 3\noom_group_kill 0\n", 3, OomLevel::kUser);
}

TEST_F(Cgroup, ALeafComesWithWhatEndsIt) {
  fs::create_directory(path_ / "7");
  Write("7/cgroup.events", "populated 1\nfrozen 0\n");
  Write("7/cgroup.kill", "");
  const Result<Leaf> leaf = Try(OpenLeaf, fd_.Get(), std::string("7"));
  ASSERT_TRUE(leaf.has_value());
  EXPECT_TRUE(leaf.value().directory.IsOpen());
  EXPECT_EQ(KillAll(leaf.value().kill), 0);
  EXPECT_EQ(Read("7/cgroup.kill"), "1");
  // It is read again each time.
  EXPECT_TRUE(IsPopulated(leaf.value().events));
  EXPECT_TRUE(IsPopulated(leaf.value().events));
  Write("7/cgroup.events", "populated 0\nfrozen 0\n");
  EXPECT_FALSE(IsPopulated(leaf.value().events));
}

TEST_F(Cgroup, ALeafThatIsNotThereIsClosed) {
  const Result<Leaf> leaf = Try(OpenLeaf, fd_.Get(), std::string("7"));
  ASSERT_TRUE(leaf.has_value());
  EXPECT_FALSE(leaf.value().directory.IsOpen());
  EXPECT_EQ(KillAll(leaf.value().kill), EBADF);
  EXPECT_FALSE(IsPopulated(leaf.value().events));
  fs::create_symlink("/", path_ / "7");
  EXPECT_FALSE(Try(OpenLeaf, fd_.Get(), std::string("7")).has_value());
}

TEST_F(Cgroup, ALeafIsMadeOnceAndNeverAdopted) {
  ASSERT_TRUE(Try(MakeLeaf, fd_.Get(), UINT64_MAX).has_value());
  EXPECT_TRUE(fs::is_directory(path_ / "18446744073709551615"));
  EXPECT_EQ(Try(MakeLeaf, fd_.Get(), UINT64_MAX).error().code, EEXIST);
  EXPECT_TRUE(RemoveLeaf(fd_.Get(), UINT64_MAX));
  EXPECT_EQ(RemoveLeaf(fd_.Get(), UINT64_MAX), false);
  fs::create_symlink("/", path_ / "5");
  EXPECT_EQ(Try(MakeLeaf, fd_.Get(), uint64_t{5}).error().code, EEXIST);
}

TEST_F(Cgroup, ATreeOutsideCgroupfsIsRefusedAndNotLeftBehind) {
  const auto make = [](const std::string& root) { return CgroupTree(root, {}, true); };
  const Result<CgroupTree> tree = Try(make, path_ / "tree");
  ASSERT_FALSE(tree.has_value());
  EXPECT_NE(tree.error().what.find("not on a cgroup v2 mount"), std::string::npos);
  EXPECT_FALSE(fs::exists(path_ / "tree"));
  EXPECT_EQ(Try(make, path_ / "no" / "parent").error().code, ENOENT);
  fs::create_symlink("/sys/fs/cgroup", path_ / "link");
  EXPECT_FALSE(Try(make, path_ / "link").has_value());
}

TEST_F(Cgroup, NoDiskLiesUnderProc) {
  struct stat info {};
  ASSERT_EQ(stat("/proc", &info), 0);
  EXPECT_EQ(DiskUnder(info.st_dev), dev_t{0});
}

}  // namespace
}  // namespace jobworker
