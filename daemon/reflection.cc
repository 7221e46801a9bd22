#include "daemon/reflection.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include <set>
#include <string>

#include "daemon/authorizer.h"

namespace jobworker {

namespace {

using grpc::reflection::v1alpha::ServerReflectionRequest, grpc::reflection::v1alpha::ServerReflectionResponse;

// None of our files imports another one.
void SetFile(const google::protobuf::FileDescriptor* file, ServerReflectionResponse& response) {
  if (file == nullptr) {
    response.mutable_error_response()->set_error_code(grpc::StatusCode::NOT_FOUND);
    response.mutable_error_response()->set_error_message("this server has no such file or symbol");
    return;
  }
  google::protobuf::FileDescriptorProto proto;
  file->CopyTo(&proto);
  response.mutable_file_descriptor_response()->add_file_descriptor_proto(proto.SerializeAsString());
}

}  // namespace

ServerReflectionResponse Reflect(const ServerReflectionRequest& request) {
  ServerReflectionResponse response;
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  const auto* const pool = google::protobuf::DescriptorPool::generated_pool();
  switch (request.message_request_case()) {
    case ServerReflectionRequest::kFileByFilename:
      SetFile(pool->FindFileByName(request.file_by_filename()), response);
      break;
    case ServerReflectionRequest::kFileContainingSymbol:
      SetFile(pool->FindFileContainingSymbol(request.file_containing_symbol()), response);
      break;
    case ServerReflectionRequest::kListServices: {
      std::set<std::string_view> services;
      for (const MethodRow& row : kMethods) services.insert(row.service);
      for (const std::string_view service : services) {
        response.mutable_list_services_response()->add_service()->set_name(std::string(service));
      }
      break;
    }
    default:  // extensions: there are none
      response.mutable_error_response()->set_error_code(grpc::StatusCode::UNIMPLEMENTED);
      response.mutable_error_response()->set_error_message("this server's protocols have no extensions");
  }
  return response;
}

void Reflection::OnMessage(const std::optional<grpc::ByteBuffer>& message) {
  ServerReflectionRequest request;
  if (!message) return call_->Finish(grpc::Status::OK);
  if (FromBuffer(*message, request)) return call_->Write(ToBuffer(Reflect(request)));
  call_->Finish({grpc::StatusCode::INVALID_ARGUMENT, "the request is not a message of this method"});
}

}  // namespace jobworker
