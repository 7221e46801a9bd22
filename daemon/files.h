// Small files that people configure things with.
#pragma once
#include <string>
#include <tl/expected.hpp>

namespace jobworker {

// kNobodyElseReads: not readable by group or others (private keys). kNobodyElseWrites: root's or this user's own, and
// not writable by group or others.
enum class FileRule { kAny, kNobodyElseReads, kNobodyElseWrites };

// The whole file, up to 1 MiB. The error names the file, what is wrong and the command that mends it.
tl::expected<std::string, std::string> ReadFile(const std::string& path, FileRule rule);

}  // namespace jobworker
