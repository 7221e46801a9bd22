// What jobworker does once its options and settings are known.
#pragma once
#include "cmd/cli_config.h"
#include "cmd/cli_options.h"
#include "cmd/cli_session.h"

namespace jobworker {

// Verbs that ask no server: config and completion. They return the exit status.
int RunLocalVerb(const Options& options, const Settings& settings);

// All others. Writes to stdout and stderr; once in a process. Ends it, because threads that send input or wait for a
// stop may still be at work.
[[noreturn]] void RunVerb(const Options& options, const Settings& settings, Identity identity, IdentityLoader loader);

// One each; they return the exit status.
int ListVerb(Session& session, const Options& options);
int StatusVerb(Session& session, const Options& options);
int WaitVerb(Session& session, const Options& options);
int StopVerb(Session& session, const Options& options);
int SignalVerb(Session& session, const Options& options);
int RemoveVerb(Session& session, const Options& options);
int WhoAmIVerb(Session& session, const Options& options);
int VersionVerb(Session& session, const Options& options);

}  // namespace jobworker
