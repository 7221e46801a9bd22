// The front end's end of the boundary: typed stubs for the broker's requests, and its replies as calls.
#pragma once
#include <array>
#include <deque>
#include <string>
#include <tl/expected.hpp>

#include "common/broker_protocol.h"
#include "common/unique_fd.h"
#include "daemon/event_loop.h"

namespace jobworker {

// What comes with a job, by DescriptorIndex; the pipes' ends are O_NONBLOCK. All closed when this process had no
// descriptors free.
using JobDescriptors = std::array<UniqueFd, kMaxDescriptors>;

// "exec", "cgroup", …: for logs and for StartFailure in the API.
std::string_view StageName(Stage stage);

// What the broker tells, on the loop's thread.
class BrokerEvents {
 public:
  virtual ~BrokerEvents() = default;
  virtual void OnJob(const Job& job, JobDescriptors descriptors) = 0;
  virtual void OnStarted(const Started& started, JobDescriptors descriptors) = 0;
  virtual void OnFailed(const Failed& failed) = 0;
  virtual void OnExited(const Exited& exited) = 0;
  virtual void OnUsage(const UsageIs& usage) = 0;
  // The connection is gone, or the broker broke the protocol. Nothing comes after it.
  virtual void OnBrokerGone(const std::string& why) = 0;
};

class BrokerClient {
 public:
  // Meets the broker at its rendezvous socket and returns this side's end of the private pair.
  static tl::expected<UniqueFd, std::string> Meet(const std::string& path);

  // Owns the socket. `events` outlives the client.
  BrokerClient(EventLoop& loop, UniqueFd socket, BrokerEvents& events);

  // Says Hello and takes in every job that the broker holds, blocking. To be called once, before the loop runs.
  tl::expected<Welcome, std::string> Greet();
  // From here on the loop reads the replies. False when the kernel has no room for it.
  [[nodiscard]] bool Attach();

  // Requests. They are sent in order; what the socket does not take now waits here.
  void StartJob(const Start& start) { Send(Encode(start)); }
  void SignalJob(const JobKey& key, uint8_t number) { Send(Encode(Signal{key, number})); }
  void KillJob(const JobKey& key) { Send(Encode(Kill{key})); }
  // The answer is counted, not told: it proves that the broker has handled all that was sent before.
  void PingBroker() { Send(Encode(Ping{})); }
  void Usage(const JobKey& key) { Send(Encode(UsageRequest{key})); }
  void ForgetJob(const JobKey& key) { Send(Encode(Forget{key})); }
  // How many requests wait for the broker to read.
  [[nodiscard]] size_t backlog() const { return outgoing_.size(); }

 private:
  struct Received {
    Reply reply;
    JobDescriptors descriptors;
  };
  // One reply; nothing when none is there yet.
  tl::expected<std::optional<Received>, std::string> Receive();
  void Dispatch(Received& received);
  void Ready();
  void Send(std::string message);
  void Flush();
  [[nodiscard]] uint32_t Interest() const;  // epoll events of the socket
  void Drop(const std::string& why);

  EventLoop& loop_;
  UniqueFd socket_;
  BrokerEvents& events_;
  std::deque<std::string> outgoing_;
  std::string buffer_;
  bool attached_ = false;
};

}  // namespace jobworker
