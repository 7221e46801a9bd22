// Waits for gRPC's threads before the test program ends. OpenSSL keeps an error queue for each thread and forgets, at
// exit, where those of threads that still run are: LeakSanitizer would call them lost.
#include <grpc/grpc.h>
#include <gtest/gtest.h>

namespace jobworker {
namespace {

class GrpcThreads : public ::testing::Environment {
 public:
  void SetUp() override { grpc_init(); }
  void TearDown() override { grpc_shutdown_blocking(); }
};

[[maybe_unused]] const ::testing::Environment* const kGrpcThreads =
    ::testing::AddGlobalTestEnvironment(new GrpcThreads);

}  // namespace
}  // namespace jobworker
