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

// What comes with a job, by DescriptorIndex; the pipes' ends are O_NONBLOCK. All closed when this process had no room
// for them: the last of its descriptors are not for jobs, or nobody could ask for what they do.
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
  virtual void OnUser(const UserIs&) {}
  // The connection is gone, or the broker broke the protocol. Nothing comes after it.
  virtual void OnBrokerGone(const std::string& why) = 0;
};

class BrokerClient {
 public:
  // Comes to the broker's rendezvous socket. Once the returned descriptor is readable, TakeHandOver tells whether it
  // has given this side's end of a private pair. Neither waits.
  static tl::expected<UniqueFd, std::string> Visit(const std::string& path);
  static tl::expected<UniqueFd, std::string> TakeHandOver(int visitor);

  // Whether there is room for the descriptors of a few jobs.
  static bool HasRoom();

  // Owns the socket. `events` outlives the client.
  BrokerClient(EventLoop& loop, UniqueFd socket, BrokerEvents& events);

  // Says Hello and takes in every job that the broker holds; waits for that, but not for a broker that does not answer.
  // To be called once, first of all.
  tl::expected<Welcome, std::string> Greet();
  // From here on the loop reads the replies. False when the kernel has no room for it.
  [[nodiscard]] bool Attach();

  // Requests. They are sent in order; what the socket does not take now waits here.
  void StartJob(const Start& start) { Send(Encode(start)); }
  void SignalJob(const JobKey& key, uint8_t number) { Send(Encode(Signal{key, number})); }
  void KillJob(const JobKey& key) { Send(Encode(Kill{key})); }
  // The answer proves that the broker has handled all that was sent before. TakePong: it has come since the last time.
  void PingBroker() { Send(Encode(Ping{})); }
  // Looks for it in the socket too, in case this process was held up and has not come to read.
  bool TakePong();
  void Usage(const JobKey& key) { Send(Encode(UsageRequest{key})); }
  void AskWho(const std::string& user) { Send(Encode(WhoIs{user})); }
  void ForgetJob(const JobKey& key) { Send(Encode(Forget{key})); }
  // How many requests wait for the broker to read.
  [[nodiscard]] size_t backlog() const { return outgoing_.size(); }
  [[nodiscard]] bool connected() const { return socket_.IsOpen(); }
  // Ends the connection; OnBrokerGone follows.
  void Drop(const std::string& why);

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

  EventLoop& loop_;
  UniqueFd socket_;
  BrokerEvents& events_;
  std::deque<std::string> outgoing_;
  std::string buffer_;
  const int room_;  // descriptors from this number on are not for jobs
  bool attached_ = false, ponged_ = false;
};

}  // namespace jobworker
