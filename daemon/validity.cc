#include "daemon/validity.h"

#include <openssl/asn1.h>

#include <memory>

namespace jobworker {

// BoringSSL of this age has no ASN1_TIME_to_tm.
time_t ToTime(const ASN1_TIME* time) {
  const std::unique_ptr<ASN1_TIME, decltype(&ASN1_TIME_free)> epoch(ASN1_TIME_set(nullptr, 0), &ASN1_TIME_free);
  int days = 0, seconds = 0;
  if (time == nullptr || ASN1_TIME_diff(&days, &seconds, epoch.get(), time) != 1) return 0;
  return time_t{days} * 86'400 + seconds;
}

std::string ValidityProblem(const Validity& validity, time_t now) {
  if (validity.Has(now)) return "";
  return now < validity.from ? "it is not valid yet" : "it has expired";
}

}  // namespace jobworker
