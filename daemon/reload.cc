#include "daemon/reload.h"

#include <fmt/format.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/log.h"

namespace jobworker {

namespace {

std::string WhatChanged(const CertificateSet& from, const CertificateSet& to) {
  std::string files;
  const auto add = [&](bool changed, const char* name) {
    if (changed) files += (files.empty() ? "" : " ") + std::string(name);
  };
  add(from.files.authorities != to.files.authorities, "ca.pem");
  add(from.files.certificate != to.files.certificate, "worker.pem");
  add(from.files.key != to.files.key, "worker-key.pem");
  add(from.revoked != to.revoked, "crl.pem");
  return files;
}

}  // namespace

Reloader::Reloader(EventLoop& loop, Files files, Certificates& certificates, Gate& gate, JobTable& jobs,
                   std::function<void()> changed)
    : files_(std::move(files)),
      certificates_(certificates),
      gate_(gate),
      jobs_(jobs),
      changed_(std::move(changed)),
      watch_(loop, files_.certificates.directory, [this] { CertificatesChanged(); }) {}

void Reloader::Begin() {
  const std::string key = files_.certificates.directory + "/worker-key.pem";
  key_stays_ = access(key.c_str(), R_OK) != 0;
  if (key_stays_) {
    Log("key kept", {{"reason", key + " is closed to this account: a new one is for a restart to read"}});
  }
  if (const auto begun = watch_.Begin(); !begun) {
    Log("certificates not watched", {{"reason", begun.error() + "; new ones are for a reload (SIGHUP) to read"}});
  }
  CertificatesChanged();  // since they were loaded, before anybody watched
}

// A failure is said once, not again for each of the files that are written one after the other.
void Reloader::Keep(const std::string& why) {
  if (why == kept_why_) return;
  kept_why_ = why;
  Log("certificates kept", {{"reason", why}});
}

void Reloader::CertificatesChanged() {
  const auto current = certificates_.current();
  auto set = LoadCertificates(files_.certificates, {current.get(), key_stays_, true});
  if (!set) return Keep(set.error());
  if (set->list_kept && !list_kept_)
    Log("list kept", {{"reason", files_.certificates.directory +
                                     "/crl.pem is gone: who was on it is kept out until a reload (SIGHUP)"}});
  list_kept_ = set->list_kept;
  if (set->HasFilesOf(*current)) return kept_why_.clear();
  if (!set->problem.empty()) return Keep(set->problem);
  kept_why_.clear();
  const std::string changed = WhatChanged(*current, *set);
  certificates_.Use(std::move(*set));
  Log("certificates changed", {{"files", changed}});
  changed_();
}

void Reloader::Reload() {
  (void)watch_.Begin();
  const auto current = certificates_.current();
  auto set = LoadCertificates(files_.certificates, {current.get(), key_stays_, false});
  tl::expected<Policy, std::string> policy = files_.policy.empty() ? Policy::BuiltIn() : Policy::Load(files_.policy);
  const tl::expected<JobTableLimits, std::string> limits =
      files_.config.empty() ? JobTableLimits{} : LoadConfig(files_.config);
  bool good = true;
  const auto check = [&good](const std::string& why) {
    if (why.empty()) return;
    good = false;
    Log("reload refused", {{"reason", why}, {"used", "all as before"}});
  };
  const bool same = set && set->HasFilesOf(*current);
  check(!set ? set.error() : same ? "" : set->problem);
  check(policy ? "" : policy.error());
  check(limits ? "" : limits.error());
  if (!good) return;
  const std::string changed = WhatChanged(*current, *set);
  if (!same) certificates_.Use(std::move(*set));
  gate_.Use(std::move(*policy));
  jobs_.SetLimits(*limits);
  list_kept_ = false;
  kept_why_.clear();
  Log("reloaded", {{"certificates", same ? "as before" : changed}});
  changed_();
}

}  // namespace jobworker
