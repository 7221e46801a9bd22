// What changes while the server serves: files are read again, and what they say is used once all of it is good.
#pragma once
#include <functional>
#include <string>

#include "daemon/certificates.h"
#include "daemon/file_watch.h"
#include "daemon/gate.h"
#include "daemon/job_table.h"

namespace jobworker {

// On the loop's thread.
class Reloader {
 public:
  struct Files {
    CertificateSource certificates;
    std::string policy, config;  // empty: what is built in
  };
  // `changed` is told after each exchange of what decides who may call.
  Reloader(EventLoop& loop, Files files, Certificates& certificates, Gate& gate, JobTable& jobs,
           std::function<void()> changed);

  // From now on certificates that change are used. To be called as the account that will have to read them.
  void Begin();
  // All files: what they say is used when every one of them is good. A list that is gone is gone from then on.
  void Reload();

 private:
  void CertificatesChanged();
  void Keep(const std::string& why);

  const Files files_;
  Certificates& certificates_;
  Gate& gate_;
  JobTable& jobs_;
  const std::function<void()> changed_;
  DirectoryWatch watch_;
  bool key_stays_ = false;  // this account cannot read it
  bool list_kept_ = false;  // and that was said
  std::string kept_why_;    // as it was said last; empty once there is nothing to say
};

}  // namespace jobworker
