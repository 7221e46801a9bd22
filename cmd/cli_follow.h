// A job followed to its end, across lost connections and servers that were restarted.
#pragma once
#include <jobworker.pb.h>

#include <optional>

#include "cmd/cli_session.h"

namespace jobworker {

struct FollowPlan {
  // Only one of the two. A start is repeated with the same request key until its first response has come, and goes on
  // as a query.
  std::optional<WorkerStartRequest> start;
  WorkerPIDRequest query;
};

// Shows a job's output and how it ended, and returns its exit status.
int Follow(Session& session, FollowPlan plan);

// Starts a job, prints its id and leaves it.
int StartDetached(Session& session, const WorkerStartRequest& start);

// What to return when our own output cannot be written; says why unless its reader has gone.
int WriteFailure(int error);

}  // namespace jobworker
