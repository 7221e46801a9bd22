// What the operator may change of the front end: a TOML file, re-read on SIGHUP.
#pragma once
#include <string>
#include <tl/expected.hpp>

#include "daemon/job_table.h"

namespace jobworker {

// Keys, all optional:
//   stop-grace = 5.0            seconds from the first signal of a stop to SIGKILL, 0 to 3600
//   [output]                    what is kept of the jobs' output, in bytes of memory
//   per-job = 67_108_864        64 KiB or more, as are the next two
//   per-user = 201_326_592
//   total = 536_870_912
//   policy = "drop-oldest"      or "block" or "kill"
//   [ended]                     how long a job that has ended is kept
//   per-user = 1000             this many, 1 to 1 000 000
//   days = 7.0                  and no longer than this; 0 is for ever
// Unknown keys are errors. Errors name the line and what is right. Starts from `limits`.
tl::expected<JobTableLimits, std::string> ParseConfig(std::string_view text, JobTableLimits limits = {});
// Refuses a file that others can write, or that is neither root's nor this process's user's.
tl::expected<JobTableLimits, std::string> LoadConfig(const std::string& path);

}  // namespace jobworker
