#include "daemon/identity.h"

#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/pem.h>

#include "tests/unit/certificates.h"
#include "tests/unit/temporary_directory.h"

namespace jobworker {
namespace {

using testing::Authority;
using testing::CertificateSpec;
using testing::Extensions;
using testing::Issue;
using testing::KeyedCertificate;
using testing::kServerExtensions;
using testing::kUserExtensions;
using testing::ListOf;

const Extensions kNoExtensions = {};
const Extensions kNoPurpose = {{"basicConstraints", "critical,CA:FALSE"}};
const Extensions kAuthorityForClients = {{"basicConstraints", "critical,CA:TRUE"}, {"extendedKeyUsage", "clientAuth"}};

Extensions WithSan(const char* san) {
  Extensions extensions = kUserExtensions;
  extensions.emplace_back("subjectAltName", san);
  return extensions;
}

const KeyedCertificate& Anchor() {
  static const KeyedCertificate authority = Authority("JobWorker CA");
  return authority;
}

using Names = std::vector<std::string_view>;

tl::expected<Identity, std::string> Identify(const std::string& pem, const Names& names, time_t now = time(nullptr)) {
  static const TrustAnchors anchors = *TrustAnchors::Parse(Anchor().Pem());
  auto user = IdentifyUser(pem, names, anchors, now);
  EXPECT_EQ(ERR_peek_error(), 0UL) << "left for gRPC to stumble over";
  return user;
}

// As gRPC calls it: it reports the first CN only.
tl::expected<Identity, std::string> Identify(const CertificateSpec& spec, const KeyedCertificate& issuer) {
  Names names;
  if (!spec.common_names.empty()) names.emplace_back(spec.common_names[0]);
  return Identify(Issue(spec, issuer).Pem(), names);
}

void ExpectRefused(const tl::expected<Identity, std::string>& user, const std::string& reason) {
  ASSERT_FALSE(user) << "let in as " << user->user;
  EXPECT_NE(user.error().find(reason), std::string::npos) << user.error();
}

struct Row {
  const char* name;
  CertificateSpec spec;
  std::string user;    // empty: refused
  std::string reason;  // a part of it
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

std::string Bytes(size_t count) { return std::string(count, 'a'); }

const std::string kTwo = "more than one common name";
const std::string kForm = "not a user name";

const std::vector<Row> kMatrix = {
    {"Good", {{"alice"}}, "alice", ""},
    {"NoBasicConstraints", {{"alice"}, {{"extendedKeyUsage", "clientAuth"}}}, "alice", ""},
    {"ClientAndServer", {{"alice"}, {{"extendedKeyUsage", "serverAuth,clientAuth"}}}, "alice", ""},
    {"LongestName", {{Bytes(32)}}, Bytes(32), ""},
    {"CarlWithSanAlice", {{"carl"}, WithSan("DNS:alice")}, "carl", ""},
    {"AliceWithSanCarl", {{"alice"}, WithSan("DNS:carl")}, "alice", ""},
    {"CarlWithMailAlice", {{"carl"}, WithSan("email:alice")}, "carl", ""},
    {"CarlWithUriAlice", {{"carl"}, WithSan("URI:spiffe://alice")}, "carl", ""},
    {"NoName", {{}}, "", "no common name"},
    {"NoNameButSan", {{}, WithSan("DNS:alice")}, "", "no common name"},
    {"TwoNames", {{"carl", "alice"}}, "", kTwo},
    {"SameNameTwice", {{"alice", "alice"}}, "", kTwo},
    {"EmptyThenAlice", {{"", "alice"}}, "", kTwo},
    {"EmptyName", {{""}}, "", kForm},
    {"Slash", {{"alice/bob"}}, "", kForm},
    {"DotDot", {{".."}}, "", kForm},
    {"Path", {{"../../etc"}}, "", kForm},
    {"Nul", {{std::string("alice\0.evil", 11)}}, "", kForm},
    {"LastNul", {{std::string("alice\0", 6)}}, "", kForm},
    {"Newline", {{"alice\n"}}, "", kForm},
    {"EscapeCode", {{"alice\x1b[2J"}}, "", kForm},
    {"ZeroWidthSpace", {{"alice\xe2\x80\x8b"}}, "", kForm},
    {"UpperCase", {{"Alice"}}, "", kForm},
    {"Blank", {{" alice"}}, "", kForm},
    {"DigitFirst", {{"1alice"}}, "", kForm},
    {"DashFirst", {{"-rf"}}, "", kForm},
    {"Bytes33", {{Bytes(33)}}, "", kForm},
    {"Bytes65", {{Bytes(65)}}, "", kForm},
    {"Bytes60000", {{Bytes(60000)}}, "", kForm},
    {"NoExtensionsAtAll", {{"alice"}, kNoExtensions}, "", "not for client authentication"},
    {"NoExtendedKeyUsage", {{"alice"}, kNoPurpose}, "", "not for client authentication"},
    {"ForServers", {{"alice"}, kServerExtensions}, "", "not for client authentication"},
    {"ForAnything", {{"alice"}, {{"extendedKeyUsage", "anyExtendedKeyUsage"}}}, "", "not for client authentication"},
    {"KeyUsageWithoutSignature",
     {{"alice"}, {{"keyUsage", "critical,keyEncipherment"}, {"extendedKeyUsage", "clientAuth"}}},
     "",
     "certificate purpose"},
    {"UnknownCritical",
     {{"alice"}, {{"extendedKeyUsage", "clientAuth"}, {"1.2.3.4", "critical,DER:0500"}}},
     "",
     "refused: unhandled critical extension"},
    {"LeafThatIsAnAuthority", {{"alice"}, kAuthorityForClients}, "", "an authority's certificate"},
    {"Expired", {{"alice"}, kUserExtensions, -7200, -1}, "", "refused: certificate has expired"},
    {"NotYetValid", {{"alice"}, kUserExtensions, 3600, 7200}, "", "refused: certificate is not yet valid"},
};

class Matrix : public ::testing::TestWithParam<Row> {};

TEST_P(Matrix, IsDecidedAsWritten) {
  const Row& row = GetParam();
  const auto user = Identify(row.spec, Anchor());
  if (row.user.empty()) {
    ExpectRefused(user, row.reason);
  } else {
    ASSERT_TRUE(user) << user.error();
    EXPECT_EQ(user->user, row.user);
  }
}

INSTANTIATE_TEST_SUITE_P(Certificates, Matrix, ::testing::ValuesIn(kMatrix),
                         [](const auto& row) { return std::string(row.param.name); });

TEST(Identity, NoCertificate) { ExpectRefused(Identify("", {}), "no client certificate"); }

TEST(Identity, NotACertificate) {
  ExpectRefused(Identify("alice", {"alice"}), "cannot be read");
  const std::string pem = Issue({{"alice"}}, Anchor()).Pem();
  ExpectRefused(Identify(pem.substr(0, pem.size() / 2), {"alice"}), "cannot be read");
  ExpectRefused(Identify(Anchor().KeyPem(), {"alice"}), "cannot be read");
}

TEST(Identity, BytesChangedAfterSigning) {
  unsigned char* der = nullptr;
  const int size = i2d_X509(Issue({{"malice"}}, Anchor()).certificate.get(), &der);
  std::string bytes(reinterpret_cast<const char*>(der), static_cast<size_t>(size));
  OPENSSL_free(der);
  bytes.replace(bytes.find("malice"), 6, "aalice");
  const auto* changed = reinterpret_cast<const unsigned char*>(bytes.data());
  const KeyedCertificate leaf{{d2i_X509(nullptr, &changed, size), X509_free}, nullptr};
  ExpectRefused(Identify(leaf.Pem(), {"aalice"}), "refused: certificate signature failure");
}

// gRPC's view of the name must be the certificate's, byte for byte, and the only one.
TEST(Identity, NameThatTheTlsLibraryReadDifferently) {
  const std::string pem = Issue({{"carl"}}, Anchor()).Pem();
  for (const Names& names : {Names{"alice"}, Names{}, Names{"carl", "carl"}, Names{"carl", "alice"}, Names{"Carl"},
                             Names{std::string_view("carl\0", 5)}, Names{""}}) {
    ExpectRefused(Identify(pem, names), "ambiguous");
  }
  EXPECT_TRUE(Identify(pem, {"carl"}));
}

TEST(Identity, SelfSigned) {
  const auto user = Identify(testing::SelfSigned({{"alice"}}).Pem(), {"alice"});
  ExpectRefused(user, "refused: self");  // "self-signed", "self signed"
  ExpectRefused(user, "signed certificate");
}

TEST(Identity, ForeignAuthority) {
  ExpectRefused(Identify({{"alice"}}, Authority("Another CA")), "refused: unable to get local issuer certificate");
}

TEST(Identity, ForeignAuthorityOfTheSameName) {
  ExpectRefused(Identify({{"alice"}}, Authority("JobWorker CA")), "refused: certificate signature failure");
}

TEST(Identity, ChainThroughAnAuthorityOfOurs) {
  const KeyedCertificate middle = Issue({{"middle"}, testing::kAuthorityExtensions}, Anchor());
  ExpectRefused(Identify({{"bob"}}, middle), "refused: unable to get local issuer certificate");
  const std::string leaf = Issue({{"bob"}}, middle).Pem();
  ExpectRefused(Identify(leaf + middle.Pem(), {"bob"}), "refused: unable to get local issuer certificate");
}

TEST(Identity, ChainThroughAUser) {
  const KeyedCertificate alice = Issue({{"alice"}, kAuthorityForClients}, Anchor());
  ExpectRefused(Identify({{"bob"}}, alice), "refused: unable to get local issuer certificate");
}

TEST(Identity, TheAuthorityItself) {
  const KeyedCertificate authority = testing::SelfSigned({{"alice"}, kAuthorityForClients});
  const auto anchors = TrustAnchors::Parse(authority.Pem());
  ASSERT_TRUE(anchors) << anchors.error();
  ExpectRefused(IdentifyUser(authority.Pem(), {"alice"}, *anchors, time(nullptr)), "an authority's certificate");
}

// What keeps a resumed session from outliving its certificate: the same bytes, later.
TEST(Identity, ExpiresWhileInUse) {
  const std::string pem = Issue({{"alice"}, kUserExtensions, -60, 60}, Anchor()).Pem();
  const time_t now = time(nullptr);
  EXPECT_TRUE(Identify(pem, {"alice"}, now));
  EXPECT_TRUE(Identify(pem, {"alice"}, now + 50));
  ExpectRefused(Identify(pem, {"alice"}, now + 70), "certificate has expired");
  ExpectRefused(Identify(pem, {"alice"}, now - 70), "certificate is not yet valid");
}

TEST(Identity, AuthorityExpiresWhileInUse) {
  const KeyedCertificate authority = testing::SelfSigned({{"CA"}, testing::kAuthorityExtensions, -60, 60});
  const auto anchors = TrustAnchors::Parse(authority.Pem());
  const std::string pem = Issue({{"alice"}}, authority).Pem();
  const auto user = IdentifyUser(pem, {"alice"}, *anchors, time(nullptr));
  ASSERT_TRUE(user) << user.error();
  EXPECT_EQ(user->validity.until, CertificateEnd(authority.Pem()));
  ExpectRefused(IdentifyUser(pem, {"alice"}, *anchors, time(nullptr) + 70), "certificate has expired");
}

// The second, at which a kept answer and a new one must not differ.
TEST(Identity, EndsInItsLastSecondWhetherItIsKnownOrNot) {
  const time_t now = time(nullptr);
  const std::string pem = Issue({{"alice"}, kUserExtensions, -60, 60}, Anchor()).Pem();
  const time_t end = CertificateEnd(pem);
  ExpectRefused(Identify(pem, {"alice"}, end), "certificate has expired");
  ExpectRefused(Identify(pem, {"alice"}, end - 121), "certificate is not yet valid");
  const auto first = Identify(pem, {"alice"}, now), known = Identify(pem, {"alice"}, end - 1);
  ASSERT_TRUE(first && known);
  EXPECT_EQ(first->validity.until, end);
  EXPECT_EQ(known->validity.until, end);
  EXPECT_TRUE(Identify(pem, {"alice"}, end - 120));
  ExpectRefused(Identify(pem, {"alice"}, end), "certificate has expired");
  ExpectRefused(Identify(pem, {"alice"}, end - 121), "certificate is not yet valid");
}

TEST(Identity, AKnownCertificateStillHasOneName) {
  const std::string pem = Issue({{"alice"}}, Anchor()).Pem();
  ASSERT_TRUE(Identify(pem, {"alice"}));
  for (const Names& names : {Names{}, Names{"bob"}, Names{"alice", "bob"}, Names{"alice", "alice"}}) {
    ExpectRefused(Identify(pem, names), "ambiguous");
  }
}

TEST(Identity, WhatOneAuthorityKnowsIsNothingToAnother) {
  const KeyedCertificate other = Authority("JobWorker CA");
  const auto others = TrustAnchors::Parse(other.Pem());
  const std::string pem = Issue({{"alice"}}, Anchor()).Pem();
  ASSERT_TRUE(Identify(pem, {"alice"}));
  EXPECT_FALSE(IdentifyUser(pem, {"alice"}, *others, time(nullptr)));
  EXPECT_FALSE(IdentifyUser(pem, {"alice"}, *TrustAnchors::Parse(other.Pem()), time(nullptr)));
}

TEST(Identity, OnlyWhatWasLetInIsKnown) {
  const auto anchors = TrustAnchors::Parse(Anchor().Pem());
  const time_t now = time(nullptr);
  const KeyedCertificate other = Authority("Another CA");
  EXPECT_FALSE(IdentifyUser(Issue({{"alice"}}, other).Pem(), {"alice"}, *anchors, now));
  EXPECT_FALSE(IdentifyUser(Issue({{"alice"}, kServerExtensions}, Anchor()).Pem(), {"alice"}, *anchors, now));
  EXPECT_FALSE(IdentifyUser(Issue({{"alice", "bob"}}, Anchor()).Pem(), {"alice"}, *anchors, now));
  EXPECT_FALSE(IdentifyUser(Issue({{"alice"}, kUserExtensions, -60, -1}, Anchor()).Pem(), {"alice"}, *anchors, now));
  EXPECT_EQ(anchors->known().size(), 0U);
  EXPECT_TRUE(IdentifyUser(Issue({{"alice"}}, Anchor()).Pem(), {"alice"}, *anchors, now));
  EXPECT_EQ(anchors->known().size(), 1U);
}

class Lists : public ::testing::Test {
 protected:
  // By authorities that have signed `lists`.
  tl::expected<Identity, std::string> Identify(const KeyedCertificate& leaf, const std::string& lists,
                                               time_t now = time(nullptr)) const {
    auto anchors = TrustAnchors::Parse(Anchor().Pem() + other_.Pem());
    const auto added = anchors->AddRevoked(lists);
    if (!added) return tl::unexpected(added.error());
    return IdentifyUser(leaf.Pem(), {"alice"}, *anchors, now);
  }
  void ExpectBad(const std::string& lists, const std::string& why) const {
    const auto added = TrustAnchors::Parse(Anchor().Pem() + other_.Pem())->AddRevoked(lists);
    ASSERT_FALSE(added) << why;
    EXPECT_EQ(added.error(), why);
    EXPECT_EQ(ERR_peek_error(), 0UL);
  }

  const KeyedCertificate other_ = Authority("Another CA");
  const KeyedCertificate lost_ = Issue({{"alice"}}, Anchor());
  const KeyedCertificate good_ = Issue({{"alice"}}, Anchor());
};

TEST_F(Lists, WhatIsOnOneIsRefusedAndNothingElse) {
  ExpectRefused(Identify(lost_, ListOf({{lost_}}, Anchor())), "the certificate has been revoked");
  ExpectRefused(Identify(lost_, ListOf({{Issue({{"bob"}}, Anchor()), lost_}}, Anchor())), "revoked");
  EXPECT_TRUE(Identify(good_, ListOf({{lost_}}, Anchor())));
  EXPECT_TRUE(Identify(good_, ListOf({}, Anchor())));
  EXPECT_EQ(ERR_peek_error(), 0UL);
}

TEST_F(Lists, AreOfOneAuthorityEach) {
  const KeyedCertificate others = Issue({{"alice"}}, other_);
  ASN1_INTEGER_set(X509_get_serialNumber(others.certificate.get()), 7);
  X509_sign(others.certificate.get(), other_.key.get(), EVP_sha256());
  ExpectRefused(Identify(others, ListOf({{others}}, other_)), "revoked");
  EXPECT_TRUE(Identify(others, ListOf({{others}}, Anchor()))) << "a number of another authority's";
  EXPECT_TRUE(Identify(good_, ListOf({{good_}, {}, -60, -1}, other_))) << "its list is not needed";
  const std::string both = ListOf({{lost_}}, Anchor()) + "words between\n" + ListOf({{others}}, other_);
  ExpectRefused(Identify(others, both), "revoked");
  ExpectRefused(Identify(lost_, both), "revoked");
  EXPECT_TRUE(Identify(good_, both));
}

TEST_F(Lists, LetNobodyInBeforeTheirFirstSecondOrFromTheirLast) {
  const std::string list = ListOf({{lost_}, {}, -600, 600}, Anchor());
  auto anchors = *TrustAnchors::Parse(Anchor().Pem());
  ASSERT_TRUE(anchors.AddRevoked(list));
  const auto [from, until] = *anchors.ListsFor(good_.certificate.get());
  ASSERT_EQ(until - from, 1200);
  for (int i = 0; i < 2; ++i) {  // the second time it is known
    ExpectRefused(IdentifyUser(good_.Pem(), {"alice"}, anchors, from - 1), std::string(kListNotGood));
    ExpectRefused(IdentifyUser(good_.Pem(), {"alice"}, anchors, until), std::string(kListNotGood));
    EXPECT_TRUE(IdentifyUser(good_.Pem(), {"alice"}, anchors, from));
    const auto user = IdentifyUser(good_.Pem(), {"alice"}, anchors, until - 1);
    ASSERT_TRUE(user) << user.error();
    EXPECT_EQ(user->validity.until, until);
  }
  EXPECT_NE(anchors.ListProblem(from - 1).find("not valid yet"), std::string::npos);
  EXPECT_EQ(anchors.ListProblem(from), "");
  EXPECT_EQ(anchors.ListProblem(until - 1), "");
  EXPECT_NE(anchors.ListProblem(until).find("has run out; make a new one"), std::string::npos);
}

TEST_F(Lists, WhoIsOnOneIsNeverKnown) {
  auto anchors = *TrustAnchors::Parse(Anchor().Pem());
  ASSERT_TRUE(anchors.AddRevoked(ListOf({{lost_}}, Anchor())));
  EXPECT_FALSE(IdentifyUser(lost_.Pem(), {"alice"}, anchors, time(nullptr)));
  EXPECT_EQ(anchors.known().size(), 0U);
}

TEST_F(Lists, MustBeSignedByAnAuthorityThatMay) {
  const std::string unsigned_by_ours = "it has a list that no authority in ca.pem has signed";
  ExpectBad(ListOf({}, Authority("A third CA")), unsigned_by_ours);
  ExpectBad(ListOf({}, Authority("JobWorker CA")), unsigned_by_ours);
  ExpectBad(ListOf({}, Issue({{"JobWorker CA"}}, Anchor())), unsigned_by_ours);
  ExpectBad(ListOf({}, Anchor()) + ListOf({}, Authority("JobWorker CA")), unsigned_by_ours);
  const KeyedCertificate no_lists =
      testing::SelfSigned({{"CA"}, {{"basicConstraints", "critical,CA:TRUE"}, {"keyUsage", "critical,keyCertSign"}}});
  const auto added = TrustAnchors::Parse(no_lists.Pem())->AddRevoked(ListOf({}, no_lists));
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error(), unsigned_by_ours);
}

TEST_F(Lists, MustBeAsTheyWereSigned) {
  const std::string list = ListOf({{lost_}}, Anchor());
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new_mem_buf(list.data(), -1), &BIO_free);
  const std::unique_ptr<X509_CRL, decltype(&X509_CRL_free)> read(
      PEM_read_bio_X509_CRL(bio.get(), nullptr, nullptr, nullptr), &X509_CRL_free);
  unsigned char* der = nullptr;
  const int size = i2d_X509_CRL(read.get(), &der);
  der[size - 1] = static_cast<unsigned char>(der[size - 1] ^ 1);
  const std::unique_ptr<BIO, decltype(&BIO_free)> changed(BIO_new(BIO_s_mem()), &BIO_free);
  PEM_write_bio(changed.get(), "X509 CRL", "", der, size);
  OPENSSL_free(der);
  char* text = nullptr;
  const long length = BIO_get_mem_data(changed.get(), &text);
  ExpectBad(std::string(text, static_cast<size_t>(length)), "it has a list that no authority in ca.pem has signed");
}

TEST_F(Lists, MustBeWholeAndOfTheOneKind) {
  const std::string list = ListOf({{lost_}}, Anchor()), none = "it has no list of revoked certificates in PEM form";
  for (const std::string& text : {std::string(), std::string("no list"), Anchor().Pem(), Anchor().KeyPem()}) {
    ExpectBad(text, none);
  }
  for (const size_t size : {size_t{30}, list.size() / 2, list.size() - 3}) {
    ExpectBad(list.substr(0, size), "it has a list that cannot be read");
    ExpectBad(list + list.substr(0, size), "it has a list that cannot be read");
  }
  const std::string special = "it has a list that is not a plain one";
  ExpectBad(ListOf({{}, {{"issuingDistributionPoint", "critical,onlyuser:TRUE"}}}, Anchor()), special);
  ExpectBad(ListOf({{}, {{"2.5.29.20", "DER:020107"}, {"2.5.29.27", "critical,DER:020101"}}}, Anchor()), special);
  ExpectBad(ListOf({{}, {}, -60, std::nullopt}, Anchor()), "it has a list that does not say when it runs out");
  EXPECT_TRUE(Identify(good_, ListOf({{}, {{"2.5.29.20", "DER:020107"}}}, Anchor())));
}

TEST(KnownCertificates, HaveBounds) {
  KnownCertificates known;
  const std::string longest(KnownCertificates::kMaxPemBytes, 'x');
  known.Keep(longest, {"alice", {10, 20}});
  known.Keep(longest + "x", {"alice", {10, 20}});
  EXPECT_EQ(known.Find(longest, 10)->user, "alice");
  EXPECT_FALSE(known.Find(longest + "x", 10));
  for (size_t i = 1; i < KnownCertificates::kMost; ++i) known.Keep(std::to_string(i), {"bob", {10, 20}});
  EXPECT_EQ(known.size(), KnownCertificates::kMost);
  EXPECT_EQ(known.Find(longest, 19)->user, "alice");
  known.Keep("one more", {"bob", {10, 20}});
  EXPECT_EQ(known.size(), 1U);
  EXPECT_EQ(known.Find("one more", 19)->user, "bob");
}

TEST(TrustAnchors, SeveralAuthorities) {
  const KeyedCertificate other = Authority("Another CA");
  const auto anchors = TrustAnchors::Parse("words before\n" + Anchor().Pem() + "words between\n" + other.Pem());
  ASSERT_TRUE(anchors) << anchors.error();
  for (const KeyedCertificate* issuer : {&Anchor(), &other}) {
    EXPECT_TRUE(IdentifyUser(Issue({{"alice"}}, *issuer).Pem(), {"alice"}, *anchors, time(nullptr)));
  }
}

TEST(TrustAnchors, RefusesWhatItCannotUse) {
  const std::string good = Anchor().Pem();
  EXPECT_FALSE(TrustAnchors::Parse(""));
  EXPECT_FALSE(TrustAnchors::Parse("no certificate"));
  EXPECT_FALSE(TrustAnchors::Parse(Anchor().KeyPem()));
  EXPECT_FALSE(TrustAnchors::Parse(Issue({{"alice"}}, Anchor()).Pem()));
  EXPECT_FALSE(TrustAnchors::Parse(good + Issue({{"alice"}}, Anchor()).Pem()));
  EXPECT_FALSE(TrustAnchors::Parse(good + good.substr(0, good.size() / 2)));
  EXPECT_EQ(ERR_peek_error(), 0UL);
}

class Published : public ::testing::Test {
 protected:
  static tl::expected<Identity, std::string> IdentifyAt(const std::string& name, time_t now) {
    const std::string certs = SOURCE_DIR "/certs/";
    const auto anchors = TrustAnchors::Parse(testing::Contents(certs + "ca.pem"));
    return IdentifyUser(testing::Contents(certs + name + ".pem"), {name}, *anchors, now);
  }
};

TEST_F(Published, UsersAreTheirNames) {
  constexpr time_t kNineYears = 9 * 365 * 86400L;
  for (const char* name : {"alice", "bob", "carl"}) {
    const auto user = IdentifyAt(name, time(nullptr));
    ASSERT_TRUE(user) << user.error();
    EXPECT_EQ(user->user, name);
    EXPECT_TRUE(IdentifyAt(name, 1795440257 + kNineYears)) << "made in November 2026 for ten years";
  }
}

TEST_F(Published, ServerIsNoUser) { ExpectRefused(IdentifyAt("worker", time(nullptr)), "not for client"); }

}  // namespace
}  // namespace jobworker
