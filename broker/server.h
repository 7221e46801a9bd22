// The broker's loop: one thread, one front end at a time, one event at a time.
#pragma once
#include "broker/store.h"
#include "broker/users.h"

namespace jobworker {
// What the broker serves with. Either `peer` is the front end's socket (standalone); or `listener` is the rendezvous
// socket (deployed): whoever connects there with uid `peer_uid` is handed one end of a fresh pair, unless somebody
// still has one.
struct Service {
  Users& users;
  uint8_t missing;  // bits of Controller
  const Store& store;
  const uint64_t watchdog_us;  // 0: systemd does not wait for news
  StoredJobs jobs;             // of an earlier broker
  std::vector<int> ends;       // when one of these is readable, the service ends
  UniqueFd peer, listener;
  uid_t peer_uid;
};

// Returns when it ends, or when `peer` is gone. Jobs are left as they are. Throws std::system_error.
void Serve(Service service);
}  // namespace jobworker
