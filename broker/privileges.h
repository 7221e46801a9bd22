// Where the broker narrows itself, once, before it reads its first byte from the front end.
#pragma once
namespace jobworker {
// These throw std::system_error.

// Closes every descriptor but 0, 1, 2 (opened on /dev/null if they were closed) and `count` from 3 or more on, which no
// job will inherit. Raises RLIMIT_NOFILE to its hard limit.
void NarrowDescriptors(unsigned first, unsigned count);

// No tracing, no_new_privs, three capabilities; for the jobs too no core dump, no protection from the OOM killer, and
// the seccomp filter. Call it single-threaded. There is no way back.
void NarrowPrivileges();
}  // namespace jobworker
