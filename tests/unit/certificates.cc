#include "tests/unit/certificates.h"

#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>

#include "tests/unit/new_key.h"

namespace jobworker::testing {

namespace {

void Demand(bool holds, const char* what) {
  if (holds) return;
  (void)fprintf(stderr, "test certificates: %s\n", what);
  abort();
}

// A type that is not one of the MBSTRING ones makes OpenSSL take the bytes unseen.
void SetSubject(X509* certificate, const std::vector<std::string>& common_names) {
  const std::unique_ptr<X509_NAME, decltype(&X509_NAME_free)> name(X509_NAME_new(), &X509_NAME_free);
  const auto add = [&](int nid, const std::string& value) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(value.data());
    Demand(X509_NAME_add_entry_by_NID(name.get(), nid, V_ASN1_UTF8STRING, bytes, static_cast<int>(value.size()), -1,
                                      0) == 1,
           "subject");
  };
  add(NID_organizationName, "JobWorker");
  for (const std::string& value : common_names) add(NID_commonName, value);
  Demand(X509_set_subject_name(certificate, name.get()) == 1, "subject");
}

void AddExtensions(X509* certificate, X509* issuer, const Extensions& extensions) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  for (const auto& [name, value] : extensions) {
    const std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)> extension(
        X509V3_EXT_nconf(nullptr, &context, name, value), &X509_EXTENSION_free);
    Demand(extension && X509_add_ext(certificate, extension.get(), -1) == 1, name);
  }
}

KeyedCertificate Make(const CertificateSpec& spec, const KeyedCertificate* issuer, int rsa_bits = 0) {
  static long serial = 0;
  const KeyedCertificate made{{X509_new(), X509_free}, {NewKey(rsa_bits), EVP_PKEY_free}};
  X509* certificate = made.certificate.get();
  X509* authority = issuer != nullptr ? issuer->certificate.get() : certificate;
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), spec.begins);
  X509_gmtime_adj(X509_getm_notAfter(certificate), spec.ends);
  SetSubject(certificate, spec.common_names);
  X509_set_issuer_name(certificate, X509_get_subject_name(authority));
  X509_set_pubkey(certificate, made.key.get());
  AddExtensions(certificate, authority, spec.extensions);
  EVP_PKEY* signer = issuer != nullptr ? issuer->key.get() : made.key.get();
  Demand(X509_sign(certificate, signer, EVP_sha256()) > 0, "sign");
  return made;
}

std::string Drain(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<size_t>(size));
  BIO_free(bio);
  return text;
}

}  // namespace

std::string KeyedCertificate::Pem() const {
  BIO* bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(bio, certificate.get());
  return Drain(bio);
}

std::string KeyedCertificate::KeyPem(const std::string& passphrase) const {
  BIO* bio = BIO_new(BIO_s_mem());
  std::string secret = passphrase;
  PEM_write_bio_PKCS8PrivateKey(bio, key.get(), secret.empty() ? nullptr : EVP_aes_256_cbc(), secret.data(),
                                static_cast<int>(secret.size()), nullptr, nullptr);
  return Drain(bio);
}

KeyedCertificate Issue(const CertificateSpec& spec, const KeyedCertificate& issuer, int rsa_bits) {
  return Make(spec, &issuer, rsa_bits);
}

KeyedCertificate SelfSigned(const CertificateSpec& spec) { return Make(spec, nullptr); }

std::string ListOf(const ListSpec& spec, const KeyedCertificate& issuer) {
  const std::unique_ptr<X509_CRL, decltype(&X509_CRL_free)> list(X509_CRL_new(), &X509_CRL_free);
  const std::unique_ptr<ASN1_TIME, decltype(&ASN1_TIME_free)> time(ASN1_TIME_new(), &ASN1_TIME_free);
  X509_CRL_set_version(list.get(), 1);
  X509_CRL_set_issuer_name(list.get(), X509_get_subject_name(issuer.certificate.get()));
  X509_gmtime_adj(time.get(), spec.begins);
  X509_CRL_set1_lastUpdate(list.get(), time.get());
  if (spec.ends) {
    X509_gmtime_adj(time.get(), *spec.ends);
    X509_CRL_set1_nextUpdate(list.get(), time.get());
  }
  X509_gmtime_adj(time.get(), -60);
  for (const KeyedCertificate& each : spec.revoked) {
    X509_REVOKED* const entry = X509_REVOKED_new();
    X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(each.certificate.get()));
    X509_REVOKED_set_revocationDate(entry, time.get());
    Demand(X509_CRL_add0_revoked(list.get(), entry) == 1, "revoked");
  }
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer.certificate.get(), nullptr, nullptr, list.get(), 0);
  for (const auto& [name, value] : spec.extensions) {
    const std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)> extension(
        X509V3_EXT_nconf(nullptr, &context, name, value), &X509_EXTENSION_free);
    Demand(extension && X509_CRL_add_ext(list.get(), extension.get(), -1) == 1, name);
  }
  Demand(X509_CRL_sign(list.get(), issuer.key.get(), EVP_sha256()) > 0, "sign");
  BIO* bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509_CRL(bio, list.get());
  return Drain(bio);
}

CertificateSet SetOf(const KeyedCertificate& authority, const KeyedCertificate& worker, const std::string& list) {
  CertificateSet set{
      {authority.Pem(), worker.Pem(), worker.KeyPem()}, list, *TrustAnchors::Parse(authority.Pem()), "", false};
  Demand(list.empty() || set.anchors.AddRevoked(list), "list");
  return set;
}

KeyedCertificate Authority(const std::string& name) { return SelfSigned({{name}, kAuthorityExtensions}); }

}  // namespace jobworker::testing
