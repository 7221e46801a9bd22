// start, stop and query: each returns the process's exit status.
#pragma once
#include "cmd/cli_config.h"
#include "cmd/cli_identity.h"
#include "cmd/cli_options.h"

namespace jobworker {

// Writes to stdout and stderr; SIGINT must not have a handler. Once in a process.
int RunVerb(const Options& options, const Settings& settings, const Identity& identity);

}  // namespace jobworker
