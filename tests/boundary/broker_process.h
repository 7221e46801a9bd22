// A real jobbroker with everything of its own: cgroup root, users file, working directories, rendezvous socket.
#pragma once
#include <sys/resource.h>
#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/unique_fd.h"

namespace jobworker {

namespace fs = std::filesystem;

// Only a guard against hanging for ever: whoever waits that long has failed.
inline constexpr int kHangMs = 30'000;

// The uids of the test's users and of the front end. None of them has an account.
inline constexpr uid_t kFrontEndUid = 70'100, kAliceUid = 70'101, kBobUid = 70'102, kCarlUid = 70'103;

// Waits for `events` on `fd`; false when it took kHangMs.
bool WaitFor(int fd, short events);
std::string ReadFile(const fs::path& path);
// Waits until the file, which is there, has `text`.
bool WaitForText(const fs::path& file, const std::string& text);

// A started program, in surroundings that no job may inherit: a stray descriptor and group, odd signals, an
// environment. Its stdout and stderr go to the file `log`.
class Process {
 public:
  Process() = default;
  // `keep` stays open in it at the same number; -1 for none. `files` is its hard RLIMIT_NOFILE; 0 leaves it as it is.
  // `last` is done in it just before its exec.
  Process(
      const std::vector<std::string>& words, const fs::path& log, int keep = -1, rlim_t files = 0,
      const std::function<void()>& last = [] {});
  Process(Process&&) = default;
  Process& operator=(Process&&) = default;
  ~Process();

  [[nodiscard]] pid_t pid() const { return pid_; }
  void Signal(int number) const;
  // Its exit status, 128+N after signal N; -1 when it does not end. Only once.
  int Wait();

 private:
  pid_t pid_ = -1;
  UniqueFd pidfd_;
};

enum class Mode { kDeployed, kStandalone };

class BrokerProcess {
 public:
  // Removes the temporary directory; the broker and its cgroups must be gone, or it ends them.
  ~BrokerProcess();
  BrokerProcess();
  BrokerProcess(const BrokerProcess&) = delete;

  // Replaces the users file. What it has at first: alice, bob and carl, each with a ceiling for everything.
  void WriteUsers(const std::string& text);
  // `last` as in Process. Deployed: waits until front ends can come.
  void Start(
      Mode mode = Mode::kDeployed, rlim_t files = 0, const std::function<void()>& last = [] {});
  // A connection to the rendezvous socket as `uid`. Not open when the file's mode refused it.
  UniqueFd Visit(uid_t uid = kFrontEndUid);
  // Standalone: this side's end of the socketpair.
  UniqueFd TakeFd() { return std::move(front_end_); }

  Process& broker() { return broker_; }
  // Its child that clears away what a killed one leaves; 0 when there is none.
  pid_t FindGuardian() const;
  [[nodiscard]] std::string Log() const { return ReadFile(directory_ / "log"); }

  [[nodiscard]] const fs::path& directory() const { return directory_; }
  // The rendezvous, in a directory that only the front end's group may enter.
  [[nodiscard]] fs::path socket() const { return directory_ / "run" / "socket"; }
  [[nodiscard]] const fs::path& cgroup() const { return cgroup_; }
  [[nodiscard]] fs::path work(const std::string& user) const { return directory_ / "work" / user; }

 private:
  fs::path directory_, cgroup_;
  Process broker_;
  UniqueFd front_end_;
};

// Facts from /proc and cgroupfs.
std::vector<pid_t> ChildrenOf(pid_t pid);
std::vector<pid_t> ProcessesIn(const fs::path& cgroup);  // of that one cgroup
std::set<std::string> CgroupsBelow(const fs::path& cgroup);
size_t DescriptorsOf(pid_t pid);
bool IsAlive(pid_t pid);  // and not a zombie
// The words of a line of /proc/PID/status after its name.
std::vector<std::string> StatusLine(pid_t pid, const std::string& name);
// VmRSS in KiB.
size_t ResidentKib(pid_t pid);

}  // namespace jobworker
