#include "daemon/identity.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <limits>

#include "common/broker_protocol.h"
#include "daemon/because.h"

namespace jobworker {

namespace {

template <class T, void (*destroy)(T*)>
struct Destroy {
  void operator()(T* object) const { destroy(object); }
};
using Certificate = std::unique_ptr<X509, Destroy<X509, X509_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Destroy<X509_STORE_CTX, X509_STORE_CTX_free>>;
struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;

// gRPC's own calls on this thread take what is left in the queue for errors of theirs.
struct ClearErrors {
  ~ClearErrors() { ERR_clear_error(); }
};

Bio Borrow(std::string_view text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

// The CN's own bytes: a NUL or another alphabet in it must not get lost on the way.
tl::expected<std::string, std::string> OnlyCommonName(X509* leaf) {
  const X509_NAME* subject = X509_get_subject_name(leaf);
  const int first = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (first < 0) return Because("the certificate has no common name");
  if (X509_NAME_get_index_by_NID(subject, NID_commonName, first) >= 0) {
    return Because("the certificate has more than one common name");
  }
  const ASN1_STRING* value = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, first));
  return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(value)),
                     static_cast<size_t>(ASN1_STRING_length(value)));
}

bool IsForClients(X509* leaf) {
  return (X509_get_extension_flags(leaf) & EXFLAG_XKUSAGE) != 0 &&
         (X509_get_extended_key_usage(leaf) & XKU_SSL_CLIENT) != 0;
}

// In which every certificate of the chain is valid.
Validity ValidityOf(const STACK_OF(X509) * chain) {
  Validity all{0, std::numeric_limits<time_t>::max()};
  for (size_t i = 0; i < static_cast<size_t>(sk_X509_num(chain)); ++i) {
    const X509* certificate = sk_X509_value(chain, static_cast<decltype(sk_X509_num(chain))>(i));
    all = all.With({ToTime(X509_get0_notBefore(certificate)), ToTime(X509_get0_notAfter(certificate))});
  }
  return all;
}

Validity ValidityOf(const X509_CRL* list) {
  return {ToTime(X509_CRL_get0_lastUpdate(list)), ToTime(X509_CRL_get0_nextUpdate(list))};
}

bool IsSignedBy(X509_CRL* list, X509* authority) {
  if (X509_NAME_cmp(X509_CRL_get_issuer(list), X509_get_subject_name(authority)) != 0) return false;
  if ((X509_get_key_usage(authority) & KU_CRL_SIGN) == 0) return false;
  const std::unique_ptr<EVP_PKEY, Destroy<EVP_PKEY, EVP_PKEY_free>> key(X509_get_pubkey(authority));
  return key && X509_CRL_verify(list, key.get()) == 1;
}

// After the last PEM text that could be read: nothing that begins like one is left.
bool AtEnd() { return ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE; }

// Issued by an anchor itself: no untrusted certificate is offered to build a chain with.
tl::expected<Validity, std::string> Verify(X509* leaf, const TrustAnchors& anchors, time_t now) {
  const StoreContext context(X509_STORE_CTX_new());
  if (!context || X509_STORE_CTX_init(context.get(), anchors.store(), leaf, nullptr) != 1) {
    return Because("the certificate cannot be checked now");
  }
  X509_STORE_CTX_set_time(context.get(), 0, now);
  X509_STORE_CTX_set_purpose(context.get(), X509_PURPOSE_SSL_CLIENT);
  const auto lists = anchors.ListsFor(leaf);
  if (lists) X509_STORE_CTX_set_flags(context.get(), X509_V_FLAG_CRL_CHECK);
  if (X509_verify_cert(context.get()) == 1) {
    const Validity chain = ValidityOf(X509_STORE_CTX_get0_chain(context.get()));
    return lists ? chain.With(*lists) : chain;
  }
  const int error = X509_STORE_CTX_get_error(context.get());
  if (error == X509_V_ERR_CERT_REVOKED) return Because("the certificate has been revoked");
  if (error == X509_V_ERR_CRL_HAS_EXPIRED || error == X509_V_ERR_CRL_NOT_YET_VALID) {
    return Because(std::string(kListNotGood));
  }
  return Because(std::string("the certificate is refused: ") + X509_verify_cert_error_string(error));
}

}  // namespace

std::optional<Identity> KnownCertificates::Find(std::string_view pem, time_t now) const {
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(pem);
  if (found == known_.end() || !found->second.validity.Has(now)) return std::nullopt;
  return found->second;
}

void KnownCertificates::Keep(std::string_view pem, Identity identity) {
  if (pem.size() > kMaxPemBytes) return;
  const std::lock_guard lock(mutex_);
  if (known_.size() >= kMost) known_.clear();
  known_.insert_or_assign(std::string(pem), std::move(identity));
}

size_t KnownCertificates::size() const {
  const std::lock_guard lock(mutex_);
  return known_.size();
}

tl::expected<TrustAnchors, std::string> TrustAnchors::Parse(std::string_view pem) {
  const ClearErrors clear;
  TrustAnchors anchors;
  anchors.store_ = {X509_STORE_new(), X509_STORE_free};
  const Bio bio = Borrow(pem);
  while (const std::shared_ptr<X509> authority{PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr), X509_free}) {
    if (X509_check_ca(authority.get()) == 0) return Because("it has a certificate that is not an authority's");
    X509_STORE_add_cert(anchors.store(), authority.get());
    anchors.authorities_.push_back(authority);
  }
  if (!AtEnd()) return Because("it has a certificate that cannot be read");
  if (anchors.authorities_.empty()) return Because("it has no certificate in PEM form");
  return anchors;
}

tl::expected<void, std::string> TrustAnchors::AddRevoked(std::string_view pem) {
  const ClearErrors clear;
  const Bio bio = Borrow(pem);
  while (const std::shared_ptr<X509_CRL> list{PEM_read_bio_X509_CRL(bio.get(), nullptr, nullptr, nullptr),
                                              X509_CRL_free}) {
    const auto signs = [&](const auto& authority) { return IsSignedBy(list.get(), authority.get()); };
    if (std::none_of(authorities_.begin(), authorities_.end(), signs)) {
      return Because("it has a list that no authority in ca.pem has signed");
    }
    // A list of some certificates only, of what changed, or of what others have issued has one.
    if (X509_CRL_get_ext_by_critical(list.get(), 1, -1) >= 0) return Because("it has a list that is not a plain one");
    if (ValidityOf(list.get()).until == 0) return Because("it has a list that does not say when it runs out");
    X509_STORE_add_crl(store(), list.get());
    lists_.push_back(list);
  }
  if (!AtEnd()) return Because("it has a list that cannot be read");
  if (lists_.empty()) return Because("it has no list of revoked certificates in PEM form");
  return {};
}

std::optional<Validity> TrustAnchors::ListsFor(X509* leaf) const {
  std::optional<Validity> all;
  for (const auto& list : lists_) {
    if (X509_NAME_cmp(X509_CRL_get_issuer(list.get()), X509_get_issuer_name(leaf)) != 0) continue;
    const Validity validity = ValidityOf(list.get());
    all = all ? all->With(validity) : validity;
  }
  return all;
}

std::string TrustAnchors::ListProblem(time_t now) const {
  for (const auto& list : lists_) {
    const auto [from, until] = ValidityOf(list.get());
    if (now < from) return "its list is not valid yet; look at the clocks of both machines";
    if (now >= until) return "its list has run out; make a new one with jobworker-certs DIR --crl --install";
  }
  return "";
}

tl::expected<Identity, std::string> IdentifyUser(std::string_view leaf_pem,
                                                 const std::vector<std::string_view>& common_names,
                                                 const TrustAnchors& anchors, time_t now) {
  const ClearErrors clear;
  if (leaf_pem.empty()) return Because("there is no client certificate");
  const auto ambiguous = [&](const std::string& name) { return common_names.size() != 1 || common_names[0] != name; };
  if (const auto known = anchors.known().Find(leaf_pem, now); known && !ambiguous(known->user)) return *known;
  const Certificate leaf(PEM_read_bio_X509(Borrow(leaf_pem).get(), nullptr, nullptr, nullptr));
  if (!leaf) return Because("the certificate cannot be read");
  const auto name = OnlyCommonName(leaf.get());
  if (!name) return Because(name.error());
  if (ambiguous(*name)) return Because("the common name is ambiguous");
  if (!IsUserName(*name)) return Because("the common name is not a user name ([a-z_][a-z0-9_-]{0,31})");
  if (X509_check_ca(leaf.get()) != 0) return Because("it is an authority's certificate");
  if (!IsForClients(leaf.get())) return Because("the certificate is not for client authentication");
  const auto verified = Verify(leaf.get(), anchors, now);
  if (!verified) return Because(verified.error());
  Identity identity{*name, *verified};
  anchors.known().Keep(leaf_pem, identity);
  return identity;
}

time_t CertificateEnd(std::string_view leaf_pem) {
  const ClearErrors clear;
  const Certificate leaf(PEM_read_bio_X509(Borrow(leaf_pem).get(), nullptr, nullptr, nullptr));
  return leaf ? ToTime(X509_get0_notAfter(leaf.get())) : 0;
}

}  // namespace jobworker
