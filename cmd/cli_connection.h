// The channel to the server, and what a failed call means.
#pragma once
#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cmd/cli_config.h"
#include "cmd/cli_identity.h"

namespace jobworker {

// gRPC's own settings, as environment variables: TLS 1.3 only, no chatter on stderr, the system's name resolver, no
// wake-ups while nothing happens. What
// the user has set stays, but for TLS. Before anything of gRPC, and before any thread.
void PrepareGrpc();

// A channel that shares nothing with one of before. It connects when it is asked for its state or used.
std::shared_ptr<grpc::Channel> Connect(const Server& server, const Identity& identity);

// Lets the kernel end every TCP connection of this process to `port` whose other end has been silent and out of reach
// for a minute, as after a suspend or behind a NAT that forgot it. Costs no wake-ups, unlike gRPC's own keepalive.
void NoticeDeadPeers(uint16_t port);

// A failed call in words fit for Say(): what failed, why, what to do. May take seconds, when the reason has to be found
// out by connecting once more.
std::string ExplainFailure(const grpc::Status& status, const Server& server, const Identity& identity);

// 125, or 126 or 127 when the status says that the command could not be executed or was not found.
int FailureExitStatus(const grpc::Status& status);

}  // namespace jobworker
