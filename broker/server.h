// The broker's loop: one thread, one front end at a time, one event at a time.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <string>

#include "broker/dispatch.h"
#include "broker/spawn.h"
#include "broker/users.h"
#include "common/broker_protocol.h"
#include "common/message_socket.h"
#include "common/result.h"
#include "common/unique_fd.h"

namespace jobworker {

class Server {
 public:
  // Either `peer` is the front end's socket (standalone), or `listener` is the rendezvous socket (deployed): whoever
  // connects there with uid `peer_uid` is handed one end of a fresh pair, unless somebody still has one.
  Server(Users users, uint8_t missing, UniqueFd peer, UniqueFd listener, uid_t peer_uid);

  // Until SIGTERM, SIGINT or SIGHUP, or, standalone, until the front end is gone. It leaves the jobs as they are.
  Status Run();

 private:
  struct Record {
    State state = State::kStarting;
    User* owner = nullptr;
    UniqueFd cgroup, pidfd, status, events;
    std::shared_ptr<const Output> output;
    Limits limits{};
    ChildFailure failure;  // with an error, the job never ran: it ends as Failed, not as Exited
    Exited exited;
  };
  using Jobs = std::map<JobKey, Record>;
  using JobEntry = Jobs::value_type;
  struct Outgoing {
    std::string message;
    std::shared_ptr<const Output> descriptors;
  };
  enum class Source : uint64_t { kSignals, kListener, kPeer, kStatus, kPidfd, kEvents };

  void Watch(int fd, uint32_t events, Source source, JobEntry* job = nullptr);
  void Unwatch(UniqueFd& fd);
  void HandleEvent(uint64_t token, uint32_t events);

  void AcceptPeer();
  void TakePeer(UniqueFd peer);
  void DropPeer(const char* reason);
  void ReadRequest();
  State StateOf(const Request& request);
  void Answer(const Hello& hello);
  void Answer(const Start& start);
  void Answer(const Signal& signal);
  void Answer(const Kill& kill);
  void Answer(const UsageRequest& usage);
  void Answer(const Forget& forget);

  void ExecDone(JobEntry& job);
  void MainProcessEnded(JobEntry& job);
  void CgroupEmpty(JobEntry& job);

  void Fail(const JobKey& key, RequestType request, Stage stage, int error);
  void Send(std::string message, std::shared_ptr<const Output> descriptors = nullptr);
  void Flush();

  Users users_;
  const uint8_t missing_;
  UniqueFd peer_, listener_, epoll_, signals_;
  const uid_t peer_uid_;
  const bool standalone_;
  bool running_ = true, greeted_ = false, refuses_rights_ = false, blocked_ = false;
  Jobs jobs_;
  std::deque<Outgoing> outgoing_;
  std::string buffer_;
};

}  // namespace jobworker
