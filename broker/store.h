// systemd's part in the broker's life (sd_notify(3)), above all its store of descriptors, which keeps the jobs when the
// broker dies. Without $NOTIFY_SOCKET all of this does nothing.
#pragma once
#include <map>
#include <span>

#include "broker/spawn.h"

namespace jobworker {
struct Parcel {
  static constexpr auto kType = kProtocolVersion;
  Job job;
  Exited exited;  // ended_us is 0 until then
  void Fields(auto& io) { All(io, job, exited); }
  [[nodiscard]] bool Ended() const { return exited.ended_us != 0; }
  // Of what is stored: <user>.<id>, and with a + when the job has ended.
  [[nodiscard]] std::string Name(bool ended) const;
};
// It is stored as a socket in which one message waits: the parcel, with the descriptors that the front end has of the
// job but for stdin, whose end the job is to see, and then, until it has ended, its pidfd.
struct StoredJob : Parcel {
  Child child;
};
using StoredJobs = std::map<JobKey, StoredJob>;

class Store {
 public:
  Store(const std::string& notify_socket, uint64_t watchdog_us);
  [[nodiscard]] bool IsOpen() const { return socket_.IsOpen(); }
  [[nodiscard]] uint64_t watchdog_us() const { return watchdog_us_; }  // it wants news that often; 0: not at all
  // A failure is logged.
  void Tell(const std::string& state, std::span<const int> descriptors = {}) const;
  void Keep(const StoredJob& job) const;
  void Drop(const std::string& name) const { Tell("FDSTOREREMOVE=1\nFDNAME=" + name); }
  // The jobs in the descriptors from 3 on, named in the order of $LISTEN_FDNAMES; they stay in the store. Anything else
  // there, and what belongs to no user of the list, is closed and dropped.
  [[nodiscard]] StoredJobs TakeBack(uint64_t count, std::string names, const Users& users) const;

 private:
  UniqueFd socket_;
  const uint64_t watchdog_us_;
};
}  // namespace jobworker
