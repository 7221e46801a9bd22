// A job followed to its end, across lost connections and servers that were restarted.
#pragma once
#include <jobworker.pb.h>

#include <optional>

#include "cmd/cli_job.h"
#include "cmd/cli_session.h"

namespace jobworker {

struct FollowPlan {
  // Only one of the two. A start is repeated with the same request key until its first response has come, and goes on
  // as a query.
  std::optional<WorkerStartRequest> start;
  WorkerPIDRequest query;
  Format format = Format::kPlain;
};

// Shows a job's output and how it ended, and returns its exit status. Of a job that it starts, it sends the input that
// was asked for, and Ctrl-C is the job's.
int Follow(Session& session, FollowPlan plan);

// Starts a job, prints its id and leaves it.
int StartDetached(Session& session, const WorkerStartRequest& start, bool json);

// What to return when our own output cannot be written; says why unless its reader has gone.
int WriteFailure(int error);

// Writes what a verb answers, and returns the exit status.
int Print(std::string_view text);

}  // namespace jobworker
