"""Who gets in: every certificate that must not, against the real server, and after each a good one that must."""

import contextlib
import datetime
import select
import socket
import ssl
import subprocess
import threading
import time

from cryptography import x509

import certificates
import jobworker_testing as testing
from certificates import DAY, SERVER, issue, make_authority, utc_now
from jobworker_testing import grpc

NO_SUCH_JOB = '18446744073709551615'
GOT_IN = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.OK)


def probe(channel):
    """The code that a call with a usable identity answers with: NOT_FOUND, or PERMISSION_DENIED for carl."""
    return testing.outcome(lambda: testing.Client(channel).query(NO_SUCH_JOB))[0]


class TlsBridge:
    """A plain port on loopback whose one connection goes on to the server through Python's TLS, so that a test has the
    TLS session in its hands."""

    def __init__(self, context, port, session=None):
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.tls = context.wrap_socket(socket.create_connection(('127.0.0.1', port)), server_hostname='localhost',
                                       session=session)
        self.channel = grpc.insecure_channel(f'127.0.0.1:{self._listener.getsockname()[1]}')
        self._thread = threading.Thread(target=self._pump)
        self._thread.start()

    def _pump(self):
        plain, _ = self._listener.accept()
        self.tls.setblocking(False)
        with plain, contextlib.suppress(OSError):
            while True:
                readable, _, _ = select.select([plain, self.tls], [], [], 0 if self.tls.pending() else None)
                if plain in readable:
                    data = plain.recv(65536)
                    if not data:
                        return
                    self.tls.sendall(data)
                if self.tls in readable or self.tls.pending():
                    with contextlib.suppress(ssl.SSLWantReadError):
                        data = self.tls.recv(65536)
                        if not data:
                            return
                        plain.sendall(data)

    def close(self):
        self.channel.close()
        # Nobody may ever have connected; then the pump still waits for somebody.
        with contextlib.suppress(OSError), socket.create_connection(self._listener.getsockname()):
            pass
        self._thread.join(testing.HANG)
        self.tls.close()
        self._listener.close()


class CertificatesTest(testing.SiteTest):

    def probe_as(self, identity):
        with self.site.channel(identity) as channel:
            return probe(channel)

    def assert_kept_out(self, description, identity):
        with self.subTest(description):
            code = self.probe_as(identity)
            self.assertIn(code, (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE))
            self.assertEqual(self.probe_as('alice'), grpc.StatusCode.NOT_FOUND, 'the next good call')

    def test_without_a_certificate_nobody_gets_in(self):
        self.assert_kept_out('no client certificate', None)

    def test_without_tls_nobody_gets_in(self):
        with grpc.insecure_channel(f'127.0.0.1:{self.site.port}') as channel:
            self.assertEqual(probe(channel), grpc.StatusCode.UNAVAILABLE)

    def test_certificates_of_other_authorities_do_not_get_in(self):
        self.assert_kept_out('another authority', issue(make_authority('Other CA'), 'alice'))
        self.assert_kept_out('another authority of the same name', issue(make_authority(), 'alice'))
        self.assert_kept_out('self-signed', issue(None, 'alice'))

    def test_certificates_out_of_their_time_do_not_get_in(self):
        now = utc_now()
        self.assert_kept_out('expired', issue(self.site.authority, 'alice', starts=now - 2 * DAY, ends=now - DAY))
        self.assert_kept_out('not yet valid', issue(self.site.authority, 'alice', starts=now + DAY, ends=now + 2 * DAY))

    def test_certificates_for_another_use_do_not_get_in(self):
        self.assert_kept_out('no extended key usage', issue(self.site.authority, 'alice', usages=()))
        self.assert_kept_out('for servers', issue(self.site.authority, 'alice', usages=(SERVER,)))
        self.assert_kept_out("the server's kind", certificates.make_server(self.site.authority))

    def test_common_names_that_are_not_user_names_do_not_get_in(self):
        bad = {
            'empty': '', 'slash': 'alice/bob', 'dots': '..', 'path': '../alice', 'NUL': 'alice\0.evil',
            'NUL at the end': 'alice\0', 'newline': 'alice\n', 'upper case': 'Alice', 'blank': 'alice ',
            'leading dash': '-alice', 'a letter that looks like a': '\u0430lice', 'zero width': 'ali\u200bce',
            'escape': '\x1b[2Jalice', '33 bytes': 'a' * 33, '65 bytes': 'a' * 65, '60000 bytes': 'a' * 60000,
        }
        for description, name in bad.items():
            self.assert_kept_out(description, issue(self.site.authority, name))

    def test_a_certificate_needs_exactly_one_common_name(self):
        self.assert_kept_out('missing', issue(self.site.authority))
        self.assert_kept_out('missing, with SAN=alice', issue(self.site.authority, sans=[x509.DNSName('alice')]))
        self.assert_kept_out('twice the same', issue(self.site.authority, 'alice', 'alice'))
        self.assert_kept_out('two', issue(self.site.authority, 'alice', 'bob'))
        self.assert_kept_out('two in one part', issue(self.site.authority, 'alice', 'bob', one_rdn=True))

    def test_authorities_do_not_get_in_and_vouch_for_nobody(self):
        leaf = issue(self.site.authority, 'alice', authority=True)
        self.assert_kept_out('CA:TRUE', leaf)
        self.assert_kept_out('through a leaf with CA:TRUE', issue(leaf, 'bob', chain=leaf.pem()))
        plain = issue(self.site.authority, 'alice')
        self.assert_kept_out('through a plain leaf', issue(plain, 'bob', chain=plain.pem()))
        self.assert_kept_out('the authority itself', self.site.authority)

    def test_the_name_is_the_common_name_and_not_an_alternative_one(self):
        carl = issue(self.site.authority, 'carl', sans=[x509.DNSName('alice'), x509.RFC822Name('alice')])
        self.assertEqual(self.probe_as(carl), grpc.StatusCode.PERMISSION_DENIED)
        alice = issue(self.site.authority, 'alice', sans=[x509.DNSName('carl'), x509.RFC822Name('carl')])
        self.assertEqual(self.probe_as(alice), grpc.StatusCode.NOT_FOUND)

    def test_the_longest_user_name_gets_in_as_itself(self):
        self.assertEqual(self.probe_as('a' * 32), grpc.StatusCode.PERMISSION_DENIED)

    def save(self, identity):
        certificates.save(self.site.directory, 'client', identity)
        return self.site.path('client.pem'), self.site.path('client-key.pem')

    def client_context(self, identity):
        context = ssl.create_default_context(cadata=self.site.authority.pem().decode())
        context.load_cert_chain(*self.save(identity))
        context.set_alpn_protocols(['h2'])
        return context

    def test_neither_a_resumed_session_nor_an_open_connection_outlives_its_certificate(self):
        ends = utc_now() + datetime.timedelta(seconds=6)
        context = self.client_context(issue(self.site.authority, 'alice', ends=ends))
        first = self.enterContext(contextlib.closing(TlsBridge(context, self.site.port)))
        self.assertEqual(probe(first.channel), grpc.StatusCode.NOT_FOUND, 'while it is valid')
        session = first.tls.session
        # The one wait for time in these tests: for the certificate's own last second to pass.
        time.sleep((ends + datetime.timedelta(seconds=1.5) - datetime.datetime.utcnow()).total_seconds())
        self.assertEqual(probe(first.channel), grpc.StatusCode.UNAUTHENTICATED, 'on the open connection')
        try:
            second = self.enterContext(contextlib.closing(TlsBridge(context, self.site.port, session)))
        except ssl.SSLError:
            return
        self.assertNotIn(probe(second.channel), GOT_IN, f'resumed={second.tls.session_reused}')

    def test_tls_1_2_is_refused_and_1_3_is_not(self):
        certificate, key = self.save(issue(self.site.authority, 'alice'))
        for version, accepted in {'-tls1_2': False, '-tls1_3': True}.items():
            shown = subprocess.run(
                ['openssl', 's_client', version, '-connect', f'127.0.0.1:{self.site.port}', '-cert', certificate,
                 '-key', key, '-CAfile', f'{self.site.certs}/ca.pem', '-alpn', 'h2'],
                stdin=subprocess.DEVNULL, capture_output=True, errors='replace', timeout=testing.HANG, check=False)
            self.assertEqual(shown.returncode == 0, accepted, shown.stdout + shown.stderr)
            self.assertEqual('Cipher is (NONE)' in shown.stdout, not accepted, shown.stdout + shown.stderr)

    def test_sslscan_finds_tls_1_3_and_nothing_older(self):
        certificate, key = self.save(issue(self.site.authority, 'alice'))
        command = ['sslscan', '--no-colour', f'--certs={certificate}', f'--pk={key}', f'127.0.0.1:{self.site.port}']
        shown = subprocess.run(command, capture_output=True, text=True, timeout=testing.HANG, check=False).stdout
        for version in ('SSLv2', 'SSLv3', 'TLSv1.0', 'TLSv1.1', 'TLSv1.2'):
            self.assertRegex(shown, rf'(?m)^{version}\s+disabled')
        self.assertRegex(shown, r'(?m)^TLSv1\.3\s+enabled')
        self.assertNotRegex(shown, r'(?m)^(Preferred|Accepted) +(SSL|TLSv1\.[012])')

    def test_a_hostile_name_cannot_forge_a_line_of_the_log(self):
        self.probe_as(issue(self.site.authority, 'alice\njobserver: allowed method=JobStart user=alice \x1b[2J'))
        self.probe_as('alice')
        line = self.server.wait_for_line(r'jobserver: allowed .*user=alice')
        self.assertRegex(line, r'^jobserver: allowed method=JobQuery user=alice peer=')
        for line in self.server.log().splitlines():
            self.assertRegex(line, r'^job(server|broker): [\x20-\x7e]*$')


if __name__ == '__main__':
    testing.main()
