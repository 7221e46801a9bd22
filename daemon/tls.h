// What both ends of a connection share: certificate files, TLS 1.3 and nothing older, the published certificates.
#pragma once
#include <string>
#include <string_view>
#include <tl/expected.hpp>

#include "daemon/validity.h"

namespace jobworker {

// gRPC 1.51 has no setter for the lowest TLS version. Leaving it only a TLS 1.2 cipher that cannot be negotiated has
// the same effect. To be called before anything of gRPC is; it sets GRPC_SSL_CIPHER_SUITES.
void ForbidOldTls();

// A certificate, its key, and the authorities that the other side's certificate must come from; all PEM.
struct TlsFiles {
  std::string authorities;  // ca.pem
  std::string certificate;  // NAME.pem
  std::string key;          // NAME-key.pem
  Validity validity{};      // of the certificate
};

// Reads DIR/ca.pem, DIR/NAME.pem and DIR/NAME-key.pem, the last one not when there is a `key` to take instead. A key
// that others can read is refused, a published one excepted; so is one that is not the certificate's.
tl::expected<TlsFiles, std::string> LoadTlsFiles(const std::string& directory, const std::string& name,
                                                 const std::string* key = nullptr);

// Whether the TLS library uses a certificate and key of that kind and size as a server's.
bool TlsTakes(const TlsFiles& files);

// Whether the certificate was issued by the authority whose certificates, with their keys, come with the sources.
bool IsPublished(std::string_view certificate_pem);

// A server that shows a published certificate, or trusts their authority, may listen on loopback only: everybody has
// the users' keys. `host` is an address or "localhost". The error says how to make certificates of one's own.
tl::expected<void, std::string> CheckListenHost(const std::string& host, const TlsFiles& files);

}  // namespace jobworker
