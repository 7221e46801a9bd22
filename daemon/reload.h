// What changes while the server serves: files are read again, and what they say is used once all of it is good.
#pragma once
#include <functional>
#include <string>

#include "daemon/certificates.h"
#include "daemon/file_watch.h"

namespace jobworker {

// On the loop's thread.
class Reloader {
 public:
  // `changed` is told after each exchange of what decides who may call.
  Reloader(EventLoop& loop, CertificateSource source, Certificates& certificates, std::function<void()> changed);

  // From now on certificates that change are used. To be called as the account that will have to read them.
  void Begin();

 private:
  void CertificatesChanged();
  void Keep(const std::string& why);

  const CertificateSource source_;
  Certificates& certificates_;
  const std::function<void()> changed_;
  DirectoryWatch watch_;
  bool key_stays_ = false;  // this account cannot read it
  bool list_kept_ = false;  // and that was said
  std::string kept_why_;    // as it was said last; empty once there is nothing to say
};

}  // namespace jobworker
