// The broker's loop: one thread, one front end at a time, one event at a time.
#pragma once
#include <initializer_list>

#include "broker/store.h"
#include "broker/users.h"

namespace jobworker {
// Takes up the stored jobs. Returns when one of `ends` is readable (-1: none). Either `peer` is the front end's socket
// (standalone), and it also returns when that one is gone; or `listener` is the rendezvous socket (deployed): whoever
// connects there with uid `peer_uid` is handed one end of a fresh pair, unless somebody still has one. Jobs are left as
// they are. Throws std::system_error.
void Serve(Users& users, uint8_t missing, const Store& store, StoredJobs jobs, std::initializer_list<int> ends,
           UniqueFd peer, UniqueFd listener, uid_t peer_uid);
}  // namespace jobworker
