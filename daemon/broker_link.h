// The front end's connection to its broker: made, watched over, and, where the broker runs by itself, made again.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "daemon/broker_client.h"
#include "daemon/event_loop.h"
#include "daemon/job_table.h"

namespace jobworker {

// On the loop's thread. Loop and table outlive it.
class BrokerLink {
 public:
  struct Hooks {
    // The first try has come to an end, well or not: the port may be opened.
    std::function<void()> tried;
    // There is no broker and there will be none (standalone).
    std::function<void(const std::string& why)> lost;
    // Between two looks (Watch): this process is well.
    std::function<void()> well;
  };
  BrokerLink(EventLoop& loop, JobTable& jobs, Hooks hooks) : loop_(loop), jobs_(jobs), hooks_(std::move(hooks)) {}

  // Standalone: by this end of the socketpair, once and for all. The error says why not.
  tl::expected<void, std::string> Use(UniqueFd socket);
  // Deployed: by the rendezvous socket, again and again, whenever there is no connection.
  void Meet(std::string path);
  // Asks the broker every `interval` whether its loop still goes round. One that has not answered by then is dropped.
  void Watch(std::chrono::microseconds interval);

 private:
  void Try();
  void Met();
  void Failed(const std::string& why);
  void Gone(const std::string& why);
  void Look();
  void LookForRoom();

  EventLoop& loop_;
  JobTable& jobs_;
  const Hooks hooks_;
  std::string path_;           // empty: standalone
  UniqueFd visitor_;           // waits for the broker to hand over an end of a pair
  EventLoop::Timer patience_;  // while there is a visitor
  EventLoop::Timer room_;      // while there are jobs whose descriptors found none
  std::unique_ptr<BrokerClient> client_;
  std::chrono::milliseconds pause_{0};
  std::chrono::microseconds interval_{0};
  std::string reason_;  // of the last failure, so that it is told once
  bool tried_ = false, asked_ = false;
};

}  // namespace jobworker
