#include "daemon/tls.h"

#include <gtest/gtest.h>

#include "tests/unit/certificates.h"
#include "tests/unit/temporary_directory.h"

namespace jobworker {
namespace {

using testing::Authority;
using testing::Contents;
using testing::Issue;
using testing::KeyedCertificate;
using testing::kServerExtensions;

const std::string kPublishedDirectory = SOURCE_DIR "/certs";

template <class T>
void ExpectError(const tl::expected<T, std::string>& result, const std::string& part) {
  ASSERT_FALSE(result) << part;
  EXPECT_NE(result.error().find(part), std::string::npos) << result.error();
}

class Files : public ::testing::Test {
 protected:
  Files() {
    directory_.Write("ca.pem", authority_.Pem(), 0644);
    directory_.Write("worker.pem", worker_.Pem(), 0644);
    directory_.Write("worker-key.pem", worker_.KeyPem(), 0600);
  }
  auto Load() { return LoadTlsFiles(directory_.path(), "worker"); }

  const testing::TemporaryDirectory directory_;
  const KeyedCertificate authority_ = Authority("An operator's CA");
  const KeyedCertificate worker_ = Issue({{"worker"}, kServerExtensions}, authority_);
};

TEST_F(Files, AreReadWhole) {
  const auto files = Load();
  ASSERT_TRUE(files) << files.error();
  EXPECT_EQ(files->authorities, authority_.Pem());
  EXPECT_EQ(files->certificate, worker_.Pem());
  EXPECT_EQ(files->key, worker_.KeyPem());
}

TEST_F(Files, MissingOnesAreNamed) {
  for (const char* name : {"worker-key.pem", "worker.pem", "ca.pem"}) {
    const std::string path = directory_.path() + "/" + name;
    std::filesystem::remove(path);
    ExpectError(Load(), "cannot read " + path + ": No such file");
  }
}

TEST_F(Files, KeyIsForItsOwnerOnly) {
  const std::string path = directory_.path() + "/worker-key.pem";
  for (const unsigned mode : {0640U, 0604U, 0644U, 0610U, 0602U, 0660U}) {
    directory_.Write("worker-key.pem", worker_.KeyPem(), mode);
    ExpectError(Load(), path + " is a private key that others can read; run: chmod 600 " + path);
  }
  directory_.Write("worker-key.pem", worker_.KeyPem(), 0400);
  EXPECT_TRUE(Load());
}

TEST_F(Files, KeyMustFitTheCertificate) {
  const std::string wrong = "worker-key.pem is not the unencrypted private key of ";
  directory_.Write("worker-key.pem", authority_.KeyPem(), 0600);
  ExpectError(Load(), wrong);
  directory_.Write("worker-key.pem", "", 0600);
  ExpectError(Load(), wrong);
  directory_.Write("worker-key.pem", worker_.Pem(), 0600);
  ExpectError(Load(), wrong);
  directory_.Write("worker-key.pem", worker_.KeyPem("secret"), 0600);
  ExpectError(Load(), wrong);
}

TEST_F(Files, CertificateMustBeOne) {
  directory_.Write("worker.pem", worker_.KeyPem(), 0644);
  ExpectError(Load(), "worker.pem is not a certificate in PEM form");
}

TEST_F(Files, ValidityIsThatOfTheCertificate) {
  const time_t before = time(nullptr);
  const KeyedCertificate short_lived = Issue({{"worker"}, kServerExtensions, -60, 120}, authority_);
  const time_t after = time(nullptr);
  directory_.Write("worker.pem", short_lived.Pem(), 0644);
  directory_.Write("worker-key.pem", short_lived.KeyPem(), 0600);
  const auto files = Load();
  ASSERT_TRUE(files) << files.error();
  EXPECT_GE(files->validity.from, before - 60);
  EXPECT_LE(files->validity.from, after - 60);
  EXPECT_GE(files->validity.until, before + 120);
  EXPECT_LE(files->validity.until, after + 120);
  const auto [from, until] = files->validity;
  EXPECT_EQ(ValidityProblem(files->validity, from - 1), "it is not valid yet");
  EXPECT_EQ(ValidityProblem(files->validity, from), "");
  EXPECT_EQ(ValidityProblem(files->validity, until - 1), "");
  EXPECT_EQ(ValidityProblem(files->validity, until), "it has expired");
}

TEST_F(Files, PublishedKeysMayBeReadableAsGitLeavesThem) {
  for (const char* name : {"worker", "alice", "bob", "carl"}) {
    const std::string base = kPublishedDirectory + "/" + name;
    directory_.Write(std::string(name) + ".pem", Contents(base + ".pem"), 0644);
    directory_.Write(std::string(name) + "-key.pem", Contents(base + "-key.pem"), 0644);
    const auto files = LoadTlsFiles(directory_.path(), name);
    EXPECT_TRUE(files) << files.error();
  }
}

TEST(PublishedCertificates, IsWhatThePublishedAuthorityIssued) {
  for (const char* name : {"ca", "worker", "alice", "bob", "carl"}) {
    EXPECT_TRUE(IsPublished(Contents(kPublishedDirectory + "/" + name + ".pem"))) << name;
  }
  const KeyedCertificate same_name = Authority("JobWorker CA");
  EXPECT_FALSE(IsPublished(same_name.Pem()));
  EXPECT_FALSE(IsPublished(Issue({{"worker"}, kServerExtensions}, same_name).Pem()));
  EXPECT_FALSE(IsPublished(""));
  EXPECT_FALSE(IsPublished("worker"));
}

class Listening : public ::testing::Test {
 protected:
  static TlsFiles OfAnOperator() {
    const KeyedCertificate authority = Authority("An operator's CA");
    const KeyedCertificate worker = Issue({{"worker"}, kServerExtensions}, authority);
    return {authority.Pem(), worker.Pem(), worker.KeyPem()};
  }
  const TlsFiles published_ = *LoadTlsFiles(kPublishedDirectory, "worker");
  const TlsFiles operators_ = OfAnOperator();
  static constexpr const char* kWide[] = {
      "0.0.0.0", "::", "10.0.0.7",     "128.0.0.1",   "126.255.255.255", "::2",        "::ffff:10.0.0.7", "fe80::1%lo",
      "",        "*",  "localhost.ex", "example.org", "127.0.0.1.ex",    "0127.0.0.1", "2130706433",      "LOCALHOST.",
  };
};

TEST_F(Listening, PublishedCertificatesStayOnLoopback) {
  for (const char* host : {"127.0.0.1", "127.255.255.254", "::1", "localhost"}) {
    EXPECT_TRUE(CheckListenHost(host, published_)) << host;
  }
  for (const char* host : kWide) ExpectError(CheckListenHost(host, published_), "scripts/make-certs DIR --host NAME");
}

TEST_F(Listening, PublishedAuthorityStaysOnLoopbackToo) {
  TlsFiles files = operators_;
  files.authorities += "\n# and, by mistake:\n" + published_.authorities;
  EXPECT_TRUE(CheckListenHost("127.0.0.1", files));
  for (const char* host : kWide) ExpectError(CheckListenHost(host, files), "scripts/make-certs");
}

TEST_F(Listening, OnesOwnCertificatesGoAnywhere) {
  for (const char* host : kWide) EXPECT_TRUE(CheckListenHost(host, operators_)) << host;
}

}  // namespace
}  // namespace jobworker
