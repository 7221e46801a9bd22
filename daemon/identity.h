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

namespace jobworker {

// Certificates that have passed every check, each with the time in which none of these would turn out otherwise. A call
// would spend more on them than on all else. Any thread may use it.
class KnownCertificates {
 public:
  static constexpr size_t kMost = 256, kMaxPemBytes = 16 * 1024;
  struct Known {
    std::string user;
    time_t from = 0, until = 0;  // [from, until)
  };
  [[nodiscard]] std::optional<std::string> Find(std::string_view pem, time_t now) const;
  void Keep(std::string_view pem, Known known);
  [[nodiscard]] size_t size() const;

 private:
  mutable std::mutex mutex_;  // guards the rest
  std::map<std::string, Known, std::less<>> known_;
};

// The certificate authorities in ca.pem, and which certificates of theirs are known. Any thread may use it; copies
// share what they know.
class TrustAnchors {
 public:
  // The error says what is wrong with the PEM text.
  static tl::expected<TrustAnchors, std::string> Parse(std::string_view pem);
  [[nodiscard]] X509_STORE* store() const { return store_.get(); }
  [[nodiscard]] KnownCertificates& known() const { return *known_; }

 private:
  explicit TrustAnchors(std::shared_ptr<X509_STORE> store) : store_(std::move(store)) {}
  std::shared_ptr<X509_STORE> store_;
  std::shared_ptr<KnownCertificates> known_ = std::make_shared<KnownCertificates>();
};

// The user that `leaf_pem` names, or why it names none. The certificate must have exactly one CN, the one that the TLS
// library reported (`common_names`), of the form of a user's name; must not be a CA's; must be for client
// authentication; must be issued by one of the anchors itself; and must be valid at `now`. To be asked on every call: a
// resumed TLS session proves only that the certificate was good once. SubjectAltNames are not looked at.
tl::expected<std::string, std::string> IdentifyUser(std::string_view leaf_pem,
                                                    const std::vector<std::string_view>& common_names,
                                                    const TrustAnchors& anchors, time_t now);

// When it ends; 0 when it cannot be read.
time_t CertificateEnd(std::string_view leaf_pem);

}  // namespace jobworker
