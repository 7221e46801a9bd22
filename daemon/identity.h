// From a verified client certificate to a user's name: one ladder that every call climbs, and that fails closed.
#pragma once
#include <openssl/ossl_typ.h>

#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

#include "daemon/validity.h"

namespace jobworker {

// Whose certificate has passed every check, and the time in which none of these would turn out otherwise.
struct Identity {
  std::string user;
  Validity validity;
};

// Certificates that have passed every check: a call would spend more on them than on all else. Any thread may use it.
class KnownCertificates {
 public:
  static constexpr size_t kMost = 256, kMaxPemBytes = 16 * 1024;
  [[nodiscard]] std::optional<Identity> Find(std::string_view pem, time_t now) const;
  void Keep(std::string_view pem, Identity identity);
  [[nodiscard]] size_t size() const;

 private:
  mutable std::mutex mutex_;  // guards the rest
  std::map<std::string, Identity, std::less<>> known_;
};

// The certificate authorities in ca.pem, what they have revoked, and which certificates of theirs are known. Once it is
// complete any thread may use it; copies share what they know.
class TrustAnchors {
 public:
  // The errors say what is wrong with the PEM text.
  static tl::expected<TrustAnchors, std::string> Parse(std::string_view pem);
  // The lists of revoked certificates in crl.pem: one or more, each by one of these authorities and about all that it
  // has issued. From then on nobody of an authority that has a list is let in while that list is not good.
  tl::expected<void, std::string> AddRevoked(std::string_view pem);

  [[nodiscard]] X509_STORE* store() const { return store_.get(); }
  [[nodiscard]] KnownCertificates& known() const { return *known_; }
  // In which every list of the issuer of `leaf` is good; none when it has no list.
  [[nodiscard]] std::optional<Validity> ListsFor(X509* leaf) const;
  // A sentence when one of the lists is not good at `now`, empty when all are.
  [[nodiscard]] std::string ListProblem(time_t now) const;

 private:
  TrustAnchors() = default;
  std::vector<std::shared_ptr<X509>> authorities_;
  std::vector<std::shared_ptr<X509_CRL>> lists_;
  std::shared_ptr<X509_STORE> store_;
  std::shared_ptr<KnownCertificates> known_ = std::make_shared<KnownCertificates>();
};

// IdentifyUser's error when it is not for the client to mend.
inline constexpr std::string_view kListNotGood =
    "the server's list of revoked certificates (crl.pem) has run out, or is not valid yet; its operator has to make a "
    "new one: jobworker-certs DIR --crl --install";

// Whom `leaf_pem` names, good at `now`, or why it names nobody. The certificate must have exactly one CN, the one that
// the TLS library reported (`common_names`), of the form of a user's name; must not be a CA's; must be for client
// authentication; must be issued by one of the anchors itself; must be valid at `now`; and must not be revoked. To be
// asked on every call: a resumed TLS session proves only that the certificate was good once. SubjectAltNames are not
// looked at.
tl::expected<Identity, std::string> IdentifyUser(std::string_view leaf_pem,
                                                 const std::vector<std::string_view>& common_names,
                                                 const TrustAnchors& anchors, time_t now);

// When it ends; 0 when it cannot be read.
time_t CertificateEnd(std::string_view leaf_pem);

}  // namespace jobworker
