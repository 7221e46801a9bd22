// Why a connection failed. gRPC tells little ("Socket closed" for a refused certificate), so after a failure, and only
// then, one more TLS handshake is made here, by hand, and its exact reason put into words.
#pragma once
#include <optional>
#include <string>

#include "cmd/cli_config.h"
#include "cmd/cli_identity.h"

namespace jobworker {

// A sentence that says what is wrong and what to do; nothing when this connection works. Takes some seconds at worst.
std::optional<std::string> DiagnoseConnection(const Server& server, const Identity& identity);

}  // namespace jobworker
