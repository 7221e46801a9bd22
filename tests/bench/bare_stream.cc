// A peer of the bench: a gRPC server that sends bytes from memory and does nothing else. It takes the same certificates
// and speaks the same method as jobserver, so that the bench's client is the client of both; a JobStart's command is
// how many bytes are to be sent.
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <jobworker.pb.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "tests/bench/figures.h"

namespace jobworker::bench {
namespace {

constexpr size_t kMessage = 64 * 1024;

std::string FileText(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

grpc::ByteBuffer Serialised(const WorkerResponse& response) {
  grpc::Slice slice(response.SerializeAsString());
  return {&slice, 1};
}

// One call at a time.
class BareServer {
 public:
  explicit BareServer(const std::string& certs) {
    grpc::SslServerCredentialsOptions options(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
    options.pem_root_certs = FileText(certs + "/ca.pem");
    options.pem_key_cert_pairs.push_back({FileText(certs + "/worker-key.pem"), FileText(certs + "/worker.pem")});
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::SslServerCredentials(options), &port_);
    builder.RegisterAsyncGenericService(&service_);
    queue_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    Require(server_ != nullptr, "listen");
    WorkerResponse bytes, end;
    bytes.set_log(std::string(kMessage, '\0'));
    end.mutable_end();
    bytes_ = Serialised(bytes);
    end_ = Serialised(end);
  }

  [[noreturn]] void Run() {
    (void)printf("%d\n", port_);
    (void)fflush(stdout);
    for (;;) Serve();
  }

 private:
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    return queue_->Next(&tag, &ok) && ok;
  }

  void Serve() {
    grpc::GenericServerContext context;
    grpc::GenericServerAsyncReaderWriter stream(&context);
    grpc::ByteBuffer message;
    service_.RequestCall(&context, &stream, queue_.get(), queue_.get(), this);
    if (!Next()) return;
    stream.Read(&message, this);
    if (!Next()) return;
    grpc::Slice slice;
    WorkerStartRequest request;
    Require(
        message.DumpToSingleSlice(&slice).ok() && request.ParseFromArray(slice.begin(), static_cast<int>(slice.size())),
        "request");
    for (uint64_t left = std::stoull(request.command()) / kMessage; left > 0; --left) {
      stream.Write(bytes_, this);
      if (!Next()) return;
    }
    stream.WriteAndFinish(end_, grpc::WriteOptions(), grpc::Status::OK, this);
    (void)Next();
  }

  int port_ = 0;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  grpc::ByteBuffer bytes_, end_;
};

}  // namespace
}  // namespace jobworker::bench

int main(int argc, char** argv) {
  if (argc != 2) return (void)fputs("bare_stream CERTS   prints its port and serves\n", stderr), 1;
  jobworker::bench::BareServer(argv[1]).Run();
}
