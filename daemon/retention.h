// How much output is kept, and what happens at the bound.
#pragma once
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include "daemon/journal.h"

namespace jobworker {

// What happens to a running job whose output, or whose user's, has reached its bound.
enum class OutputPolicy : uint8_t {
  kDropOldest,  // the oldest bytes go; readers are told of the gap
  kBlock,       // it waits, until followers have read what is there; what none of them needs any more goes
  kKill,        // it is ended
};
// "drop-oldest", "block", "kill"
std::string_view PolicyName(OutputPolicy policy);

// Bytes of memory, with what marks and bookkeeping take.
struct OutputLimits {
  uint64_t per_job = uint64_t{64} << 20;
  uint64_t per_user = uint64_t{192} << 20;
  // A ceiling of last resort: at it the biggest journal gives way, whatever the policy says.
  uint64_t in_all = uint64_t{512} << 20;
  OutputPolicy policy = OutputPolicy::kDropOldest;
  std::chrono::milliseconds comes_back_within = Journal::kComesBackWithin;  // of kBlock: see Journal
};

// Keeps all journals within the limits. On the loop's thread.
class Retention {
 public:
  explicit Retention(const OutputLimits& limits) : limits_(limits) {}
  [[nodiscard]] const OutputLimits& limits() const { return limits_; }
  // Takes effect as journals grow.
  void SetLimits(const OutputLimits& limits) { limits_ = limits; }

  // The journal stays the caller's, until Remove.
  void Add(const std::string& user, Journal& journal);
  void Remove(const std::string& user, Journal& journal);
  // Its job has ended: where the policy is not to drop, it gives way before running ones.
  void Ended(const std::string& user, Journal& journal);

  enum class Verdict { kGoOn, kWait, kKill };
  // After a journal has grown, and again when one that had to wait may go on.
  Verdict Check(const std::string& user, Journal& journal);

  [[nodiscard]] uint64_t HeldBy(const std::string& user) const;
  // At the user's bound, where all of the user's jobs make room for each other.
  [[nodiscard]] bool IsFull(const std::string& user) const { return HeldBy(user) >= limits_.per_user; }
  [[nodiscard]] uint64_t held() const { return held_; }

 private:
  struct Owner {
    uint64_t held = 0;
    std::set<Journal*> running, ended;
  };
  void Account(Owner& owner, Journal& journal);
  void Shrink(Owner& owner, Journal& journal, uint64_t held);
  void ShrinkUser(Owner& owner);
  void GiveUpEnded(Owner& owner);
  [[nodiscard]] uint64_t Margin(const Owner& owner) const;
  void ShrinkAll();
  void GiveUpRead(Owner& owner, Journal& journal);

  OutputLimits limits_;
  uint64_t held_ = 0;
  std::map<std::string, Owner> owners_;
  std::map<const Journal*, uint64_t> accounted_;
};

}  // namespace jobworker
