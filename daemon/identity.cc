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

// 0 when it cannot be read.
time_t ToTime(const ASN1_TIME* time) {
  tm parts{};
  return ASN1_TIME_to_tm(time, &parts) == 1 ? timegm(&parts) : 0;
}

// In which every certificate of the chain is valid. OpenSSL takes one for expired in the second that it names.
KnownCertificates::Known ValidityOf(const STACK_OF(X509) * chain) {
  KnownCertificates::Known known{"", 0, std::numeric_limits<time_t>::max()};
  for (size_t i = 0; i < static_cast<size_t>(sk_X509_num(chain)); ++i) {
    const X509* certificate = sk_X509_value(chain, static_cast<decltype(sk_X509_num(chain))>(i));
    known.from = std::max(known.from, ToTime(X509_get0_notBefore(certificate)));
    known.until = std::min(known.until, ToTime(X509_get0_notAfter(certificate)));
  }
  return known;
}

// Issued by an anchor itself: no untrusted certificate is offered to build a chain with.
tl::expected<KnownCertificates::Known, std::string> Verify(X509* leaf, const TrustAnchors& anchors, time_t now) {
  const StoreContext context(X509_STORE_CTX_new());
  if (!context || X509_STORE_CTX_init(context.get(), anchors.store(), leaf, nullptr) != 1) {
    return Because("the certificate cannot be checked now");
  }
  X509_STORE_CTX_set_time(context.get(), 0, now);
  X509_STORE_CTX_set_purpose(context.get(), X509_PURPOSE_SSL_CLIENT);
  if (X509_verify_cert(context.get()) == 1) return ValidityOf(X509_STORE_CTX_get0_chain(context.get()));
  return Because(X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get())));
}

}  // namespace

std::optional<std::string> KnownCertificates::Find(std::string_view pem, time_t now) const {
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(pem);
  if (found == known_.end() || now < found->second.from || now >= found->second.until) return std::nullopt;
  return found->second.user;
}

void KnownCertificates::Keep(std::string_view pem, Known known) {
  if (pem.size() > kMaxPemBytes) return;
  const std::lock_guard lock(mutex_);
  if (known_.size() >= kMost) known_.clear();
  known_.insert_or_assign(std::string(pem), std::move(known));
}

size_t KnownCertificates::size() const {
  const std::lock_guard lock(mutex_);
  return known_.size();
}

tl::expected<TrustAnchors, std::string> TrustAnchors::Parse(std::string_view pem) {
  const ClearErrors clear;
  const std::shared_ptr<X509_STORE> store(X509_STORE_new(), X509_STORE_free);
  const Bio bio = Borrow(pem);
  int count = 0;
  while (const Certificate anchor{PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)}) {
    if (X509_check_ca(anchor.get()) == 0) return Because("it has a certificate that is not an authority's");
    X509_STORE_add_cert(store.get(), anchor.get());
    ++count;
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  if (!at_end) return Because("it has a certificate that cannot be read");
  if (count == 0) return Because("it has no certificate in PEM form");
  return TrustAnchors(store);
}

tl::expected<std::string, std::string> IdentifyUser(std::string_view leaf_pem,
                                                    const std::vector<std::string_view>& common_names,
                                                    const TrustAnchors& anchors, time_t now) {
  const ClearErrors clear;
  if (leaf_pem.empty()) return Because("there is no client certificate");
  const auto ambiguous = [&](const std::string& name) { return common_names.size() != 1 || common_names[0] != name; };
  if (const auto known = anchors.known().Find(leaf_pem, now); known && !ambiguous(*known)) return *known;
  const Certificate leaf(PEM_read_bio_X509(Borrow(leaf_pem).get(), nullptr, nullptr, nullptr));
  if (!leaf) return Because("the certificate cannot be read");
  auto name = OnlyCommonName(leaf.get());
  if (!name) return name;
  if (ambiguous(*name)) return Because("the common name is ambiguous");
  if (!IsUserName(*name)) return Because("the common name is not a user name ([a-z_][a-z0-9_-]{0,31})");
  if (X509_check_ca(leaf.get()) != 0) return Because("it is an authority's certificate");
  if (!IsForClients(leaf.get())) return Because("the certificate is not for client authentication");
  auto verified = Verify(leaf.get(), anchors, now);
  if (!verified) return Because("the certificate is refused: " + verified.error());
  verified->user = *name;
  anchors.known().Keep(leaf_pem, std::move(*verified));
  return name;
}

time_t CertificateEnd(std::string_view leaf_pem) {
  const ClearErrors clear;
  const Certificate leaf(PEM_read_bio_X509(Borrow(leaf_pem).get(), nullptr, nullptr, nullptr));
  return leaf ? ToTime(X509_get0_notAfter(leaf.get())) : 0;
}

}  // namespace jobworker
