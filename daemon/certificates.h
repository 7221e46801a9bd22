// What the server shows to its clients, and by what it knows them.
#pragma once
#include <string>
#include <tl/expected.hpp>

#include "daemon/identity.h"
#include "daemon/tls.h"

namespace jobworker {

struct CertificateSet {
  TlsFiles files;
  std::string revoked;  // crl.pem; empty when there is none
  TrustAnchors anchors;
  // A sentence when something in it is not valid now, with what to do; empty when all is. Such a set keeps clients out
  // that it should let in, and never the other way round.
  std::string problem;
};

// DIR/ca.pem, worker.pem, worker-key.pem and, when it is there, crl.pem: each can be read, and fits the others and a
// server that listens on `host`. The error is the first thing that is wrong, with what to do.
tl::expected<CertificateSet, std::string> LoadCertificates(const std::string& directory, const std::string& host);

}  // namespace jobworker
