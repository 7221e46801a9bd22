// Keys for the certificates of tests, by means that both OpenSSL and BoringSSL have.
#pragma once
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>

#include <memory>

namespace jobworker::testing {

// A P-256 key, or an RSA one of so many bits; the caller's to free. None when the library makes no such key.
inline EVP_PKEY* NewKey(int rsa_bits = 0) {
  const std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)> context(
      EVP_PKEY_CTX_new_id(rsa_bits == 0 ? EVP_PKEY_EC : EVP_PKEY_RSA, nullptr), &EVP_PKEY_CTX_free);
  EVP_PKEY_keygen_init(context.get());
  rsa_bits == 0 ? EVP_PKEY_CTX_set_ec_paramgen_curve_nid(context.get(), NID_X9_62_prime256v1)
                : EVP_PKEY_CTX_set_rsa_keygen_bits(context.get(), rsa_bits);
  EVP_PKEY* key = nullptr;
  EVP_PKEY_keygen(context.get(), &key);
  return key;
}

}  // namespace jobworker::testing
