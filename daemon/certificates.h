// What the server shows to its clients and by what it knows them, as one set that can be exchanged while it serves.
#pragma once
#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
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
  bool list_kept = false;  // from the set before: there is no crl.pem any more

  [[nodiscard]] bool HasFilesOf(const CertificateSet& other) const {
    return files.authorities == other.files.authorities && files.certificate == other.files.certificate &&
           files.key == other.files.key && revoked == other.revoked;
  }
};

struct CertificateSource {
  std::string directory;
  std::string host;  // that the server listens on
};

// What is taken from a set that was loaded before.
struct KeptFiles {
  const CertificateSet* of = nullptr;
  bool key = false;   // always
  bool list = false;  // when there is none any more
};

// DIR/ca.pem, worker.pem, worker-key.pem and, when it is there, crl.pem: each can be read, fits the others and a server
// that listens on `host`, and is such as TLS takes. The error is the first thing that is wrong, with what to do.
tl::expected<CertificateSet, std::string> LoadCertificates(const CertificateSource& source, const KeptFiles& kept = {});

// The set in use. Any thread may ask for it.
class Certificates {
 public:
  explicit Certificates(CertificateSet set) : current_(std::make_shared<const CertificateSet>(std::move(set))) {}
  [[nodiscard]] std::shared_ptr<const CertificateSet> current() const;
  void Use(CertificateSet set);
  // For the one server that has ServerCredentials: the set, when it is another one than the last time.
  std::shared_ptr<const CertificateSet> TakeNew();

 private:
  mutable std::mutex mutex_;  // guards the rest
  std::shared_ptr<const CertificateSet> current_, taken_;
};

// Each new connection is made with the set that is in use by then. A client must show a certificate of one of its
// authorities, or there is no connection. `certificates` outlive the server.
std::shared_ptr<grpc::ServerCredentials> ServerCredentials(Certificates& certificates);

}  // namespace jobworker
