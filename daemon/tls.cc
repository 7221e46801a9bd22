#include "daemon/tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cstdlib>
#include <memory>

#include "daemon/because.h"
#include "daemon/files.h"
#include "daemon/listen_address.h"
#include "published_authority.h"

namespace jobworker {

namespace {

using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;

Bio Borrow(std::string_view text) { return {BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), &BIO_free}; }

Certificate ReadCertificate(BIO* bio) {
  Certificate certificate(PEM_read_bio_X509(bio, nullptr, nullptr, nullptr), &X509_free);
  ERR_clear_error();
  return certificate;
}

Certificate Parse(std::string_view pem) { return ReadCertificate(Borrow(pem).get()); }

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

Key ParseKey(std::string_view pem) {
  // Without a callback of ours OpenSSL would ask the terminal for an encrypted key's passphrase.
  pem_password_cb* const refuse = [](char*, int, int, void*) { return -1; };
  return {PEM_read_bio_PrivateKey(Borrow(pem).get(), nullptr, refuse, nullptr), &EVP_PKEY_free};
}

bool IsKeyOf(X509* certificate, std::string_view key_pem) {
  const Key key = ParseKey(key_pem);
  const bool fits = key && X509_check_private_key(certificate, key.get()) == 1;
  ERR_clear_error();
  return fits;
}

bool HasPublishedKey(X509* certificate) {
  const Certificate authority = Parse(kPublishedAuthority);
  const ASN1_BIT_STRING* published = X509_get0_pubkey_bitstr(authority.get());
  return ASN1_STRING_cmp(X509_get0_pubkey_bitstr(certificate), published) == 0;
}

bool IsPublished(X509* certificate) {
  const Certificate authority = Parse(kPublishedAuthority);
  // BoringSSL of this age has no X509_get0_pubkey.
  const Key key(X509_get_pubkey(authority.get()), &EVP_PKEY_free);
  const bool issued = key && X509_verify(certificate, key.get()) == 1;
  ERR_clear_error();
  return issued;
}

// Who trusts the published authority lets everybody in as any of its users, whatever certificate of one's own is shown.
bool TrustsPublished(std::string_view authorities_pem) {
  const Bio bio = Borrow(authorities_pem);
  while (const Certificate authority = ReadCertificate(bio.get())) {
    if (HasPublishedKey(authority.get())) return true;
  }
  return false;
}

}  // namespace

void ForbidOldTls() {
#ifdef OPENSSL_IS_BORINGSSL
  setenv("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-AES256-CBC-SHA", 1);
#else
  setenv("GRPC_SSL_CIPHER_SUITES", "PSK-AES256-GCM-SHA384", 1);
#endif
}

tl::expected<TlsFiles, std::string> LoadTlsFiles(const std::string& directory, const std::string& name,
                                                 const std::string* key) {
  const std::string base = directory + "/" + name;
  const auto authorities = ReadFile(directory + "/ca.pem", FileRule::kAny);
  if (!authorities) return Because(authorities.error());
  const auto certificate = ReadFile(base + ".pem", FileRule::kAny);
  if (!certificate) return Because(certificate.error());
  const Certificate parsed = Parse(*certificate);
  if (!parsed) return Because(base + ".pem is not a certificate in PEM form");
  tl::expected<std::string, std::string> read =
      key != nullptr ? *key : ReadFile(base + "-key.pem", FileRule::kNobodyElseReads);
  if (!read && IsPublished(parsed.get())) read = ReadFile(base + "-key.pem", FileRule::kAny);
  if (!read) return Because(read.error());
  if (!IsKeyOf(parsed.get(), *read)) {
    return Because(
        key != nullptr
            ? fmt::format("{}.pem has another key than before, and this account cannot read {}-key.pem", base, base)
            : fmt::format("{}-key.pem is not the unencrypted private key of {}.pem; take the two from one "
                          "place",
                          base, base));
  }
  const Validity validity{ToTime(X509_get0_notBefore(parsed.get())), ToTime(X509_get0_notAfter(parsed.get()))};
  return TlsFiles{*authorities, *certificate, *read, validity};
}

bool TlsTakes(const TlsFiles& files) {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  const Certificate certificate = Parse(files.certificate);
  const Key key = ParseKey(files.key);
  // BoringSSL takes an RSA key of any size, and then no handshake with a small one comes to its end. OpenSSL's default
  // level, as Debian sets it, has the same bound.
  constexpr int kLeastRsaBits = 2048;
  const bool small = key && EVP_PKEY_id(key.get()) == EVP_PKEY_RSA && EVP_PKEY_bits(key.get()) < kLeastRsaBits;
  const bool takes = context && certificate && key && !small &&
                     SSL_CTX_use_certificate(context.get(), certificate.get()) == 1 &&
                     SSL_CTX_use_PrivateKey(context.get(), key.get()) == 1;
  ERR_clear_error();
  return takes;
}

bool IsPublished(std::string_view certificate_pem) {
  const Certificate certificate = Parse(certificate_pem);
  return certificate && IsPublished(certificate.get());
}

tl::expected<void, std::string> CheckListenHost(const std::string& host, const TlsFiles& files) {
  if (IsLoopback(host)) return {};
  if (!IsPublished(files.certificate) && !TrustsPublished(files.authorities)) return {};
  return Because(
      fmt::format("refusing to listen on {} with the published certificates: everybody has their keys. Make your own "
                  "with scripts/make-certs DIR --host NAME --user NAME and pass --certs DIR, or listen on 127.0.0.1",
                  host));
}

}  // namespace jobworker
