// How jobserver gives up what it does not need, for good, before it opens its port.
#pragma once
#include <sys/types.h>

#include <string>
#include <tl/expected.hpp>

namespace jobworker {

struct Account {
  uid_t uid;
  gid_t gid;
};

// "USER" or "UID:GID". Never uid or gid 0.
tl::expected<Account, std::string> ParseAccount(const std::string& text);

// An empty capability bounding set, no supplementary groups, `account` as the real, effective and saved ids, checked by
// reading them back.
tl::expected<void, std::string> BecomeAccount(const Account& account);

// No capabilities, no_new_privs, no core dumps, no tracing by others, as many descriptors as the hard limit allows, and
// a seccomp filter: no exec, no tracing, mounting, loading, or changing of identity, no SO_LINGER (closing a socket
// that has it could stall the broker). The C library's heap and threads go on as before.
tl::expected<void, std::string> Confine();

}  // namespace jobworker
