#include "daemon/certificates.h"

#include <gtest/gtest.h>

#include "tests/unit/certificates.h"
#include "tests/unit/temporary_directory.h"

namespace jobworker {
namespace {

using testing::Authority;
using testing::Issue;
using testing::KeyedCertificate;
using testing::kServerExtensions;
using testing::ListOf;

class CertificateSets : public ::testing::Test {
 protected:
  CertificateSets() {
    directory_.Write("ca.pem", authority_.Pem(), 0644);
    Show(worker_);
  }
  void Show(const KeyedCertificate& worker) const {
    directory_.Write("worker.pem", worker.Pem(), 0644);
    directory_.Write("worker-key.pem", worker.KeyPem(), 0600);
  }
  [[nodiscard]] auto Load(const std::string& host = "127.0.0.1") const {
    return LoadCertificates({directory_.path(), host});
  }
  void ExpectError(const std::string& part, const std::string& host = "127.0.0.1") const {
    const auto set = Load(host);
    ASSERT_FALSE(set) << part;
    EXPECT_NE(set.error().find(part), std::string::npos) << set.error();
  }
  [[nodiscard]] std::string In(const std::string& name) const { return directory_.path() + "/" + name; }

  const testing::TemporaryDirectory directory_;
  const KeyedCertificate authority_ = Authority("An operator's CA");
  const KeyedCertificate worker_ = Issue({{"worker"}, kServerExtensions}, authority_);
  const KeyedCertificate alice_ = Issue({{"alice"}}, authority_);
};

TEST_F(CertificateSets, AreReadWithAndWithoutAList) {
  const auto without = Load();
  ASSERT_TRUE(without) << without.error();
  EXPECT_EQ(without->revoked, "");
  EXPECT_EQ(without->problem, "");
  EXPECT_EQ(without->files.key, worker_.KeyPem());
  EXPECT_TRUE(IdentifyUser(alice_.Pem(), {"alice"}, without->anchors, time(nullptr)));

  const std::string list = ListOf({{alice_}}, authority_);
  directory_.Write("crl.pem", list, 0644);
  const auto with = Load();
  ASSERT_TRUE(with) << with.error();
  EXPECT_EQ(with->revoked, list);
  EXPECT_EQ(with->problem, "");
  EXPECT_FALSE(IdentifyUser(alice_.Pem(), {"alice"}, with->anchors, time(nullptr)));
}

TEST_F(CertificateSets, NameTheFileThatIsBad) {
  directory_.Write("crl.pem", "", 0644);
  ExpectError(In("crl.pem") + ": it has no list of revoked certificates in PEM form; make it with jobworker-certs");
  directory_.Write("crl.pem", ListOf({}, Authority("Another CA")), 0644);
  ExpectError(In("crl.pem") + ": it has a list that no authority in ca.pem has signed; make it with jobworker-certs");
  directory_.Write("ca.pem", worker_.Pem(), 0644);
  ExpectError(In("ca.pem") + ": it has a certificate that is not an authority's");
  directory_.Write("worker-key.pem", alice_.KeyPem(), 0600);
  ExpectError(In("worker-key.pem") + " is not the unencrypted private key");
}

TEST_F(CertificateSets, AListThatCannotBeReadIsNotNoList) {
  std::filesystem::create_symlink("nowhere", In("crl.pem"));
  ExpectError("cannot read " + In("crl.pem") + ": No such file");
  std::filesystem::remove(In("crl.pem"));
  std::filesystem::create_directory(In("crl.pem"));
  ExpectError(In("crl.pem") + " is not a regular file");
}

TEST_F(CertificateSets, StayOnLoopbackWhenTheyArePublished) {
  EXPECT_TRUE(Load("0.0.0.0"));
  directory_.Write("ca.pem", authority_.Pem() + testing::Contents(SOURCE_DIR "/certs/ca.pem"), 0644);
  ExpectError("refusing to listen on 0.0.0.0 with the published certificates", "0.0.0.0");
  EXPECT_TRUE(Load());
}

TEST_F(CertificateSets, KeepTheKeyThatCannotBeReadAgain) {
  const auto first = Load();
  std::filesystem::remove(In("worker-key.pem"));
  ExpectError("cannot read " + In("worker-key.pem"));
  const CertificateSource source{directory_.path(), "127.0.0.1"};
  directory_.Write("crl.pem", ListOf({{alice_}}, authority_), 0644);
  const auto next = LoadCertificates(source, {&*first, true, false});
  ASSERT_TRUE(next) << next.error();
  EXPECT_EQ(next->files.key, worker_.KeyPem());
  EXPECT_FALSE(IdentifyUser(alice_.Pem(), {"alice"}, next->anchors, time(nullptr)));
  Show(Issue({{"worker"}, kServerExtensions}, authority_));
  const auto other = LoadCertificates(source, {&*first, true, false});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error(),
            In("worker.pem") + " has another key than before, and this account cannot read " + In("worker-key.pem"));
}

TEST_F(CertificateSets, KeepTheListThatIsGone) {
  const CertificateSource source{directory_.path(), "127.0.0.1"};
  const auto none = Load();
  directory_.Write("crl.pem", ListOf({{alice_}}, authority_), 0644);
  const auto first = Load();
  std::filesystem::remove(In("crl.pem"));
  const auto kept = LoadCertificates(source, {&*first, false, true});
  ASSERT_TRUE(kept) << kept.error();
  EXPECT_TRUE(kept->list_kept);
  EXPECT_TRUE(kept->HasFilesOf(*first));
  EXPECT_FALSE(IdentifyUser(alice_.Pem(), {"alice"}, kept->anchors, time(nullptr)));
  for (const KeptFiles& keep : {KeptFiles{&*first, false, false}, KeptFiles{&*none, false, true}}) {
    const auto next = LoadCertificates(source, keep);
    ASSERT_TRUE(next) << next.error();
    EXPECT_FALSE(next->list_kept);
    EXPECT_EQ(next->revoked, "");
    EXPECT_TRUE(IdentifyUser(alice_.Pem(), {"alice"}, next->anchors, time(nullptr)));
  }
}

TEST_F(CertificateSets, AKeyThatTlsRefusesIsNamed) {
  Show(Issue({{"worker"}, kServerExtensions}, authority_, 512));
  ExpectError(In("worker.pem") + ": TLS does not take a key of that kind or size");
}

// Never a reason not to start: the jobs' output is waiting to be read.
TEST_F(CertificateSets, SayWhatIsNotValidNow) {
  directory_.Write("crl.pem", ListOf({{}, {}, -60, -1}, authority_), 0644);
  auto set = Load();
  ASSERT_TRUE(set) << set.error();
  EXPECT_EQ(set->problem, In("crl.pem") +
                              ": its list has run out; make a new one with jobworker-certs DIR --crl "
                              "--install");
  EXPECT_FALSE(IdentifyUser(alice_.Pem(), {"alice"}, set->anchors, time(nullptr)));
  Show(Issue({{"worker"}, kServerExtensions, -60, -1}, authority_));
  set = Load();
  ASSERT_TRUE(set) << set.error();
  EXPECT_EQ(set->problem, In("worker.pem") +
                              ": it has expired; make a new one with jobworker-certs DIR --renew worker "
                              "--install");
}

}  // namespace
}  // namespace jobworker
