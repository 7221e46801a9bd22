"""Certificates, the list of revoked ones, policy and limits: as the server finds them, and as they change under it."""

import contextlib
import datetime
import os
import signal
import socket
import ssl
import threading
from concurrent import futures

import certificates
import jobworker_testing as testing
from api_testing import Api
from certificates import DAY, SERVER, issue, make_authority, make_list, make_server, utc_now
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

    def replace(self, name, content, mode=0o644):
        """As jobworker-certs does it: the file is there as a whole."""
        new = f'{self.site.certs}/.{name}.new'
        with open(os.open(new, os.O_WRONLY | os.O_CREAT, mode), 'wb') as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            os.fchown(file.fileno(), self.site.server_uid, -1)
        os.rename(new, f'{self.site.certs}/{name}')

    def write_list(self, *revoked, authority=None, **times):
        self.replace('crl.pem', make_list(authority or self.site.authority, *revoked, **times))

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


class ChangeTest(ReloadTest):

    def setUp(self):
        super().setUp()
        # The server's own, as jobworker-certs --install leaves it.
        os.chown(f'{self.site.certs}/worker-key.pem', self.site.server_uid, -1)
        self.start_server()

    def show(self, worker):
        self.replace('worker-key.pem', worker.key_pem(), 0o600)
        self.replace('worker.pem', worker.pem())

    def shown(self):
        """The certificate that the server shows to a new connection."""
        certificates.save(self.site.directory, 'client', self.alice)
        context = ssl.create_default_context(cafile=f'{self.site.certs}/ca.pem')
        context.load_cert_chain(self.site.path('client.pem'), self.site.path('client-key.pem'))
        with socket.create_connection(('127.0.0.1', self.site.port)) as connection:
            with context.wrap_socket(connection, server_hostname='localhost') as tls:
                return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)).encode()

    def wait_for_change(self, files, nth=1):
        self.server.wait_for_line(f'certificates changed files="?{files}"?( |$)', nth)

    def assert_kept(self, reason):
        """What is there now is not used, and the log says why."""
        self.server.wait_for_line(f'certificates kept reason="{reason}')
        self.assertEqual(self.shown(), self.worker.pem())
        self.assert_in('bob')


class NewCertificatesTest(ChangeTest):

    def test_a_new_pair_is_shown_and_no_stream_or_call_notices(self):
        rounds, numbers = 3, b''.join(b'%d\n' % number for number in range(1, 100_001))
        fifo = self.enterContext(contextlib.closing(self.site.fifo()))
        alice = self.enterContext(self.site.client(self.alice))
        job = alice.shell('while read word <"$1" && [ "$word" = go ]; do seq 100000; done', fifo.path)
        reader = threading.Thread(target=job.finish)
        reader.start()
        ended, codes = threading.Event(), set()
        bob = self.enterContext(self.site.client('bob'))

        def call():
            while not ended.is_set():
                codes.add(testing.outcome(lambda: bob.query(NO_SUCH_JOB)))
        caller = threading.Thread(target=call)
        caller.start()
        for number in range(1, rounds + 1):
            fifo.write_line()
            worker = make_server(self.site.authority)
            self.show(worker)
            self.wait_for_change('worker.pem worker-key.pem', number)
            self.assertEqual(self.shown(), worker.pem())
        ended.set()
        caller.join()
        fifo.write_line(b'end')
        reader.join()
        self.assertEqual(job.end.exit_code, 0)
        self.assertEqual(job.stdout, numbers * rounds)
        self.assertEqual({code for code, _ in codes}, {Code.NOT_FOUND}, codes)

    def test_a_new_authority_lets_in_its_users_and_no_others(self):
        old = self.site.authority
        with self.site.client(self.alice) as client:
            self.assertEqual(testing.outcome(lambda: client.query(NO_SUCH_JOB))[0], Code.NOT_FOUND)
            self.site.authority = make_authority('Next CA')
            self.replace('ca.pem', old.pem() + self.site.authority.pem())
            self.wait_for_change('ca.pem')
            self.assertEqual(testing.outcome(lambda: client.query(NO_SUCH_JOB))[0], Code.NOT_FOUND)
            self.replace('ca.pem', self.site.authority.pem())
            self.show(make_server(self.site.authority))
            self.wait_for_change('(ca.pem )?worker.pem worker-key.pem')
            code, details = testing.outcome(lambda: client.query(NO_SUCH_JOB))
            self.assertEqual(code, Code.UNAUTHENTICATED, details)
        self.assert_in('alice')
        self.assertEqual(self.probe(self.alice)[0], Code.UNAVAILABLE)

    def test_links_that_are_exchanged_are_followed(self):
        for name in ('ca.pem', 'worker.pem', 'worker-key.pem'):
            os.renames(f'{self.site.certs}/{name}', f'{self.site.certs}/..1/{name}')
            os.symlink(f'..data/{name}', f'{self.site.certs}/{name}')
        os.symlink('..1', f'{self.site.certs}/..data')
        worker = make_server(self.site.authority)
        os.mkdir(f'{self.site.certs}/..2')
        certificates.save(f'{self.site.certs}/..2', 'worker', worker)
        os.chown(f'{self.site.certs}/..2/worker-key.pem', self.site.server_uid, -1)
        with open(f'{self.site.certs}/..2/ca.pem', 'wb') as file:
            file.write(self.site.authority.pem())
        os.symlink('..2', f'{self.site.certs}/..new')
        os.rename(f'{self.site.certs}/..new', f'{self.site.certs}/..data')
        self.wait_for_change('worker.pem worker-key.pem')
        self.assertEqual(self.shown(), worker.pem())


class BadCertificatesTest(ChangeTest):

    def setUp(self):
        super().setUp()
        self.worker = certificates.load(self.site.certs, 'worker')

    def test_bad_files_keep_the_old_set_and_the_log_says_why(self):
        certs, now = self.site.certs, utc_now()
        other = make_server(self.site.authority)
        self.replace('worker.pem', other.pem())
        self.assert_kept(f'{certs}/worker-key.pem is not the unencrypted private key of {certs}/worker.pem; take the two')
        self.replace('worker.pem', other.pem()[:200])
        self.assert_kept(f'{certs}/worker.pem is not a certificate in PEM form')
        self.show(issue(self.site.authority, 'worker', usages=(SERVER,), starts=now - 2 * DAY, ends=now - DAY))
        self.assert_kept(f'{certs}/worker.pem: it has expired; make a new one with jobworker-certs DIR --renew worker')
        self.show(self.worker)
        self.replace('ca.pem', self.site.authority.pem() + self.site.authority.pem()[:200])
        self.server.wait_for_line(f'certificates kept reason="{certs}/ca.pem: it has a certificate that cannot be read')
        self.assert_in('alice')
        self.replace('ca.pem', self.site.authority.pem())
        self.replace('worker-key.pem', self.worker.key_pem(), 0o640)
        self.assert_kept(f'{certs}/worker-key.pem is a private key that others can read; run: chmod 600 ')
        os.chmod(f'{certs}/worker-key.pem', 0o600)
        self.write_list(authority=make_authority('Other CA'))
        self.assert_kept(f'{certs}/crl.pem: it has a list that no authority in ca.pem has signed')
        self.write_list(self.alice, ends=now - DAY / 2)
        self.assert_kept(f'{certs}/crl.pem: its list has run out; make a new one with jobworker-certs DIR --crl')
        self.assertNotIn('certificates changed', self.server.log())
        self.write_list(self.alice)
        self.wait_for_change('crl.pem')
        self.assert_kept_out(self.alice, 'revoked')

    def test_a_failure_is_said_once(self):
        self.replace('ca.pem', b'none')
        self.server.wait_for_line('certificates kept reason=".*ca.pem')
        self.replace('note', b'any other file')
        self.replace('worker.pem', b'none')
        self.server.wait_for_line('certificates kept reason=".*worker.pem')
        self.replace('ca.pem', self.site.authority.pem())
        self.show(make_server(self.site.authority))
        self.wait_for_change('worker.pem worker-key.pem')
        self.assertEqual(self.server.log().count('certificates kept'), 2)


class RevokedTest(ChangeTest):

    def test_who_is_revoked_is_refused_on_the_next_call_until_the_list_is_another(self):
        with self.site.client(self.alice) as client:
            query = lambda: testing.outcome(lambda: client.query(NO_SUCH_JOB))
            self.assertEqual(query()[0], Code.NOT_FOUND)
            self.write_list(self.alice)
            self.wait_for_change('crl.pem')
            code, details = query()
            self.assertEqual(code, Code.UNAUTHENTICATED)
            self.assertIn('the certificate has been revoked', details)
            self.assert_in('alice')
            os.unlink(f'{self.site.certs}/crl.pem')
            self.server.wait_for_line('list kept reason=".*/crl.pem is gone: who was on it is kept out until')
            self.assertEqual(query()[0], Code.UNAUTHENTICATED)
            self.write_list()
            self.wait_for_change('crl.pem', 2)
            self.assertEqual(query()[0], Code.NOT_FOUND)


    def test_open_calls_of_who_is_revoked_end_and_no_others(self):
        lost = self.enterContext(Api(self.site.channel(self.alice)))
        good = self.enterContext(Api(self.site.channel('alice')))
        fifo = self.enterContext(contextlib.closing(self.site.fifo()))
        job = lost.begin_shell('echo begun; read word <"$1"; echo "$word"', fifo.path, want_stdin=True)
        job.read_until(b'begun\n')
        other = good.follow(job.id)
        given = lost.input(job.id)
        given.put_and_read(data=b'x')
        waits = self.enterContext(futures.ThreadPoolExecutor()).submit(testing.outcome, lambda: list(lost.wait(job.id)))
        self.server.wait_for_line('allowed method=JobWait')
        self.write_list(self.alice)
        for code, details in (testing.outcome(job.finish), testing.outcome(lambda: list(given.answers)), waits.result()):
            self.assertEqual(code, Code.UNAUTHENTICATED, details)
            self.assertIn('the certificate has been revoked', details)
        given.half_close()
        for method in ('JobStart', 'JobInput', 'JobWait'):
            self.server.wait_for_line(rf'ended method={method} user=- peer=\S+ reason="the certificate has been revoked"')
        fifo.write_line(b'on')
        self.assertEqual(other.finish().exit_code, 0)
        self.assertEqual(other.stdout, b'begun\non\n')


class RunsOutTest(ReloadTest):

    def test_open_calls_end_with_their_certificate_and_their_job_runs_on(self):
        self.start_server()
        fifo = self.enterContext(contextlib.closing(self.site.fifo()))
        begun, seconds = False, 1
        while not begun:  # on a machine that is slow it may be over before the job has begun
            seconds *= 2
            self.assertLess(seconds, 100)
            ends = utc_now() + datetime.timedelta(seconds=seconds)
            brief = self.enterContext(Api(self.site.channel(issue(self.site.authority, 'alice', ends=ends))))
            job = brief.begin_shell('echo begun; read word <"$1"; echo "$word"', fifo.path)
            begun = testing.outcome(lambda: job.read_until(b'begun\n'))[0] == Code.OK
        code, details = testing.outcome(job.finish)
        self.assertEqual(code, Code.UNAUTHENTICATED, details)
        self.assertIn('certificate has expired', details)
        self.server.wait_for_line(r'ended method=JobStart user=- peer=\S+ reason="the certificate is refused: certificate has')
        follower = self.enterContext(Api(self.site.channel('alice'))).follow(job.id)
        fifo.write_line(b'on')
        self.assertEqual(follower.finish().exit_code, 0)
        self.assertEqual(follower.stdout, b'begun\non\n')


class KeyOfRootTest(ReloadTest):

    def test_all_but_the_key_is_taken_up(self):
        self.start_server()
        self.server.wait_for_line('key kept reason=".*/worker-key.pem is closed to this account: a new one is for a '
                                  'restart to read"')
        self.write_list(self.alice)
        self.server.wait_for_line('certificates changed files=crl.pem')
        self.assert_kept_out(self.alice, 'revoked')
        self.replace('worker.pem', make_server(self.site.authority).pem())
        self.server.wait_for_line('certificates kept reason=".*/worker.pem has another key than before, and this account '
                                  'cannot read .*/worker-key.pem"')
        self.assert_in('alice')


class SighupTest(ReloadTest):

    def setUp(self):
        super().setUp()
        self.policy = self.site.write('policy', 'alice allow_start allow_stop allow_query\nbob allow_query\n')
        self.config = self.site.write('config', '[output]\nper-user = 1_048_576\n')
        self.start_server(f'--policy={self.policy}', f'--config={self.config}')
        self.api = self.enterContext(Api(self.site.channel(self.alice)))

    def reload(self, line, nth=1):
        self.server.send(signal.SIGHUP)
        self.server.wait_for_line(line, nth)

    def test_a_good_policy_and_limits_are_used_and_open_calls_asked_again(self):
        bob = self.enterContext(Api(self.site.channel('bob')))
        fifo = self.enterContext(contextlib.closing(self.site.fifo()))
        job = self.api.begin_shell('echo begun; read word <"$1"', fifo.path)
        job.read_until(b'begun\n')
        self.site.write('policy', 'alice allow_start allow_stop\nbob allow_query allow_start\n')
        self.site.write('config', '[output]\nper-user = 2_097_152\n')
        query = self.api.follow(job.id)
        self.reload('^jobserver: reloaded certificates="as before"')
        code, details = testing.outcome(query.finish)
        self.assertEqual(code, Code.PERMISSION_DENIED, details)
        self.assertIn("policy does not give allow_query to this user", details)
        self.server.wait_for_line('ended method=JobQuery user=alice')
        self.assertEqual(list(bob.who_am_i().rights), ['allow_start', 'allow_query'])
        self.assertEqual(bob.who_am_i().output_limit, 2_097_152)
        fifo.write_line()
        self.assertEqual(job.finish().exit_code, 0, 'who may start may follow what that began')

    def test_one_bad_file_keeps_all_of_the_old(self):
        self.site.write('policy', 'alice allow_everything\n')
        self.site.write('config', '[output]\nper-user = 2_097_152\n')
        self.reload(f"reload refused reason=\"policy file {self.policy}: line 1: 'allow_everything' is not a right")
        self.assertEqual(self.api.who_am_i().output_limit, 1_048_576)
        self.site.write('policy', 'bob allow_query\n')
        self.site.write('config', 'per-user = 1\n')
        self.reload(f'reload refused reason="configuration file {self.config}: line 1: there is no key per-user')
        self.assertEqual(len(self.api.who_am_i().rights), 3)
        self.site.write('config', '')
        self.site.write('policy', 'alice\n', mode=0o666)
        self.reload(f'reload refused reason="{self.policy} can be written by others')
        self.assertEqual(len(self.api.who_am_i().rights), 3)
        os.chmod(self.policy, 0o644)
        self.reload('^jobserver: reloaded ')
        self.assertEqual(list(self.api.who_am_i().rights), [])

    def test_a_list_that_is_gone_is_gone_after_a_reload(self):
        self.write_list(self.alice)
        self.server.wait_for_line('certificates changed files=crl.pem')
        self.assert_kept_out(self.alice, 'revoked')
        os.unlink(f'{self.site.certs}/crl.pem')
        self.reload('^jobserver: reloaded certificates=crl.pem')
        code, details = self.probe(self.alice)
        self.assertEqual(code, Code.NOT_FOUND, details)


if __name__ == '__main__':
    testing.main()
