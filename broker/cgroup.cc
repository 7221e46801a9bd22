#include "broker/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <algorithm>
#include <charconv>

namespace jobworker {

namespace {

constexpr std::pair<Controller, std::string_view> kControllers[] = {
    {kCpu, "cpu"}, {kIo, "io"}, {kMemory, "memory"}, {kPids, "pids"}};

std::string ToText(uint64_t value) { return value == kUnlimited ? "max" : std::to_string(value); }

uint64_t ToNumber(std::string_view text, uint64_t otherwise = kUnlimited) {
  uint64_t value = otherwise;
  (void)std::from_chars(text.begin(), text.end(), value);
  return value;
}

// The number after `key` and one more character: "key value" lines and "key=value" words.
uint64_t ValueOf(std::string_view text, std::string_view key, uint64_t absent) {
  for (size_t at = text.find(key); at != text.npos; at = text.find(key, at + 1)) {
    const std::string_view rest = text.substr(at + key.size());
    const bool whole = at == 0 || text[at - 1] == '\n' || text[at - 1] == ' ';
    if (whole && (rest.starts_with(' ') || rest.starts_with('='))) return ToNumber(rest.substr(1));
  }
  return absent;
}

// Empty when it cannot be read: counters that this kernel does not have are 0.
std::string ReadControl(int directory, const char* file) {
  const UniqueFd fd(openat(directory, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  std::string text;
  char part[4096];
  for (ssize_t size; fd.IsOpen() && (size = read(fd.Get(), part, sizeof(part))) > 0;) {
    text.append(part, static_cast<size_t>(size));
  }
  return text;
}

Status WriteControl(int directory, const char* file, std::string_view value) {
  const UniqueFd fd(openat(directory, file, O_WRONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.IsOpen() || write(fd.Get(), value.data(), value.size()) < 0) {
    return ErrnoError("write '" + std::string(value) + "' to " + file);
  }
  return Done{};
}

Result<UniqueFd> OpenDirectory(int parent, const char* name) {
  UniqueFd directory(openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory.IsOpen()) return ErrnoError(std::string("open cgroup ") + name);
  return directory;
}

uint8_t MissingControllers(int directory) {
  std::string offered = " " + ReadControl(directory, "cgroup.controllers");
  std::replace(offered.begin(), offered.end(), '\n', ' ');
  uint8_t missing = 0;
  for (const auto& [bit, name] : kControllers) {
    if (offered.find(" " + std::string(name) + " ") == offered.npos) missing |= bit;
  }
  return missing;
}

// Each on its own: one that is not offered must not keep the others off. What is missing then is found by reading.
void TurnOnControllers(int directory) {
  for (const auto& [bit, name] : kControllers) {
    (void)WriteControl(directory, "cgroup.subtree_control", "+" + std::string(name));
  }
}

Status RemoveChildren(int directory) {
  Result<UniqueFd> copy = OpenDirectory(directory, ".");
  DIR* entries = copy.Ok() ? fdopendir(copy.value().Release()) : nullptr;
  if (entries == nullptr) return ErrnoError("list cgroup");
  Status removed = Done{};
  while (const dirent* entry = readdir(entries)) {
    if (entry->d_type != DT_DIR || entry->d_name[0] == '.') continue;
    const Result<UniqueFd> child = OpenDirectory(directory, entry->d_name);
    if (child.Ok()) removed = RemoveChildren(child.value().Get());
    if (unlinkat(directory, entry->d_name, AT_REMOVEDIR) != 0) removed = ErrnoError("remove cgroup");
  }
  (void)closedir(entries);
  return removed;
}

std::string DeviceText(dev_t disk) { return std::to_string(major(disk)) + ":" + std::to_string(minor(disk)); }

}  // namespace

std::string ControllerNames(uint8_t controllers) {
  std::string names;
  for (const auto& [bit, name] : kControllers) names += (controllers & bit) != 0 ? " " + std::string(name) : "";
  return names;
}

dev_t DiskUnder(dev_t device) {
  const std::string path = "/sys/dev/block/" + DeviceText(device);
  const bool partition = access((path + "/partition").c_str(), F_OK) == 0;
  const std::string numbers = ReadControl(AT_FDCWD, (path + (partition ? "/../dev" : "/dev")).c_str());
  const size_t colon = numbers.find(':');
  if (colon == numbers.npos) return 0;
  return makedev(static_cast<unsigned>(ToNumber(numbers)), static_cast<unsigned>(ToNumber(numbers.substr(colon + 1))));
}

bool NeedsDisk(const Limits& limits) {
  return std::any_of(&limits[kReadBytesLimit], limits.end(), [](uint64_t limit) { return limit != kUnlimited; });
}

Result<Limits> ApplyLimits(int directory, const Limits& limits, uint8_t missing, dev_t disk) {
  Limits applied;
  applied.fill(kUnlimited);
  std::string text;  // of the control file just written
  const auto write = [&](Controller controller, bool limited, const char* file, const std::string& value) -> Status {
    text.clear();
    if (!limited || (missing & controller) != 0) return Done{};
    Status written = WriteControl(directory, file, value);
    if (written.Ok()) text = ReadControl(directory, file);
    return written;
  };
  const uint64_t cpu = limits[kCpuLimit], memory = limits[kMemoryLimit], pids = limits[kPidsLimit];
  if (cpu != kUnlimited && cpu > UINT32_MAX) return Error{ERANGE, "cpu.max"};
  const std::string quota = std::to_string(cpu * (kCpuPeriodUs / 1000)) + " " + std::to_string(kCpuPeriodUs);
  Status written = write(kCpu, cpu != kUnlimited, "cpu.max", quota);
  if (!text.empty()) applied[kCpuLimit] = ToNumber(text) / (kCpuPeriodUs / 1000);
  if (written.Ok()) written = write(kMemory, memory != kUnlimited, "memory.max", ToText(memory));
  if (!text.empty()) applied[kMemoryLimit] = ToNumber(text);
  // A kernel without swap has no such file.
  const Status swap = written.Ok() ? write(kMemory, memory != kUnlimited, "memory.swap.max", "0") : Done{};
  if (!swap.Ok() && swap.error().code != ENOENT) written = swap;
  if (written.Ok()) written = write(kPids, pids != kUnlimited, "pids.max", ToText(pids));
  if (!text.empty()) applied[kPidsLimit] = ToNumber(text);
  const std::string io = " rbps=" + ToText(limits[kReadBytesLimit]) + " wbps=" + ToText(limits[kWriteBytesLimit]) +
                         " riops=" + ToText(limits[kReadOpsLimit]) + " wiops=" + ToText(limits[kWriteOpsLimit]);
  if (written.Ok()) written = write(kIo, NeedsDisk(limits), "io.max", DeviceText(disk) + io);
  applied[kReadBytesLimit] = ValueOf(text, "rbps", kUnlimited);
  applied[kWriteBytesLimit] = ValueOf(text, "wbps", kUnlimited);
  applied[kReadOpsLimit] = ValueOf(text, "riops", kUnlimited);
  applied[kWriteOpsLimit] = ValueOf(text, "wiops", kUnlimited);
  if (!written.Ok()) return written.error();
  return applied;
}

Counters ReadCounters(int directory) {
  const std::string cpu = ReadControl(directory, "cpu.stat");
  const std::string io = ReadControl(directory, "io.stat");
  Counters counters{};
  counters[kCpuUser] = ValueOf(cpu, "user_usec", 0);
  counters[kCpuSystem] = ValueOf(cpu, "system_usec", 0);
  counters[kMemoryPeak] = ToNumber(ReadControl(directory, "memory.peak"), 0);
  counters[kPidsPeak] = ToNumber(ReadControl(directory, "pids.peak"), 0);
  for (size_t at = 0; at < io.size(); at = std::min(io.find('\n', at), io.size()) + 1) {
    const std::string_view line = std::string_view(io).substr(at, io.find('\n', at) - at);
    counters[kReadBytes] += ValueOf(line, "rbytes", 0);
    counters[kWriteBytes] += ValueOf(line, "wbytes", 0);
  }
  return counters;
}

uint32_t CountProcesses(int directory) {
  const std::string pids = ReadControl(directory, "cgroup.procs");
  return static_cast<uint32_t>(std::count(pids.begin(), pids.end(), '\n'));
}

void ReadOomKills(int directory, uint32_t& kills, OomLevel& level) {
  const std::string events = ReadControl(directory, "memory.events");
  kills = static_cast<uint32_t>(ValueOf(events, "oom_kill", 0));
  const bool own = ValueOf(events, "oom", 0) > 0;
  level = kills == 0 ? OomLevel::kNone : own ? OomLevel::kJob : OomLevel::kUser;
}

Status KillAll(int directory) { return WriteControl(directory, "cgroup.kill", "1"); }

Result<UniqueFd> OpenEvents(int directory) {
  UniqueFd events(openat(directory, "cgroup.events", O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!events.IsOpen()) return ErrnoError("open cgroup.events");
  return events;
}

bool IsPopulated(int events) {
  char text[256];
  const ssize_t size = pread(events, text, sizeof(text), 0);
  return size > 0 && ValueOf({text, static_cast<size_t>(size)}, "populated", 0) != 0;
}

Result<UniqueFd> MakeLeaf(int user_directory, uint64_t id) {
  const std::string name = std::to_string(id);
  if (mkdirat(user_directory, name.c_str(), 0755) != 0) return ErrnoError("make the job's cgroup");
  Result<UniqueFd> leaf = OpenDirectory(user_directory, name.c_str());
  if (!leaf.Ok()) (void)RemoveLeaf(user_directory, id);
  return leaf;
}

Status RemoveLeaf(int user_directory, uint64_t id) {
  if (unlinkat(user_directory, std::to_string(id).c_str(), AT_REMOVEDIR) != 0) return ErrnoError("remove cgroup");
  return Done{};
}

Result<CgroupTree> CgroupTree::Open(const std::string& path) {
  CgroupTree tree;
  tree.path_ = path;
  tree.made_ = mkdir(path.c_str(), 0755) == 0;
  if (!tree.made_ && errno != EEXIST) return ErrnoError("make cgroup " + path);
  Result<UniqueFd> root = OpenDirectory(AT_FDCWD, path.c_str());
  if (!root.Ok()) return root.error();
  tree.root_ = std::move(root.value());
  struct statfs info {};
  if (fstatfs(tree.root_.Get(), &info) != 0 || info.f_type != CGROUP2_SUPER_MAGIC) {
    tree.Remove();
    return Error{ENOTSUP, path + " is not on a cgroup v2 mount"};
  }
  if (flock(tree.root_.Get(), LOCK_EX | LOCK_NB) != 0) return ErrnoError("another broker works in " + path);
  const Status cleared = tree.Clear();
  if (!cleared.Ok()) return cleared.error();
  const Result<UniqueFd> parent = OpenDirectory(tree.root_.Get(), "..");
  if (parent.Ok() && MissingControllers(tree.root_.Get()) != 0) TurnOnControllers(parent.value().Get());
  tree.missing_ = MissingControllers(tree.root_.Get());
  TurnOnControllers(tree.root_.Get());
  return tree;
}

Status CgroupTree::MakeUser(const std::string& name, User& user) {
  // cgroupfs gives a new directory and its files to the caller's fsgid: the user's jobs may read their own limits,
  // other users' jobs may not even look.
  (void)setfsgid(user.gid);
  const bool made = mkdirat(root_.Get(), name.c_str(), 0750) == 0;
  const Error failed = ErrnoError("make cgroup " + path_ + "/" + name);
  (void)setfsgid(getegid());
  if (!made) return failed;
  Result<UniqueFd> directory = OpenDirectory(root_.Get(), name.c_str());
  if (!directory.Ok()) return directory.error();
  const Result<Limits> applied = ApplyLimits(directory.value().Get(), user.ceiling, user.missing, user.disk);
  if (!applied.Ok()) return Error{applied.error().code, "limits of " + name + ": " + applied.error().what};
  TurnOnControllers(directory.value().Get());
  user.cgroup = std::move(directory.value());
  user.applied = applied.value();
  return Done{};
}

Status CgroupTree::Clear() {
  const Status killed = KillAll(root_.Get());
  const Result<UniqueFd> events = OpenEvents(root_.Get());
  if (!killed.Ok() || !events.Ok()) return killed.Ok() ? events.error() : killed.error();
  while (IsPopulated(events.value().Get())) {
    pollfd changed{events.value().Get(), POLLPRI, 0};
    (void)poll(&changed, 1, -1);
  }
  return RemoveChildren(root_.Get());
}

void CgroupTree::Remove() {
  if (made_) (void)rmdir(path_.c_str());
}

}  // namespace jobworker
