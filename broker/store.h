// systemd's part in the broker's life: what it is told (sd_notify(3)), and its store of descriptors, which keeps the
// jobs when the broker dies. Without $NOTIFY_SOCKET all of this does nothing.
#pragma once
#include <map>
#include <span>

#include "common/broker_protocol.h"
#include "common/unique_fd.h"

namespace jobworker {
// A job in the store: a socket, named <user>.<id>, in which one message waits: this, with the job's pidfd, its status
// pipe and what the front end has of it, but for stdin, whose end the job is to see. When the job has ended it is
// another one, named <user>.<id>.end, without the first two.
struct Parcel {
  static constexpr auto kType = kProtocolVersion;
  Job job;
  Exited exited;  // ended_us is 0 until then
  void Fields(auto& io) { All(io, job, exited); }
  [[nodiscard]] bool Ended() const { return exited.ended_us != 0; }
  [[nodiscard]] std::string Name(bool ended) const;
};
struct StoredJob {
  Parcel parcel;
  std::vector<UniqueFd> descriptors;
};
using StoredJobs = std::map<JobKey, StoredJob>;

class Store {
 public:
  explicit Store(const std::string& notify_socket);
  [[nodiscard]] bool IsOpen() const { return socket_.IsOpen(); }
  // A failure is logged.
  void Tell(const std::string& state, std::span<const int> descriptors = {}) const;
  void Keep(const Parcel& parcel, std::span<const int> descriptors) const;
  void Drop(const std::string& name) const;
  // The jobs in the descriptors from 3 on, named in the order of $LISTEN_FDNAMES; they stay in the store. Anything else
  // there is closed and dropped.
  [[nodiscard]] StoredJobs TakeBack(uint64_t count, std::string names) const;

 private:
  UniqueFd socket_;
};
}  // namespace jobworker
