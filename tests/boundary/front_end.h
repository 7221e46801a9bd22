// A front end that keeps no rule: it sends raw bytes, with descriptors if told so, and understands what comes back.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/broker_protocol.h"
#include "tests/boundary/broker_process.h"

namespace jobworker {

struct Received {
  Reply reply;
  std::vector<UniqueFd> descriptors;
};

class FrontEnd {
 public:
  // Standalone: with an end of the socketpair.
  explicit FrontEnd(UniqueFd socket) : socket_(std::move(socket)) {}
  // Deployed: meets the broker; not open when it refuses.
  explicit FrontEnd(BrokerProcess& broker) : FrontEnd(Meet(broker.Visit())) {}
  // What the broker hands over at `visitor`. Not open when it closes without handing over anything.
  static UniqueFd Meet(UniqueFd visitor);

  [[nodiscard]] bool IsOpen() const { return socket_.IsOpen(); }
  [[nodiscard]] int fd() const { return socket_.Get(); }
  void Close() { socket_.Reset(); }

  // Returns 0 or the errno; EAGAIN when the broker does not take it now.
  int SendRaw(std::string_view bytes, const std::vector<int>& descriptors = {}) const;
  // Waits for room when the broker is slower.
  template <class Message>
  void Send(const Message& message) const {
    SendWaiting(Encode(message));
  }

  // Says Hello and takes in the jobs that the broker holds.
  Welcome Greet();
  // The keys in the replay of the last Greet, and what came with them.
  [[nodiscard]] const std::vector<JobKey>& held() const { return held_; }
  [[nodiscard]] const std::vector<JobKey>& starting() const { return starting_; }
  std::vector<UniqueFd>& descriptors(const JobKey& key) { return descriptors_[key]; }

  // The next reply of that type (for that job); others are kept for later calls. Fails the test and returns an empty
  // one when the connection closes or nothing comes.
  template <class Message>
  Message Await() {
    const auto wanted = [](const Reply& reply) { return std::holds_alternative<Message>(reply); };
    return std::get<Message>(Take(wanted, Message{}).reply);
  }
  template <class Message>
  Message Await(const JobKey& key, std::vector<UniqueFd>* descriptors = nullptr) {
    const auto wanted = [&key](const Reply& reply) {
      const auto* message = std::get_if<Message>(&reply);
      return message != nullptr && message->key == key;
    };
    Message fallback;
    fallback.key = key;
    Received got = Take(wanted, fallback);
    if (descriptors != nullptr) *descriptors = std::move(got.descriptors);
    return std::get<Message>(got.reply);
  }
  // The Started or the Failed of that job.
  void AwaitOutcome(const JobKey& key);
  // The reply of that type for that job, if one has been read.
  template <class Message>
  std::optional<Message> TakeIf(const JobKey& key) {
    for (auto at = pending_.begin(); at != pending_.end(); ++at) {
      const auto* message = std::get_if<Message>(&at->reply);
      if (message == nullptr || message->key != key) continue;
      std::optional<Message> found = *message;
      pending_.erase(at);
      return found;
    }
    return std::nullopt;
  }
  // The next reply, read now; nothing when the connection closes.
  std::optional<Reply> Next() {
    std::optional<Received> received = ReceiveOne();
    return received ? std::optional(std::move(received->reply)) : std::nullopt;
  }
  // Reads until the broker closes the connection; false when it does not.
  bool AwaitClose();
  // How many replies wait unread in this program.
  [[nodiscard]] size_t pending() const { return pending_.size(); }

 private:
  void SendWaiting(const std::string& bytes) const;
  Received Take(const std::function<bool(const Reply&)>& wanted, Reply fallback);
  // Nothing when the connection closed or nothing came.
  std::optional<Received> ReceiveOne();

  UniqueFd socket_;
  std::deque<Received> pending_;
  std::vector<JobKey> held_, starting_;
  std::map<JobKey, std::vector<UniqueFd>> descriptors_;
};

// All that can be read until the other end closes; waits for that.
std::string ReadAll(int fd);

}  // namespace jobworker
