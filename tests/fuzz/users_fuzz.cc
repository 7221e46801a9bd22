// The users list: whatever is accepted gives every user a uid, a gid and a directory that a job may have.
#include <cstdlib>
#include <set>
#include <stdexcept>

#include "broker/users.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  jobworker::Users users;
  try {
    users = jobworker::ParseUsers({reinterpret_cast<const char*>(data), size});
  } catch (const std::runtime_error&) {
    return 0;
  }
  std::set<uint64_t> uids;
  for (const auto& [name, user] : users) {
    const bool sound = jobworker::IsUserName(name) && user.uid >= 1000 && user.gid >= 1000 && user.uid < UINT32_MAX &&
                       user.gid < UINT32_MAX && user.directory.starts_with('/') && user.max_jobs > 0;
    if (!sound || !uids.insert(user.uid).second) std::abort();
  }
  return 0;
}
