// Where the broker narrows itself, once, before it reads its first byte from the front end; and the jobs' filter.
#pragma once

namespace jobworker {
// Both throw std::system_error.

// Closes every descriptor but 0, 1, 2 (opened on /dev/null if they were closed) and `keep`, if that is 3 or more.
void NarrowDescriptors(int keep);

// No core dump, no tracing, no_new_privs, four capabilities, and the seccomp filter that the jobs inherit. Call it
// single-threaded. There is no way back.
void NarrowPrivileges();

// Called by a job's process before exec, with no_new_privs set: no namespaces, whose root could mount and more.
// Async-signal-safe; false with errno.
bool RefuseNamespaces();
}  // namespace jobworker
