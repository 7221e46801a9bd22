// The time in which a certificate, or a list of revoked ones, is to be believed.
#pragma once
#include <openssl/ossl_typ.h>

#include <algorithm>
#include <ctime>
#include <string>

namespace jobworker {

// [from, until): OpenSSL takes a certificate for expired in the second that it names.
struct Validity {
  time_t from = 0, until = 0;
  [[nodiscard]] bool Has(time_t time) const { return from <= time && time < until; }
  [[nodiscard]] Validity With(const Validity& other) const {
    return {std::max(from, other.from), std::min(until, other.until)};
  }
};

// 0 when it cannot be read.
time_t ToTime(const ASN1_TIME* time);

// A sentence when a certificate of that validity is not valid at that time, empty when it is.
std::string ValidityProblem(const Validity& validity, time_t now);

}  // namespace jobworker
