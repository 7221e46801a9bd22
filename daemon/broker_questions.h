// What the broker is asked and answers, in the order of the questions.
#pragma once
#include <chrono>
#include <deque>
#include <functional>

#include "daemon/broker_client.h"

namespace jobworker {

// On the loop's thread. Each callback is called once; with nothing when the broker is gone before it has answered.
class BrokerQuestions {
 public:
  using UsageCallback = std::function<void(const Counters*)>;
  using SignalCallback = std::function<void(const int* error)>;  // 0 or an errno
  using UserCallback = std::function<void(const UserIs*)>;

  void Usage(BrokerClient& broker, const JobKey& key, UsageCallback done);
  // The broker is silent when a signal was sent, so a question follows that it answers.
  void Signal(BrokerClient& broker, const JobKey& key, uint8_t number, SignalCallback done);

  void WhoIs(BrokerClient& broker, const std::string& user, UserCallback done);

  // A signal's failure. One that was sent for a stop may be told here too: it fails for the same reason.
  void OnFailed(const Failed& failed);
  void OnUsage(const UsageIs& usage);
  void OnUser(const UserIs& user);
  // There is nobody any more who would answer.
  void Lose();

 private:
  using Clock = std::chrono::steady_clock;
  struct Question {
    JobKey key;
    UsageCallback usage;
    SignalCallback signal;
    Clock::time_point asked = Clock::now();
    int error = 0;
  };
  struct UserQuestion {
    UserCallback done;
    Clock::time_point asked = Clock::now();
  };
  std::deque<Question> questions_;  // that UsageIs answers
  std::deque<UserQuestion> users_;  // and UserIs
};

}  // namespace jobworker
