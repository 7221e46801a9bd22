// The real `jobworker` program against a small Worker server in this process, over mutual TLS with certificates made
// here.
#pragma once
#include <fcntl.h>
#include <fmt/format.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <jobworker.grpc.pb.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <thread>

#include "common/unique_fd.h"
#include "tests/unit/new_key.h"

namespace jobworker::testing {

namespace fs = std::filesystem;
using std::string;

template <auto free_function>
struct Free {
  void operator()(auto* object) const { free_function(object); }
};
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;

// A certificate with its key; self-signed without an issuer.
struct Pair {
  explicit Pair(const char* name, const Pair* issuer = nullptr, const char* host = nullptr, long seconds = 3600)
      : key(NewKey()), certificate(X509_new()) {
    X509* const x = certificate.get();
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -7200);
    X509_gmtime_adj(X509_getm_notAfter(x), seconds);
    X509_set_pubkey(x, key.get());
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, reinterpret_cast<const uint8_t*>(name), -1,
                               -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(issuer != nullptr ? issuer->certificate.get() : x));
    if (issuer == nullptr) Extend(NID_basic_constraints, "critical,CA:TRUE");
    if (host != nullptr) Extend(NID_subject_alt_name, host);
    X509_sign(x, issuer != nullptr ? issuer->key.get() : key.get(), EVP_sha256());
  }
  void Extend(int what, const char* value) const {
    X509_EXTENSION* const extension = X509V3_EXT_nconf_nid(nullptr, nullptr, what, value);
    X509_add_ext(certificate.get(), extension, -1);
    X509_EXTENSION_free(extension);
  }
  [[nodiscard]] string Text(bool private_key) const {
    const std::unique_ptr<BIO, Free<BIO_free>> bio(BIO_new(BIO_s_mem()));
    if (private_key) {
      PEM_write_bio_PrivateKey(bio.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    } else {
      PEM_write_bio_X509(bio.get(), certificate.get());
    }
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio.get(), &data);
    return {data, static_cast<size_t>(size)};
  }
  Key key;
  Certificate certificate;
};

// Answers by the command's words: what a request becomes is in the test's hands.
class FakeWorker : public Worker::Service {
 public:
  using Writer = grpc::ServerWriter<WorkerResponse>;
  using InputStream = grpc::ServerReaderWriter<InputResult, InputChunk>;
  template <class Request, class Response>
  using Answer = std::function<grpc::Status(const Request&, Response&)>;
  std::function<grpc::Status(const WorkerStartRequest&, Writer&, grpc::ServerContext&)> start;
  Answer<WorkerPIDRequest, Writer> query;
  Answer<WorkerPIDRequest, WorkerResponse> stop, signal, remove;
  Answer<WorkerPIDRequest, JobStatus> status;
  Answer<JobListRequest, JobListResponse> list;
  Answer<JobWaitRequest, grpc::ServerWriter<JobStatus>> wait;
  std::function<grpc::Status(InputStream&)> input;
  WhoAmIResponse identity;
  ServerVersionResponse version;

 private:
  using Context = grpc::ServerContext;
  using Status = grpc::Status;
  Status JobStart(Context* context, const WorkerStartRequest* request, Writer* writer) override {
    return start(*request, *writer, *context);
  }
  Status JobQuery(Context*, const WorkerPIDRequest* request, Writer* writer) override {
    return query(*request, *writer);
  }
  Status JobStop(Context*, const WorkerPIDRequest* request, WorkerResponse* response) override {
    return stop(*request, *response);
  }
  Status JobSignal(Context*, const WorkerPIDRequest* request, WorkerResponse* response) override {
    return signal(*request, *response);
  }
  Status JobRemove(Context*, const WorkerPIDRequest* request, WorkerResponse* response) override {
    return remove(*request, *response);
  }
  Status JobStatusOf(Context*, const WorkerPIDRequest* request, ::JobStatus* response) override {
    return status(*request, *response);
  }
  Status JobList(Context*, const JobListRequest* request, JobListResponse* response) override {
    return list(*request, *response);
  }
  Status JobWait(Context*, const JobWaitRequest* request, grpc::ServerWriter<::JobStatus>* writer) override {
    return wait(*request, *writer);
  }
  Status JobInput(Context*, InputStream* stream) override { return input(*stream); }
  Status WhoAmI(Context*, const WhoAmIRequest*, WhoAmIResponse* response) override {
    *response = identity;
    return Status::OK;
  }
  Status ServerVersion(Context*, const ServerVersionRequest*, ServerVersionResponse* response) override {
    *response = version;
    return Status::OK;
  }
};

inline WorkerResponse Output(const string& bytes, Stream stream = STDOUT) {
  WorkerResponse response;
  response.set_pid("3");
  response.set_log(bytes);
  response.set_stream(stream);
  return response;
}

inline WorkerResponse Exited(int code) {
  WorkerResponse response = Output("");
  response.mutable_end()->set_cause(JobEnd::EXITED);
  response.mutable_end()->set_exit_code(code);
  return response;
}

struct Outcome {
  int status = -1;  // as a shell has it: 128+N for a signal
  string out;
  string err;
};

inline string ReadAll(int fd) {
  string text;
  char buffer[65536];
  for (ssize_t size; (size = read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(size));
  return text;
}

// Exactly so many bytes, or fewer at the end of the file.
inline string ReadBytes(int fd, size_t size) {
  string text(size, '\0');
  size_t filled = 0;
  for (ssize_t got; filled < size && (got = read(fd, text.data() + filled, size - filled)) > 0;) {
    filled += static_cast<size_t>(got);
  }
  text.resize(filled);
  return text;
}

// With its newline.
inline string ReadLine(int fd) {
  string line;
  for (string byte; (byte = ReadBytes(fd, 1)) != "";) {
    line += byte;
    if (byte == "\n") break;
  }
  return line;
}

// A running jobworker and the read ends of its output.
struct Process {
  pid_t pid;
  UniqueFd in;  // the write end
  UniqueFd out;
  UniqueFd err;

  Outcome Wait() {
    Outcome outcome;
    auto err_text = std::async(std::launch::async, [this] { return ReadAll(err.Get()); });
    outcome.out = ReadAll(out.Get());
    outcome.err = err_text.get();
    int status = 0;
    waitpid(pid, &status, 0);
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return outcome;
  }
};

class CliProgram : public ::testing::Test {
 protected:
  CliProgram() {
    setenv("GRPC_VERBOSITY", "NONE", 0);
    string pattern = ::testing::TempDir() + "cli-program-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    WriteIdentity("alice", Pair("alice", &ca_));
    Serve();
  }
  ~CliProgram() override {
    server_->Shutdown(std::chrono::system_clock::now());
    fs::remove_all(directory_);
  }
  void WriteFile(const string& name, const string& text, fs::perms mode) {
    std::ofstream(directory_ / name) << text;
    fs::permissions(directory_ / name, mode);
  }
  void WriteIdentity(const string& name, const Pair& pair) {
    WriteFile("ca.pem", ca_.Text(false), fs::perms(0644));
    WriteFile(name + ".pem", pair.Text(false), fs::perms(0644));
    WriteFile(name + "-key.pem", pair.Text(true), fs::perms(0600));
  }
  void Serve(const Pair& pair, const Pair& clients) {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    grpc::SslServerCredentialsOptions options(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
    options.pem_root_certs = clients.Text(false);
    options.pem_key_cert_pairs.push_back({pair.Text(true), pair.Text(false)});
    grpc::ServerBuilder builder;
    // The same port again, for a server that comes back.
    builder.AddListeningPort(fmt::format("127.0.0.1:{}", port_), grpc::SslServerCredentials(options), &port_);
    builder.RegisterService(&worker_);
    server_ = builder.BuildAndStart();
  }
  void Serve() { Serve(Pair("worker", &ca_, "DNS:localhost,IP:127.0.0.1"), ca_); }
  // Ends every connection to the server as a network does that goes away: not a word of HTTP/2.
  void CutConnections() const {
    for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
      const int fd = std::stoi(entry.path().filename());
      sockaddr_in address{};
      socklen_t size = sizeof address;
      sockaddr_in peer{};
      socklen_t peer_size = sizeof peer;
      if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0 || ntohs(address.sin_port) != port_)
        continue;
      if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_size) == 0) shutdown(fd, SHUT_RDWR);
    }
  }
  Process Launch(std::vector<string> words, const string& host = "127.0.0.1") {
    std::vector<string> argv = {JOBWORKER_PROGRAM, "-h", fmt::format("{}:{}", host, port_), "--certs", directory_};
    argv.insert(argv.end(), words.begin(), words.end());
    std::vector<char*> pointers;
    for (string& word : argv) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    int in[2];
    int out[2];
    int err[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) abort();
    const pid_t pid = fork();
    if (pid == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      dup2(err[1], STDERR_FILENO);
      execv(pointers[0], pointers.data());
      _exit(99);
    }
    for (const int fd : {in[0], out[1], err[1]}) close(fd);
    return {pid, UniqueFd(in[1]), UniqueFd(out[0]), UniqueFd(err[0])};
  }
  Outcome Run(std::vector<string> words, const string& host = "127.0.0.1") {
    return Launch(std::move(words), host).Wait();
  }
  void Refuse(const grpc::Status& status) {
    worker_.start = [status](const auto&, auto&, auto&) { return status; };
  }

  fs::path directory_;
  Pair ca_{"ca"};
  FakeWorker worker_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

inline void ExpectPart(const string& text, const string& part) { EXPECT_NE(text.find(part), string::npos) << text; }

}  // namespace jobworker::testing
