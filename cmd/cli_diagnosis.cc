#include "cmd/cli_diagnosis.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <csignal>
#include <cstring>
#include <memory>

#include "common/unique_fd.h"

namespace jobworker {
namespace {

template <auto free_function>
struct Free {
  void operator()(auto* object) const { free_function(object); }
};
using SslContext = std::unique_ptr<SSL_CTX, Free<SSL_CTX_free>>;
using SslSession = std::unique_ptr<SSL, Free<SSL_free>>;
// The two TLS libraries differ in its size.
using TlsError = decltype(ERR_get_error());
using Addresses = std::unique_ptr<addrinfo, Free<freeaddrinfo>>;

constexpr timeval kPatience{3, 0};

// A socket on which every operation takes at most kPatience; otherwise errno says why not.
UniqueFd ConnectTo(const addrinfo& address) {
  UniqueFd fd(socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, 0));
  for (const int option : {SO_SNDTIMEO, SO_RCVTIMEO}) {
    setsockopt(fd.Get(), SOL_SOCKET, option, &kPatience, sizeof kPatience);
  }
  if (connect(fd.Get(), address.ai_addr, address.ai_addrlen) != 0) fd.Reset();
  return fd;
}

std::string ConnectFailure(const Server& server, int error) {
  if (error == ECONNREFUSED) {
    return fmt::format("nothing listens on {}: is jobserver running there, and is the port right?", server.Name());
  }
  return fmt::format("{} cannot be reached: {}; is the host right, and does a firewall let the port through?",
                     server.Name(), error == EINPROGRESS || error == EAGAIN ? "no answer" : strerror(error));
}

// Connects to the first address that answers; on failure puts the reason into `failure`.
UniqueFd Reach(const Server& server, std::string& failure) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int unknown = getaddrinfo(server.host.c_str(), std::to_string(server.port).c_str(), &hints, &list);
  if (unknown != 0) {
    failure = fmt::format("the host {} is not known: {}; is its name spelt right?", server.host, gai_strerror(unknown));
    return UniqueFd();
  }
  const Addresses addresses(list);
  for (const addrinfo* address = list; address != nullptr; address = address->ai_next) {
    UniqueFd fd = ConnectTo(*address);
    if (fd.IsOpen()) return fd;
    failure = ConnectFailure(server, errno);
  }
  return UniqueFd();
}

template <class Object, auto read, auto free_function>
std::unique_ptr<Object, Free<free_function>> FromPem(const std::string& pem) {
  const std::unique_ptr<BIO, Free<BIO_free>> bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  return std::unique_ptr<Object, Free<free_function>>(read(bio.get(), nullptr, nullptr, nullptr));
}

SslContext MakeContext(const Identity& identity) {
  SslContext context(SSL_CTX_new(TLS_client_method()));
  const auto ca = FromPem<X509, PEM_read_bio_X509, X509_free>(identity.files.authorities);
  const auto certificate = FromPem<X509, PEM_read_bio_X509, X509_free>(identity.files.certificate);
  const auto key = FromPem<EVP_PKEY, PEM_read_bio_PrivateKey, EVP_PKEY_free>(identity.files.key);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  if (ca != nullptr) X509_STORE_add_cert(SSL_CTX_get_cert_store(context.get()), ca.get());
  if (certificate != nullptr) SSL_CTX_use_certificate(context.get(), certificate.get());
  if (key != nullptr) SSL_CTX_use_PrivateKey(context.get(), key.get());
  return context;
}

SslSession MakeSession(SSL_CTX* context, const Server& server, int fd) {
  constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  SslSession session(SSL_new(context));
  SSL_set_alpn_protos(session.get(), kHttp2, sizeof kHttp2);
  if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(session.get()), server.host.c_str()) != 1) {
    SSL_set1_host(session.get(), server.host.c_str());
#ifdef OPENSSL_IS_BORINGSSL
    SSL_set_tlsext_host_name(session.get(), server.host.c_str());
#else
    std::string name = server.host;
    SSL_ctrl(session.get(), SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, name.data());  // copies it
#endif
  }
  SSL_set_fd(session.get(), fd);
  return session;
}

std::string BadServerCertificate(const Server& server, const Identity& identity, long verdict) {
  if (verdict == X509_V_ERR_HOSTNAME_MISMATCH || verdict == X509_V_ERR_IP_ADDRESS_MISMATCH) {
    return fmt::format(
        "the certificate of the server at {} is not for the name {}; use a name that it has (-h), or have "
        "the server's certificate made with this one",
        server.Name(), server.host);
  }
  if (verdict == X509_V_ERR_CERT_HAS_EXPIRED || verdict == X509_V_ERR_CERT_NOT_YET_VALID) {
    return fmt::format("the certificate of the server at {} {}; the server needs a new one, or a clock is wrong",
                       server.Name(), verdict == X509_V_ERR_CERT_HAS_EXPIRED ? "has expired" : "is not valid yet");
  }
  return fmt::format(
      "the server at {} is not one that {} vouches for ({}); is this the right server, and are these its "
      "certificates (--certs)?",
      server.Name(), identity.AuthorityFile(), X509_verify_cert_error_string(verdict));
}

std::string RefusedCertificate(const Server& server, const Identity& identity, std::string_view why) {
  return fmt::format(
      "the server at {} does not accept the certificate {}: {}; ask for one from the server's own CA, or "
      "name another (-u, --certs)",
      server.Name(), identity.CertificateFile(), why);
}

// What the server's alert about our certificate says; nothing when it is about something else.
const char* AlertAboutCertificate(int reason) {
  switch (reason) {
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA: return "it comes from a CA that the server does not know";
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED: return "the server says that it has expired";
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED: return "it has been revoked";
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR: return "the server says that it is not a good client certificate";
    default: return nullptr;
  }
}

std::string TlsFailure(const Server& server, const Identity& identity, TlsError error) {
  const char* const about_us = AlertAboutCertificate(ERR_GET_REASON(error));
  if (about_us != nullptr) return RefusedCertificate(server, identity, about_us);
  const char* const reason = error == 0 ? "it closed the connection" : ERR_reason_error_string(error);
  return fmt::format("{} answers, but TLS 1.3 with it fails ({}); is a jobserver listening there?", server.Name(),
                     reason == nullptr ? "unknown reason" : reason);
}

bool IsEndOfConnection(TlsError error) {
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING  // OpenSSL 3; BoringSSL gives no error then
  if (ERR_GET_REASON(error) == SSL_R_UNEXPECTED_EOF_WHILE_READING) return true;
#endif
  return error == 0 || ERR_GET_LIB(error) == ERR_LIB_SYS;
}

// In TLS 1.3 the server judges our certificate after our side of the handshake is complete, so its verdict is the
// first thing to be read; an HTTP/2 server that is content sends its SETTINGS instead.
std::optional<std::string> ServersVerdict(SSL* session, const Server& server, const Identity& identity) {
  constexpr std::string_view kHello("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
  SSL_write(session, kHello.data(), static_cast<int>(kHello.size()));
  char byte;
  if (SSL_read(session, &byte, 1) == 1) return std::nullopt;
  const TlsError error = ERR_get_error();
  // gRPC's servers send no alert.
  if (IsEndOfConnection(error)) {
    return RefusedCertificate(server, identity,
                              "it closed the connection on seeing it, as for one that has expired or is another CA's");
  }
  return TlsFailure(server, identity, error);
}

}  // namespace

std::optional<std::string> DiagnoseConnection(const Server& server, const Identity& identity) {
  (void)std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes to sockets without MSG_NOSIGNAL
  std::string failure;
  const UniqueFd fd = Reach(server, failure);
  if (!fd.IsOpen()) return failure;
  const SslContext context = MakeContext(identity);
  const SslSession session = MakeSession(context.get(), server, fd.Get());
  ERR_clear_error();
  if (SSL_connect(session.get()) == 1) return ServersVerdict(session.get(), server, identity);
  const long verdict = SSL_get_verify_result(session.get());
  // BoringSSL's while it has seen no certificate is X509_V_ERR_INVALID_CALL.
  const bool judged = verdict != X509_V_OK && verdict != X509_V_ERR_INVALID_CALL;
  if (judged) return BadServerCertificate(server, identity, verdict);
  return TlsFailure(server, identity, ERR_get_error());
}

}  // namespace jobworker
