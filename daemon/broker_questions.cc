#include "daemon/broker_questions.h"

#include <algorithm>
#include <utility>

#include "daemon/metrics.h"

namespace jobworker {

void BrokerQuestions::Usage(BrokerClient& broker, const JobKey& key, UsageCallback done) {
  questions_.push_back({key, std::move(done), nullptr});
  broker.Usage(key);
}

void BrokerQuestions::Signal(BrokerClient& broker, const JobKey& key, uint8_t number, SignalCallback done) {
  questions_.push_back({key, nullptr, std::move(done)});
  broker.SignalJob(key, number);
  broker.Usage(key);
}

void BrokerQuestions::WhoIs(BrokerClient& broker, const std::string& user, UserCallback done) {
  users_.push_back({std::move(done)});
  broker.AskWho(user);
}

void BrokerQuestions::OnFailed(const Failed& failed) {
  if (failed.request != RequestType::kSignal) return;
  const auto asked = std::find_if(questions_.begin(), questions_.end(), [&](const Question& each) {
    return each.key == failed.key && each.signal && each.error == 0;
  });
  if (asked != questions_.end()) asked->error = static_cast<int>(failed.error);
}

void BrokerQuestions::OnUsage(const UsageIs& usage) {
  if (questions_.empty()) return;
  const Question question = std::move(questions_.front());
  questions_.pop_front();
  metrics::BrokerAnswered(Clock::now() - question.asked);
  if (question.signal) return question.signal(&question.error);
  question.usage(&usage.counters);
}

void BrokerQuestions::OnUser(const UserIs& user) {
  if (users_.empty()) return;
  const UserQuestion question = std::move(users_.front());
  users_.pop_front();
  metrics::BrokerAnswered(Clock::now() - question.asked);
  question.done(&user);
}

void BrokerQuestions::Lose() {
  for (const UserQuestion& question : std::exchange(users_, {})) question.done(nullptr);
  for (const Question& question : std::exchange(questions_, {})) {
    if (question.signal) question.signal(nullptr);
    if (question.usage) question.usage(nullptr);
  }
}

}  // namespace jobworker
