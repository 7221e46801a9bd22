// What every boundary test begins with and ends with: a broker with a canary job, and the proof that nothing happened
// to either.
#pragma once
#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "tests/boundary/front_end.h"

namespace jobworker {

class BoundaryTest : public testing::Test {
 protected:
  // A deployed broker that holds one job of bob's, the canary.
  void SetUp() override;
  // The broker answers, the canary lives, and beside it there is no descriptor, process or cgroup that was not there at
  // the start, and no limit is another. Ends the broker and finds nothing of it left.
  void TearDown() override;
  // The broker's hard limit of open files; 0 for the one that is.
  [[nodiscard]] virtual rlim_t Files() const { return 0; }

  // Drops the current connection, if any, and makes a new one, greeted.
  FrontEnd& Reconnect();
  FrontEnd& front() { return *front_; }

  static JobKey Alice(uint64_t id) { return {"alice", id}; }
  static JobKey Canary() { return {"bob", 1}; }
  static Start StartOf(const JobKey& key, std::vector<std::string> argv) { return {key, {}, std::move(argv), {}}; }
  static Start Shell(const JobKey& key, const std::string& script) { return StartOf(key, {"/bin/sh", "-c", script}); }

  struct Outcome {
    std::string out, err;
    Exited exited;
  };
  // Starts a job, reads its output to the end, waits for its end and forgets it.
  Outcome Run(const Start& start);
  // Sends a Start and waits for Started.
  std::vector<UniqueFd> Begin(const Start& start);
  // Waits for the job's end and forgets it.
  Exited Finish(const JobKey& key);
  // Everything sent before has been handled, and the connection is there.
  void Sync();
  // The broker does nothing in between.
  void Stop() const;
  void Continue() const;
  // The broker has nothing to do.
  void AwaitIdle() const;
  // Kills and forgets all jobs but the canary, on a new connection.
  void ForgetAll();

  [[nodiscard]] fs::path Leaf(const JobKey& key) const { return broker_.cgroup() / key.user / std::to_string(key.id); }
  [[nodiscard]] pid_t broker_pid() const { return broker_pid_; }
  [[nodiscard]] pid_t canary_pid() const { return canary_pid_; }

  BrokerProcess broker_;

 private:
  void CheckUnharmed();
  void CheckProcesses();
  std::map<std::string, std::string> LimitFiles() const;

  std::unique_ptr<FrontEnd> front_;
  std::vector<UniqueFd> canary_output_;
  pid_t broker_pid_ = 0, canary_pid_ = 0;
  size_t descriptors_ = 0;
  std::map<std::string, std::string> limits_;
};

}  // namespace jobworker
