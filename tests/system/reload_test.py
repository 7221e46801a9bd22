"""Certificates, the list of revoked ones, policy and limits: as the server finds them, and as they change under it."""

import jobworker_testing as testing
from certificates import DAY, issue, make_authority, make_list, utc_now
from jobworker_testing import grpc

Code = grpc.StatusCode
NO_SUCH_JOB = '18446744073709551615'


class ReloadTest(testing.unittest.TestCase):
    """A site, and what is in its files, for each test."""

    def setUp(self):
        self.site = self.enterContext(testing.Site())
        self.alice = issue(self.site.authority, 'alice')

    def start_server(self, *flags):
        self.server = self.site.start_server(*flags)
        self.addCleanup(self.end_server)

    def end_server(self):
        self.assertEqual(self.server.end(), 0, self.server.log())
        self.assertEqual(self.site.left_over(), [])

    def write_list(self, *revoked, authority=None, **times):
        with open(f'{self.site.certs}/crl.pem', 'wb') as file:
            file.write(make_list(authority or self.site.authority, *revoked, **times))

    def probe(self, identity):
        """The code and the message that a call is answered with: NOT_FOUND is in."""
        with self.site.channel(identity) as channel:
            return testing.outcome(lambda: testing.Client(channel).query(NO_SUCH_JOB))

    def assert_in(self, identity):
        code, details = self.probe(identity)
        self.assertEqual(code, Code.NOT_FOUND, details)

    def assert_kept_out(self, identity, words):
        code, details = self.probe(identity)
        self.assertEqual(code, Code.UNAUTHENTICATED, details)
        self.assertIn(words, details)


class AtStartTest(ReloadTest):

    def test_who_is_on_the_list_is_kept_out_and_nobody_else(self):
        self.write_list(issue(self.site.authority, 'bob'), self.alice)
        self.start_server()
        self.assert_kept_out(self.alice, 'no usable identity: the certificate has been revoked; use a certificate')
        self.assert_in('alice')
        self.assert_kept_out(self.alice, 'revoked')
        self.server.wait_for_line(r'denied method=JobQuery user=- peer=\S+ reason="the certificate has been revoked"')

    def test_a_list_that_has_run_out_keeps_all_out_and_says_what_to_do(self):
        self.write_list(ends=utc_now() - DAY / 2)
        self.start_server()
        self.server.wait_for_line(r'certificates that keep clients out reason=".*/crl.pem: its list has run out; make a '
                                  'new one with jobworker-certs DIR --crl --install"')
        for identity in (self.alice, 'bob'):
            self.assert_kept_out(identity, 'list of revoked certificates (crl.pem) has run out')
        self.server.wait_for_line(r'denied .*has to make a new one: jobworker-certs DIR --crl --install')

    def test_a_list_that_is_not_good_keeps_the_server_from_starting(self):
        self.write_list(authority=make_authority('Other CA'))
        status, log = self.site.refused_server(*self.site.standalone_flags())
        self.assertEqual(status, 1)
        self.assertRegex(log, '^jobserver: .*/crl.pem: it has a list that no authority in ca.pem has signed; make it')
        self.assertEqual(self.site.left_over(), [])


if __name__ == '__main__':
    testing.main()
