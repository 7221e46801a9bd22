// The real `jobworker` program against a small Worker server in this process, over mutual TLS with certificates made
// here.
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

namespace jobworker {
namespace {

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
      : key(EVP_EC_gen("P-256")), certificate(X509_new()) {
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
    X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, nullptr, what, value);
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
  std::function<grpc::Status(const WorkerStartRequest&, Writer&, grpc::ServerContext&)> start;
  std::function<grpc::Status(const string& id, Writer&)> query;
  std::function<grpc::Status(const string& id, WorkerResponse&)> stop;

 private:
  grpc::Status JobStart(grpc::ServerContext* context, const WorkerStartRequest* request, Writer* writer) override {
    return start(*request, *writer, *context);
  }
  grpc::Status JobQuery(grpc::ServerContext*, const WorkerPIDRequest* request, Writer* writer) override {
    return query(request->pid(), *writer);
  }
  grpc::Status JobStop(grpc::ServerContext*, const WorkerPIDRequest* request, WorkerResponse* response) override {
    return stop(request->pid(), *response);
  }
};

WorkerResponse Output(const string& bytes, Stream stream = STDOUT) {
  WorkerResponse response;
  response.set_pid("3");
  response.set_log(bytes);
  response.set_stream(stream);
  return response;
}

WorkerResponse Exited(int code) {
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

string ReadAll(int fd) {
  string text;
  char buffer[65536];
  for (ssize_t size; (size = read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(size));
  return text;
}

// A running jobworker and the read ends of its output.
struct Process {
  pid_t pid;
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

class CliProgram : public testing::Test {
 protected:
  CliProgram() {
    setenv("GRPC_VERBOSITY", "NONE", 0);
    string pattern = testing::TempDir() + "cli-program-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    WriteIdentity("alice", Pair("alice", &ca_));
    Serve(Pair("worker", &ca_, "DNS:localhost,IP:127.0.0.1"), ca_);
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
    builder.AddListeningPort("127.0.0.1:0", grpc::SslServerCredentials(options), &port_);
    builder.RegisterService(&worker_);
    server_ = builder.BuildAndStart();
  }
  Process Launch(std::vector<string> words, const string& host = "127.0.0.1") {
    std::vector<string> argv = {JOBWORKER_PROGRAM, "-h", fmt::format("{}:{}", host, port_), "--certs", directory_};
    argv.insert(argv.end(), words.begin(), words.end());
    std::vector<char*> pointers;
    for (string& word : argv) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    int out[2];
    int err[2];
    if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) abort();
    const pid_t pid = fork();
    if (pid == 0) {
      dup2(out[1], STDOUT_FILENO);
      dup2(err[1], STDERR_FILENO);
      execv(pointers[0], pointers.data());
      _exit(99);
    }
    close(out[1]);
    close(err[1]);
    return {pid, UniqueFd(out[0]), UniqueFd(err[0])};
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

void ExpectPart(const string& text, const string& part) { EXPECT_NE(text.find(part), string::npos) << text; }

TEST_F(CliProgram, StartShowsBothStreamsAndExitsAsTheJob) {
  WorkerStartRequest received;
  worker_.start = [&](const WorkerStartRequest& request, auto& writer, auto&) {
    received = request;
    for (const auto& response : {Output(""), Output(string("a\0b\xff\r\n", 6)), Output("bad\n", STDERR), Exited(7)}) {
      writer.Write(response);
    }
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"start", "--env", "A=b c", "ls", "-l", "a b"});
  EXPECT_EQ(outcome.status, 7);
  EXPECT_EQ(outcome.out, string("a\0b\xff\r\n", 6));
  EXPECT_EQ(outcome.err, "bad\n");
  EXPECT_EQ(received.command(), "ls");
  ASSERT_EQ(received.args_size(), 2);
  EXPECT_EQ(received.args(1), "a b");
  EXPECT_EQ(received.env(0), "A=b c");
}

TEST_F(CliProgram, OneWordIsSplitByTheServerUnlessItComesAfterDashes) {
  string command;
  worker_.start = [&](const WorkerStartRequest& request, auto& writer, auto&) {
    command = request.command();
    writer.Write(Exited(0));
    return grpc::Status::OK;
  };
  EXPECT_EQ(Run({"start", "ls -l"}).status, 0);
  EXPECT_EQ(command, "ls -l");
  EXPECT_EQ(Run({"start", "--", "my tool"}).status, 0);
  EXPECT_EQ(command, "'my tool'");
}

TEST_F(CliProgram, DetachPrintsOnlyTheId) {
  worker_.start = [](const auto&, auto& writer, grpc::ServerContext& context) {
    writer.Write(Output(""));
    writer.Write(Output("not to be seen"));
    while (!context.IsCancelled()) writer.Write(Output(""));
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"start", "-d", "--", "x"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "3\n");
  EXPECT_EQ(outcome.err, "");
}

TEST_F(CliProgram, StopConfirmsEscaped) {
  worker_.stop = [](const string& id, WorkerResponse& response) {
    response.set_pid(id);
    response.set_log("job 3 has been stopped \x1b[2J\n");
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"stop", "3"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "job 3 has been stopped \\x1b[2J\n");
}

TEST_F(CliProgram, QueryTellsHowTheJobEndedAndWhatIsMissing) {
  worker_.query = [](const string&, auto& writer) {
    WorkerResponse first = Output("");
    first.add_unenforced("io");
    writer.Write(first);
    WorkerResponse gap = Output("late\n");
    gap.set_dropped(12);
    writer.Write(gap);
    WorkerResponse last = Output("");
    last.mutable_end()->set_cause(JobEnd::SIGNALLED);
    last.mutable_end()->set_signal(SIGTERM);
    writer.Write(last);
    return grpc::Status::OK;
  };
  const Outcome outcome = Run({"query", "3"});
  EXPECT_EQ(outcome.status, 143);
  EXPECT_EQ(outcome.out, "late\n");
  for (const char* part : {"does not enforce these limits on job 3: io", "12 bytes", "signal 15 (SIGTERM)"}) {
    ExpectPart(outcome.err, part);
  }
}

TEST_F(CliProgram, RefusalsAreWordsAndTheRightStatus) {
  StartFailure failure;
  failure.set_stage("exec");
  failure.set_error(ENOENT);
  const struct {
    grpc::Status status;
    int exit;
    const char* part;
  } cases[] = {{{grpc::StatusCode::FAILED_PRECONDITION, "no such program: x", failure.SerializeAsString()},
                127,
                "no such program"},
               {{grpc::StatusCode::PERMISSION_DENIED, "carl may not"}, 125, "not allowed: carl may not"},
               {{grpc::StatusCode::NOT_FOUND, "no job 9"}, 125, "jobworker: no job 9"},
               {{grpc::StatusCode::UNAUTHENTICATED, "two CNs"}, 125, "alice.pem: two CNs"},
               {{grpc::StatusCode::UNAVAILABLE, "the broker is away"}, 125, "the broker is away; try again"},
               {{grpc::StatusCode::UNIMPLEMENTED, ""}, 125, "is it a jobserver"},
               {{grpc::StatusCode::INVALID_ARGUMENT, "bad\x1b]"}, 125, "bad\\x1b]"}};
  for (const auto& refused : cases) {
    Refuse(refused.status);
    const Outcome outcome = Run({"start", "x"});
    EXPECT_EQ(outcome.status, refused.exit);
    ExpectPart(outcome.err, refused.part);
    EXPECT_EQ(outcome.out, "");
  }
}

TEST_F(CliProgram, NothingListens) {
  server_->Shutdown();
  const Outcome outcome = Run({"query", "1"});
  EXPECT_EQ(outcome.status, 125);
  EXPECT_EQ(outcome.err,
            fmt::format("jobworker: nothing listens on 127.0.0.1:{}: is jobserver running there, and is the "
                        "port right?\n",
                        port_));
}

TEST_F(CliProgram, NotTheServersName) {
  Serve(Pair("worker", &ca_, "DNS:elsewhere.example"), ca_);
  const Outcome outcome = Run({"query", "1"}, "localhost");
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "is not for the name localhost");
}

TEST_F(CliProgram, ServerOfAnotherCa) {
  const Pair other("ca");
  Serve(Pair("worker", &other, "DNS:localhost,IP:127.0.0.1"), other);
  const Outcome outcome = Run({"query", "1"});
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "is not one that");
}

TEST_F(CliProgram, ServerRefusesOurCertificate) {
  const Pair other("other");
  WriteIdentity("alice", Pair("alice", &other));
  const Outcome outcome = Run({"query", "1"});
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "does not accept the certificate");
}

TEST_F(CliProgram, OwnCertificateExpiredOrKeyReadable) {
  WriteIdentity("bob", Pair("bob", &ca_, nullptr, -60));
  ExpectPart(Run({"-u", "bob", "query", "1"}).err, "expired");
  fs::permissions(directory_ / "alice-key.pem", fs::perms(0640));
  const Outcome outcome = Run({"query", "1"});
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "chmod");
}

TEST_F(CliProgram, TalksToSomethingThatIsNotTls) {
  const UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(listener.Get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener.Get(), 5), 0);
  getsockname(listener.Get(), reinterpret_cast<sockaddr*>(&address), &size);
  port_ = ntohs(address.sin_port);
  Process process = Launch({"query", "1"});
  std::thread peer([&] {
    for (int fd; (fd = accept(listener.Get(), nullptr, nullptr)) >= 0; close(fd)) {
      if (write(fd, "SSH-2.0-x\r\n", 11) != 11) break;
    }
  });
  const Outcome outcome = process.Wait();
  shutdown(listener.Get(), SHUT_RDWR);
  peer.join();
  EXPECT_EQ(outcome.status, 125);
  ExpectPart(outcome.err, "is a jobserver listening there");
}

// A job that has said `x` and goes on until the client has left.
void Endless(const auto&, FakeWorker::Writer& writer, grpc::ServerContext& context) {
  writer.Write(Output(""));
  while (!context.IsCancelled()) writer.Write(Output(string(65536, 'x')));
}

TEST_F(CliProgram, InterruptLeavesTheJobAndSaysHowToComeBack) {
  worker_.start = [](const auto& request, auto& writer, auto& context) {
    Endless(request, writer, context);
    return grpc::Status::OK;
  };
  const Process process = Launch({"start", "yes"});
  char byte;
  ASSERT_EQ(read(process.out.Get(), &byte, 1), 1);
  // Nobody reads on: the program is stuck in a write to a full pipe, and Ctrl-C works all the same.
  kill(process.pid, SIGINT);
  const string words = ReadAll(process.err.Get());
  int status = 0;
  waitpid(process.pid, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 130);
  ExpectPart(words, "left job 3 to itself");
  ExpectPart(words, fmt::format("jobworker -h 127.0.0.1:{} --certs {} query 3", port_, directory_.native()));
}

TEST_F(CliProgram, AReaderThatGoesEndsItWithoutAWord) {
  worker_.start = [](const auto& request, auto& writer, auto& context) {
    Endless(request, writer, context);
    return grpc::Status::OK;
  };
  Process process = Launch({"start", "yes"});
  char byte;
  ASSERT_EQ(read(process.out.Get(), &byte, 1), 1);
  process.out.Reset();
  EXPECT_EQ(ReadAll(process.err.Get()), "");
  int status = 0;
  waitpid(process.pid, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) ? WTERMSIG(status) == SIGPIPE : WEXITSTATUS(status) == 141);
}

TEST_F(CliProgram, ALostConnectionNamesTheJob) {
  worker_.query = [](const string&, auto& writer) {
    writer.Write(Output("x"));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Socket closed");
  };
  const Outcome outcome = Run({"query", "3"});
  EXPECT_EQ(outcome.status, 125);
  EXPECT_EQ(outcome.out, "x");
  ExpectPart(outcome.err, "was lost; to see what has become of job 3");
}

}  // namespace
}  // namespace jobworker
