#include "daemon/retention.h"

#include <algorithm>
#include <vector>

namespace jobworker {

namespace {

constexpr uint64_t kSlack = uint64_t{1} << 20;

// Some more goes than must: looking for the biggest, and punching holes, is not to be done for every byte.
uint64_t Below(uint64_t limit) { return limit - std::min(kSlack, limit / 16); }

Journal* Biggest(const std::set<Journal*>& journals) {
  const auto biggest = std::max_element(journals.begin(), journals.end(),
                                        [](const Journal* a, const Journal* b) { return a->held() < b->held(); });
  return biggest == journals.end() ? nullptr : *biggest;
}

}  // namespace

std::string_view PolicyName(OutputPolicy policy) {
  constexpr std::string_view kNames[] = {"drop-oldest", "block", "kill"};
  return kNames[static_cast<size_t>(policy)];
}

void Retention::Add(const std::string& user, Journal& journal) {
  Owner& owner = owners_[user];
  owner.running.insert(&journal);
  Account(owner, journal);
  ShrinkAll();
}

void Retention::Remove(const std::string& user, Journal& journal) {
  Owner& owner = owners_[user];
  owner.running.erase(&journal);
  owner.ended.erase(&journal);
  const auto accounted = accounted_.extract(&journal);
  if (accounted.empty()) return;
  owner.held -= accounted.mapped();
  held_ -= accounted.mapped();
}

void Retention::Ended(const std::string& user, Journal& journal) {
  Owner& owner = owners_[user];
  if (owner.running.erase(&journal) == 1) owner.ended.insert(&journal);
  Account(owner, journal);
}

void Retention::Account(Owner& owner, Journal& journal) {
  uint64_t& accounted = accounted_[&journal];
  const uint64_t grown = journal.held() - accounted;  // modulo 2^64, so downwards too
  accounted += grown;
  owner.held += grown;
  held_ += grown;
}

void Retention::Shrink(Owner& owner, Journal& journal, uint64_t held) {
  (void)journal.DropTo(held);
  Account(owner, journal);
}

void Retention::ShrinkAll() {
  while (held_ > limits_.in_all) {
    Owner* whose = nullptr;
    Journal* biggest = nullptr;
    for (auto& [user, owner] : owners_) {
      for (Journal* each : {Biggest(owner.running), Biggest(owner.ended)}) {
        if (each == nullptr || (biggest != nullptr && each->held() <= biggest->held())) continue;
        biggest = each;
        whose = &owner;
      }
    }
    const uint64_t excess = held_ - Below(limits_.in_all);
    const uint64_t before = held_;
    if (biggest == nullptr) return;
    Shrink(*whose, *biggest, biggest->held() - std::min(biggest->held(), excess));
    if (held_ >= before) return;  // all that is left is what journals cost when they are empty
  }
}

void Retention::ShrinkUser(Owner& owner) {
  while (owner.held > limits_.per_user) {
    Journal* biggest = Biggest(owner.ended);
    Journal* const running = Biggest(owner.running);
    if (biggest == nullptr || (running != nullptr && running->held() > biggest->held())) biggest = running;
    const uint64_t before = owner.held;
    if (biggest == nullptr) return;
    Shrink(owner, *biggest, biggest->held() - std::min(biggest->held(), owner.held - Below(limits_.per_user)));
    if (owner.held >= before) return;
  }
}

// Half of what each journal can keep, when all are full, stays behind a follower that does not say what has arrived.
uint64_t Retention::Margin(const Owner& owner) const {
  return std::min<uint64_t>(limits_.per_job, limits_.per_user / (owner.running.size() + 1)) / 2;
}

// Where the policy is not to drop, that of jobs that have ended, until the user is below the limit: at the limit itself
// a running job waits, or is killed.
void Retention::GiveUpEnded(Owner& owner) {
  if (owner.held < limits_.per_user) return;
  std::vector<Journal*> ended(owner.ended.begin(), owner.ended.end());
  std::sort(ended.begin(), ended.end(), [](const Journal* a, const Journal* b) { return a->held() > b->held(); });
  for (Journal* each : ended) {
    if (owner.held < limits_.per_user) return;
    const uint64_t held = each->held() - std::min(each->held(), owner.held - Below(limits_.per_user));
    (void)(limits_.policy == OutputPolicy::kBlock ? each->DropUnneededTo(held, Margin(owner)) : each->DropTo(held));
    Account(owner, *each);
  }
}

// What all followers of a job have read: first the job's own, then that of the user's others.
void Retention::GiveUpRead(Owner& owner, Journal& journal) {
  const uint64_t margin = Margin(owner);
  (void)journal.DropReadTo(Below(limits_.per_job), margin);
  Account(owner, journal);
  for (Journal* each : owner.running) {
    if (owner.held < limits_.per_user) return;
    const uint64_t excess = owner.held - Below(limits_.per_user);
    (void)each->DropReadTo(each->held() - std::min(each->held(), excess), margin);
    Account(owner, *each);
  }
}

Retention::Verdict Retention::Check(const std::string& user, Journal& journal) {
  Owner& owner = owners_[user];
  Account(owner, journal);
  const bool drop = limits_.policy == OutputPolicy::kDropOldest;
  if (drop && journal.held() > limits_.per_job) Shrink(owner, journal, Below(limits_.per_job));
  drop ? ShrinkUser(owner) : GiveUpEnded(owner);
  ShrinkAll();
  const auto has_room = [&] { return journal.held() < limits_.per_job && owner.held < limits_.per_user; };
  if (drop || has_room()) return Verdict::kGoOn;
  if (limits_.policy == OutputPolicy::kKill) return Verdict::kKill;
  GiveUpRead(owner, journal);
  return has_room() ? Verdict::kGoOn : Verdict::kWait;
}

uint64_t Retention::HeldBy(const std::string& user) const {
  const auto owner = owners_.find(user);
  return owner == owners_.end() ? 0 : owner->second.held;
}

}  // namespace jobworker
