// What --json prints: one object a line, described in jobworker(1). "v" is counted up when the meaning of what is there
// changes; new members and types come without that.
#pragma once
#include <jobworker.pb.h>

#include <string>
#include <string_view>

#include "cmd/cli_config.h"

namespace jobworker {

// Each is a whole line with its newline, in ASCII.
std::string JobJson(const JobStatus& status);
// A job of which nothing but the id is known.
std::string IdJson(std::string_view type, const std::string& id);
std::string OutputJson(const std::string& id, const WorkerResponse& response, std::string_view log);
std::string GapJson(const std::string& id, const WorkerResponse& response);
std::string EndJson(const std::string& id, const JobEnd& end);
std::string SignalJson(const std::string& id, int signal);
std::string IdentityJson(const WhoAmIResponse& identity);
std::string VersionJson(const ServerVersionResponse& server);
std::string CompletionJson(const std::string& shell, const std::string& script);
std::string SettingJson(const Origin& origin);

}  // namespace jobworker
