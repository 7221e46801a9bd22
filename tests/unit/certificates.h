// Certificates of every odd kind, made while the tests run.
#pragma once
#include <openssl/evp.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/certificates.h"

namespace jobworker::testing {

// OpenSSL's names and text forms, as in x509v3_config(5).
using Extensions = std::vector<std::pair<const char*, const char*>>;
const Extensions kUserExtensions = {{"basicConstraints", "critical,CA:FALSE"}, {"extendedKeyUsage", "clientAuth"}};
const Extensions kServerExtensions = {{"basicConstraints", "critical,CA:FALSE"},
                                      {"extendedKeyUsage", "serverAuth"},
                                      {"subjectAltName", "DNS:localhost,IP:127.0.0.1"}};
const Extensions kAuthorityExtensions = {{"basicConstraints", "critical,CA:TRUE"},
                                         {"keyUsage", "critical,keyCertSign,cRLSign"}};

// Validity in seconds from now. Every CN gets into the subject as the bytes it has, whatever they are.
struct CertificateSpec {
  std::vector<std::string> common_names;
  Extensions extensions = kUserExtensions;
  time_t begins = -3600;
  time_t ends = 3600;
};

struct KeyedCertificate {
  std::shared_ptr<X509> certificate;
  std::shared_ptr<EVP_PKEY> key;
  [[nodiscard]] std::string Pem() const;
  // Encrypted when there is a passphrase.
  [[nodiscard]] std::string KeyPem(const std::string& passphrase = "") const;
};

// A P-256 key, or an RSA one of so many bits, and a certificate for it by `issuer`, or by itself.
KeyedCertificate Issue(const CertificateSpec& spec, const KeyedCertificate& issuer, int rsa_bits = 0);
KeyedCertificate SelfSigned(const CertificateSpec& spec);
KeyedCertificate Authority(const std::string& name);

// Validity in seconds from now, too; without `ends`, it does not say.
struct ListSpec {
  std::vector<KeyedCertificate> revoked = {};
  Extensions extensions = {};
  time_t begins = -3600;
  std::optional<time_t> ends = 3600;
};
// A list of revoked certificates (CRL), as PEM text.
std::string ListOf(const ListSpec& spec, const KeyedCertificate& issuer);

// What a server is to run on.
CertificateSet SetOf(const KeyedCertificate& authority, const KeyedCertificate& worker, const std::string& list = "");

}  // namespace jobworker::testing
