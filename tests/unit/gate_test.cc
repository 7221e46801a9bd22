// The gate behind a real TLS server with the credentials that jobserver uses.
#include "daemon/gate.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include "common/unique_fd.h"
#include "daemon/open_calls.h"
#include "daemon/rpc_server.h"
#include "jobworker.grpc.pb.h"
#include "tests/unit/certificates.h"

namespace jobworker {
namespace {

using testing::Authority;
using testing::Issue;
using testing::KeyedCertificate;
using testing::kServerExtensions;
using testing::kUserExtensions;
using testing::SetOf;

struct Answered {
  grpc::Status status;
  std::string user;
};

class GateTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { ForbidOldTls(); }

  void SetUp() override {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", ServerCredentials(certificates_), &port_);
    rpc_ = std::make_unique<RpcServer>(builder, 1, [this](const auto& call) { Answer(call); });
    rpc_->Start(builder.BuildAndStart());
    ASSERT_NE(port_, 0);
  }

  // Answers with the name of the user that was let in.
  virtual void Answer(const std::shared_ptr<Call>& call) {
    const auto caller = gate_.Admit(call->context(), FindMethod(Method::kJobStop));
    if (!caller) return call->Finish(caller.error());
    WorkerResponse response;
    response.set_log(caller->user);
    call->WriteAndFinish(ToBuffer(response));
  }

  std::shared_ptr<grpc::Channel> Connect(const std::string& key, const std::string& certificate) const {
    grpc::ChannelArguments own_connection;
    own_connection.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto credentials = grpc::SslCredentials({authority_.Pem(), key, certificate});
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port_), credentials, own_connection);
  }

  static Answered Ask(const std::shared_ptr<grpc::Channel>& channel,
                      const std::vector<std::pair<std::string, std::string>>& metadata = {}) {
    grpc::ClientContext context;
    for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
    WorkerResponse response;
    Answered answer;
    answer.status = Worker::NewStub(channel)->JobStop(&context, WorkerPIDRequest(), &response);
    answer.user = response.log();
    return answer;
  }
  Answered CallAs(const KeyedCertificate& client, const std::vector<std::pair<std::string, std::string>>& metadata = {},
                  const std::string& chain = "") const {
    return Ask(Connect(client.KeyPem(), client.Pem() + chain), metadata);
  }
  KeyedCertificate User(const std::string& name) const { return Issue({{name}}, authority_); }

  const KeyedCertificate authority_ = Authority("JobWorker CA");
  const KeyedCertificate worker_ = Issue({{"worker"}, kServerExtensions}, authority_);
  Certificates certificates_{SetOf(authority_, worker_)};
  Gate gate_{certificates_, Policy::BuiltIn()};
  int port_ = 0;
  std::unique_ptr<RpcServer> rpc_;
};

TEST_F(GateTest, LetsInByCommonName) {
  for (const char* name : {"alice", "bob"}) {
    const Answered answer = CallAs(User(name));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.user, name);
  }
}

TEST_F(GateTest, RefusesWithoutTheRight) {
  for (const char* name : {"carl", "dora"}) {
    const Answered answer = CallAs(User(name));
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
    EXPECT_NE(answer.status.error_message().find("allow_stop"), std::string::npos) << answer.status.error_message();
  }
}

// gRPC's own idea of who this is would be the SubjectAltName.
TEST_F(GateTest, LooksAtNoSubjectAltName) {
  testing::Extensions extensions = kUserExtensions;
  extensions.emplace_back("subjectAltName", "DNS:alice");
  EXPECT_EQ(CallAs(Issue({{"carl"}, extensions}, authority_)).status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(CallAs(Issue({{"bob"}, extensions}, authority_)).user, "bob");
  EXPECT_EQ(CallAs(Issue({{}, extensions}, authority_)).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(GateTest, RefusesMetadataThatClaimsARight) {
  EXPECT_EQ(CallAs(User("alice"), {{"allowed", "x"}, {"user", "bob"}}).user, "alice");
  EXPECT_EQ(gate_.forged(), 0U);
  uint64_t forged = 0;
  for (const char* user : {"alice", "carl"}) {
    for (const char* key : {"allow_start", "allow_stop", "allow_", "allow_x-bin"}) {
      const Answered answer = CallAs(User(user), {{key, "true"}});
      EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::PERMISSION_DENIED) << key;
      EXPECT_NE(answer.status.error_message().find("from the certificate alone"), std::string::npos);
      EXPECT_EQ(gate_.forged(), ++forged);
    }
  }
}

// The TLS library takes these; the ladder must not.
TEST_F(GateTest, RefusesWhatTlsLetsThrough) {
  const KeyedCertificate minting =
      Issue({{"alice"}, {{"basicConstraints", "critical,CA:TRUE"}, {"extendedKeyUsage", "clientAuth"}}}, authority_);
  const std::vector<KeyedCertificate> clients = {
      Issue({{"alice"}, {}}, authority_),
      Issue({{"carl", "alice"}}, authority_),
      Issue({{"alice", "carl"}}, authority_),
      Issue({{}}, authority_),
      Issue({{""}}, authority_),
      Issue({{std::string("alice\0.evil", 11)}}, authority_),
      Issue({{"alice\n"}}, authority_),
      Issue({{"Alice"}}, authority_),
      Issue({{"../.."}}, authority_),
      minting,
  };
  for (const KeyedCertificate& client : clients) {
    const Answered answer = CallAs(client);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << answer.status.error_message();
    EXPECT_EQ(answer.user, "");
  }
  EXPECT_FALSE(CallAs(authority_).status.ok());
  const Answered minted = CallAs(Issue({{"bob"}}, minting), {}, minting.Pem());
  EXPECT_EQ(minted.status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << minted.status.error_message();
}

TEST_F(GateTest, NoConnectionWithoutAGoodCertificate) {
  const std::vector<KeyedCertificate> clients = {
      Issue({{"alice"}}, Authority("Another CA")),
      Issue({{"alice"}}, Authority("JobWorker CA")),
      testing::SelfSigned({{"alice"}}),
      Issue({{"alice"}, kUserExtensions, -7200, -3600}, authority_),
      Issue({{"alice"}, kUserExtensions, 3600, 7200}, authority_),
      Issue({{"alice"}, kServerExtensions}, authority_),
  };
  for (const KeyedCertificate& client : clients) {
    EXPECT_EQ(CallAs(client).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  }
  EXPECT_EQ(Ask(Connect("", "")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GateTest, GoesByTheSetThatIsInUse) {
  const KeyedCertificate next_authority = Authority("Next CA");
  const KeyedCertificate next_worker = Issue({{"worker"}, kServerExtensions}, next_authority);
  const KeyedCertificate alice = User("alice"), next_alice = Issue({{"alice"}}, next_authority);
  const auto open = Connect(alice.KeyPem(), alice.Pem());
  ASSERT_EQ(Ask(open).user, "alice");

  certificates_.Use(SetOf(next_authority, next_worker));
  const Answered refused = Ask(open);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_NE(refused.status.error_message().find("local issuer"), std::string::npos) << refused.status.error_message();
  EXPECT_EQ(CallAs(alice).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ChannelArguments own_connection;
  own_connection.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto next = grpc::CreateCustomChannel(
      "127.0.0.1:" + std::to_string(port_),
      grpc::SslCredentials({next_authority.Pem(), next_alice.KeyPem(), next_alice.Pem()}), own_connection);
  EXPECT_EQ(Ask(next).user, "alice");

  certificates_.Use(SetOf(authority_, worker_));
  EXPECT_EQ(Ask(open).user, "alice") << "nothing was kept from the set between";
  EXPECT_EQ(CallAs(alice).user, "alice");
}

TEST_F(GateTest, RefusesWhoIsOnTheListOnTheNextCall) {
  const KeyedCertificate lost = User("alice");
  const auto open = Connect(lost.KeyPem(), lost.Pem());
  ASSERT_EQ(Ask(open).user, "alice");
  certificates_.Use(SetOf(authority_, worker_, testing::ListOf({{lost}}, authority_)));
  Answered answer = Ask(open);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(answer.status.error_message(),
            "no usable identity: the certificate has been revoked; use a certificate that this server's authority made "
            "for a user");
  EXPECT_EQ(CallAs(User("alice")).user, "alice");

  certificates_.Use(SetOf(authority_, worker_, testing::ListOf({{lost}, {}, -60, -1}, authority_)));
  answer = CallAs(User("alice"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(answer.status.error_message(), "no usable identity: " + std::string(kListNotGood));
}

TEST_F(GateTest, GoesByThePolicyThatIsInUse) {
  const KeyedCertificate alice = User("alice"), dora = User("dora");
  ASSERT_EQ(CallAs(alice).user, "alice");
  gate_.Use(*Policy::Parse("alice allow_query\ndora allow_stop\n"));
  EXPECT_EQ(CallAs(alice).status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(gate_.RightsOf("alice"), std::vector{kQueryRight});
  EXPECT_EQ(CallAs(dora).user, "dora");
  gate_.Use(Policy::BuiltIn());
  EXPECT_EQ(CallAs(alice).user, "alice");
  EXPECT_EQ(CallAs(dora).status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

// --- Calls that go on. ---

// Each call is answered with the name of its user, and goes on.
class OpenCallsTest : public GateTest {
 protected:
  void SetUp() override {
    GateTest::SetUp();
    open_calls_.Of(*rpc_);
    runs_ = std::thread([this] { loop_.Run(); });
  }
  void TearDown() override {
    rpc_->Shutdown(std::chrono::milliseconds(0));
    loop_.Stop();
    runs_.join();
  }
  void Answer(const std::shared_ptr<Call>& call) override {
    const auto caller = gate_.Admit(call->context(), FindMethod(call->method()));
    if (!caller) return call->Finish(caller.error());
    open_calls_.LetIn(*caller);
    WorkerResponse response;
    response.set_log(caller->user);
    call->Write(ToBuffer(response));
  }

  struct Following {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<WorkerResponse>> stream;
    grpc::Status End() const {
      WorkerResponse response;
      EXPECT_FALSE(stream->Read(&response));
      return stream->Finish();
    }
  };
  // A call that was let in; none when it was not.
  std::unique_ptr<Following> Follow(const KeyedCertificate& user) const {
    auto following = std::make_unique<Following>();
    // Only so that a test that fails ends.
    following->context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    following->stream = Worker::NewStub(Connect(user.KeyPem(), user.Pem()))->JobQuery(&following->context, {});
    WorkerResponse first;
    if (following->stream->Read(&first)) return following;
    const grpc::Status status = following->stream->Finish();
    EXPECT_TRUE(status.error_code() == grpc::StatusCode::UNAUTHENTICATED ||
                status.error_code() == grpc::StatusCode::UNAVAILABLE)
        << status.error_message();
    return nullptr;
  }
  // With what ends so many seconds from now, or later where that is over before the call is in.
  template <class Attempt>
  static std::unique_ptr<Following> InTime(time_t ends, Attempt attempt) {
    std::unique_ptr<Following> following;
    for (; following == nullptr && ends < 100; ends *= 2) following = attempt(ends);
    EXPECT_NE(following, nullptr);
    return following;
  }
  std::unique_ptr<Following> FollowUntil(time_t ends) const {
    return InTime(ends, [this](time_t in) { return Follow(Issue({{"alice"}, kUserExtensions, -60, in}, authority_)); });
  }
  static void ExpectEnd(const Following& following, const std::string& words) {
    const grpc::Status status = following.End();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_NE(status.error_message().find(words), std::string::npos) << status.error_message();
  }
  // The call of `user`, as the server has it.
  std::shared_ptr<Call> CallOf(const std::string& user) const {
    for (const auto& call : rpc_->Open()) {
      const auto caller = gate_.Recheck(call->context(), *FindMethod(Method::kWhoAmI));
      if (caller && caller->user == user) return call;
    }
    return nullptr;
  }

  EventLoop loop_;
  OpenCalls open_calls_{loop_, gate_};
  std::thread runs_;
};

TEST_F(OpenCallsTest, EndWithTheirCertificates) {
  const auto stays = Follow(User("bob"));
  ASSERT_NE(stays, nullptr);
  // The timer is set for the first of them, whichever is let in first.
  for (const auto& [first, second] : {std::pair{1, 2}, std::pair{2, 1}}) {
    const auto one = FollowUntil(first), other = FollowUntil(second);
    ExpectEnd(*one, "certificate has expired");
    ExpectEnd(*other, "certificate has expired");
  }
  const auto bobs = CallOf("bob");
  ASSERT_NE(bobs, nullptr);
  bobs->Finish({grpc::StatusCode::ABORTED, "by itself"});
  EXPECT_EQ(stays->End().error_message(), "by itself");
}

TEST_F(OpenCallsTest, EndWithTheListOfRevokedOnes) {
  const KeyedCertificate alice = User("alice");
  const auto following = InTime(1, [&](time_t ends) {
    certificates_.Use(SetOf(authority_, worker_, testing::ListOf({{}, {}, -60, ends}, authority_)));
    return Follow(alice);
  });
  ExpectEnd(*following, std::string(kListNotGood));
}

TEST_F(OpenCallsTest, EndWhenWhatDecidesHasChanged) {
  const KeyedCertificate lost = User("alice");
  const auto alices = Follow(lost), bobs = Follow(User("bob"));
  ASSERT_TRUE(alices != nullptr && bobs != nullptr);
  certificates_.Use(SetOf(authority_, worker_, testing::ListOf({{lost}}, authority_)));
  loop_.Post([this] { open_calls_.Recheck(); });
  ExpectEnd(*alices, "the certificate has been revoked");
  gate_.Use(*Policy::Parse("bob allow_stop\n"));
  loop_.Post([this] { open_calls_.Recheck(); });
  const grpc::Status status = bobs->End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_NE(status.error_message().find("allow_query"), std::string::npos) << status.error_message();
}

TEST_F(OpenCallsTest, AreAskedAgain) {
  const KeyedCertificate alice = User("alice");
  const auto following = Follow(alice);
  ASSERT_NE(following, nullptr);
  const auto call = CallOf("alice");
  ASSERT_NE(call, nullptr);
  const MethodRow& query = *FindMethod(Method::kJobQuery);
  auto caller = gate_.Recheck(call->context(), query);
  ASSERT_TRUE(caller);
  EXPECT_EQ(caller->validity.until, CertificateEnd(alice.Pem()));

  gate_.Use(*Policy::Parse("alice allow_stop\n"));
  EXPECT_TRUE(gate_.Recheck(call->context(), *FindMethod(Method::kJobStop)));
  EXPECT_TRUE(gate_.Recheck(call->context(), *FindMethod(Method::kWhoAmI))) << "for everybody";
  caller = gate_.Recheck(call->context(), query);
  ASSERT_FALSE(caller);
  EXPECT_EQ(caller.error().user, "alice");
  EXPECT_EQ(caller.error().reason, "not in the policy");
  EXPECT_EQ(caller.error().status.error_code(), grpc::StatusCode::PERMISSION_DENIED);

  certificates_.Use(SetOf(authority_, worker_, testing::ListOf({{alice}}, authority_)));
  caller = gate_.Recheck(call->context(), query);
  ASSERT_FALSE(caller);
  EXPECT_EQ(caller.error().user, "-");
  EXPECT_EQ(caller.error().reason, "the certificate has been revoked");
  EXPECT_EQ(caller.error().status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  call->Finish(grpc::Status::OK);
  EXPECT_TRUE(following->End().ok());
}

// The library's own client, since gRPC's would not offer what is to be refused.
class Versions : public GateTest {
 protected:
  using SharedSecret = unsigned (*)(SSL*, const char*, char*, unsigned, unsigned char*, unsigned);
  // The version that a handshake with only `version` on offer came to, or 0.
  int Handshake(uint16_t version, const char* ciphers, SharedSecret psk = nullptr) {
    const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
    const KeyedCertificate alice = User("alice");
#ifndef OPENSSL_IS_BORINGSSL  // which has no levels
    SSL_CTX_set_security_level(context.get(), 0);
#endif
    SSL_CTX_set_min_proto_version(context.get(), version);
    SSL_CTX_set_max_proto_version(context.get(), version);
    EXPECT_EQ(SSL_CTX_set_cipher_list(context.get(), ciphers), 1);
    SSL_CTX_use_certificate(context.get(), alice.certificate.get());
    SSL_CTX_use_PrivateKey(context.get(), alice.key.get());
    SSL_CTX_set_psk_client_callback(context.get(), psk);
    constexpr unsigned char kAlpn[] = {2, 'h', '2'};
    SSL_CTX_set_alpn_protos(context.get(), kAlpn, sizeof(kAlpn));
    const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context.get()), &SSL_free);
    const UniqueFd socket = ConnectSocket();
    SSL_set_fd(ssl.get(), socket.Get());
    return SSL_connect(ssl.get()) == 1 ? SSL_version(ssl.get()) : 0;
  }

 private:
  [[nodiscard]] UniqueFd ConnectSocket() const {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port_));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
};

TEST_F(Versions, OnlyTls13) {
  EXPECT_EQ(Handshake(TLS1_3_VERSION, "ALL"), TLS1_3_VERSION);
  EXPECT_EQ(Handshake(TLS1_2_VERSION, "ALL:COMPLEMENTOFALL"), 0);
  EXPECT_EQ(Handshake(TLS1_1_VERSION, "ALL:COMPLEMENTOFALL"), 0);
  EXPECT_EQ(Handshake(TLS1_VERSION, "ALL:COMPLEMENTOFALL"), 0);
}

// The one TLS 1.2 cipher that is left needs a secret that the server does not have.
TEST_F(Versions, NotEvenWithASharedSecret) {
  const auto psk = [](SSL*, const char*, char* identity, unsigned max_identity, unsigned char* key,
                      unsigned) -> unsigned {
    (void)snprintf(identity, max_identity, "alice");
    key[0] = 0;
    return 1;
  };
#ifdef OPENSSL_IS_BORINGSSL
  EXPECT_EQ(Handshake(TLS1_2_VERSION, "ECDHE-PSK-AES256-CBC-SHA", psk), 0);
#else
  EXPECT_EQ(Handshake(TLS1_2_VERSION, "PSK-AES256-GCM-SHA384", psk), 0);
#endif
}

}  // namespace
}  // namespace jobworker
