// The broker's loop: one thread, one front end at a time, one event at a time.
#pragma once
#include "broker/users.h"
#include "common/unique_fd.h"

namespace jobworker {
// Returns when `guardian`, a pidfd, has ended. Either `peer` is the front end's socket (standalone), and it also
// returns when that one is gone; or `listener` is the rendezvous socket (deployed): whoever connects there with uid
// `peer_uid` is handed one end of a fresh pair, unless somebody still has one. Jobs are left as they are. Throws
// std::system_error.
void Serve(Users& users, uint8_t missing, const UniqueFd& guardian, UniqueFd peer, UniqueFd listener, uid_t peer_uid);
}  // namespace jobworker
