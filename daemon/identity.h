// From a verified client certificate to a user's name: one ladder that every call climbs, and that fails closed.
#pragma once
#include <openssl/ossl_typ.h>

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

namespace jobworker {

// The certificate authorities in ca.pem. Immutable; any thread may use it.
class TrustAnchors {
 public:
  // The error says what is wrong with the PEM text.
  static tl::expected<TrustAnchors, std::string> Parse(std::string_view pem);
  [[nodiscard]] X509_STORE* store() const { return store_.get(); }

 private:
  explicit TrustAnchors(std::shared_ptr<X509_STORE> store) : store_(std::move(store)) {}
  std::shared_ptr<X509_STORE> store_;
};

// The user that `leaf_pem` names, or why it names none. The certificate must have exactly one CN, the one that the TLS
// library reported (`common_names`), of the form of a user's name; must not be a CA's; must be for client
// authentication; must be issued by one of the anchors itself; and must be valid at `now`. All of it is checked again
// on every call: a resumed TLS session proves only that the certificate was good once. SubjectAltNames are not looked
// at.
tl::expected<std::string, std::string> IdentifyUser(std::string_view leaf_pem,
                                                    const std::vector<std::string_view>& common_names,
                                                    const TrustAnchors& anchors, time_t now);

// When it ends; 0 when it cannot be read.
time_t CertificateEnd(std::string_view leaf_pem);

}  // namespace jobworker
