// The root-owned list of the users whose jobs the broker runs: the only source of uids, directories and limits.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <variant>

#include "common/broker_protocol.h"
#include "common/unique_fd.h"

namespace jobworker {
// Where the value of each known KEY=VALUE goes: text, or a number from 1 (`max`: the largest). Assign takes out what it
// has assigned, so that nothing is there twice, and returns whether the word was one of these.
using Settings = std::map<std::string, std::variant<uint64_t*, std::string*>, std::less<>>;
bool Assign(std::string_view word, Settings& settings);

// One line of the list: NAME KEY=VALUE..., `#` starts a comment. uid= and gid= (from 1000) and dir= (absolute) are
// required. cpu= (thousandths of a CPU), memory= (bytes), pids=, read-bytes=, write-bytes=, read-ops=, write-ops= (a
// second) are ceilings for all of the user's jobs together; with `job-` before the key, the default of each job. They
// and jobs=, how many jobs may run or wait for Forget (one that waits is free), take `max`.
struct User {
  uint64_t uid = 0, gid = 0;
  std::string directory;
  uint64_t max_jobs = 4096;
  Limits ceiling{500, 134'217'728, 2048, kUnlimited, 1'048'576, kUnlimited, 120};
  Limits job{kUnlimited, kUnlimited, 128, kUnlimited, kUnlimited, kUnlimited, kUnlimited};

  // Set at start-up, beside the list.
  UniqueFd cgroup;                          // the user's directory
  Limits applied{};                         // the ceilings as the kernel took them
  dev_t disk = 0;                           // what io.max acts on
  uint8_t missing = 0;                      // bits of Controller
  uint64_t job_count = 0, ended_count = 0;  // all records, and those in kEnded
};
using Users = std::map<std::string, User>;

// What is wrong with a list is thrown as std::runtime_error and names the line; what fails, as std::system_error.
// Refuses a file that is not root's or that others can write. "": alice, bob and carl, for a try-out, with uids that no
// account range of Debian or systemd uses, under /var/lib/jobworker.
Users LoadUsers(const std::string& path);
Users ParseUsers(std::string_view text, const std::string& where = "");

// What was asked for, or the user's default where it was 0. Nothing when it is above the ceiling.
std::optional<Limits> JobLimits(const User& user, const Limits& asked);

// Makes the user's working directory if it is missing (0700, the user's; needs CAP_CHOWN) and refuses one that is not
// the user's own or that others can write. Returns the device that it lies on.
dev_t PrepareDirectory(const User& user);
}  // namespace jobworker
