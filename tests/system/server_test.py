"""How the servers start, refuse to start, log and end; and that nothing is left of them, however they end."""

import glob
import os
import shutil
import signal
import socket
import unittest

import grpc

import certificates
import jobworker_testing as testing
from jobworker_testing import grpc

RUNAWAY = '(setsid sh -c "exec <&- >&- 2>&-; exec sleep 1000" &); echo ready; exec sleep 1000'


class ServerTest(unittest.TestCase):

    def setUp(self):
        self.site = self.enterContext(testing.Site())

    def start_jobs(self):
        """Two jobs of two users with processes that got away from them; returns alice's stream."""
        streams = [self.enterContext(self.site.client(user)).shell(RUNAWAY) for user in ('alice', 'bob')]
        for stream in streams:
            stream.read_until(b'ready\n')
        return streams[0]

    def assert_nothing_left(self):
        self.assertEqual(self.site.left_over(), [], self.site.logs())

    def assert_refused(self, flags, *words, **options):
        """The server does not start, says why in these words, and leaves nothing."""
        status, log = self.site.refused_server(*flags, **options)
        self.assertEqual(status, 1, log)
        for word in words:
            self.assertIn(word, log)
        self.assert_nothing_left()


class EndTest(ServerTest):

    def test_a_signal_ends_server_broker_and_jobs_in_good_order(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            server = self.site.start_server()
            stream = self.start_jobs()
            self.assertEqual(server.end(number), 0, server.log())
            self.assertNotEqual(testing.outcome(stream.finish)[0], grpc.StatusCode.OK)
            self.assert_nothing_left()

    def test_a_server_that_is_killed_leaves_nothing(self):
        server = self.site.start_server()
        self.start_jobs()
        self.assertEqual(server.end(signal.SIGKILL), -signal.SIGKILL)
        self.assert_nothing_left()

    def test_a_broker_that_is_killed_leaves_nothing_and_the_server_ends_with_an_error(self):
        server = self.site.start_server()
        self.start_jobs()
        _, broker = self.site.broker_pids()
        os.kill(broker, signal.SIGKILL)
        self.assertEqual(server.wait(), 1, server.log())
        self.assertIn('broker gone', server.log())
        self.assert_nothing_left()

    def test_a_guardian_that_is_killed_leaves_no_job(self):
        server = self.site.start_server()
        self.start_jobs()
        guardian, _ = self.site.broker_pids()
        os.kill(guardian, signal.SIGKILL)
        self.assertEqual(server.wait(), 1, server.log())
        # The broker may not remove the root itself: it has no right to write to the mount's own directory.
        self.assertEqual([path for path in os.scandir(self.site.cgroup_root) if path.is_dir()], [])
        os.rmdir(self.site.cgroup_root)
        self.assert_nothing_left()

    def test_a_site_can_be_used_again_and_counts_from_one(self):
        for _ in range(2):
            server = self.site.start_server()
            with self.site.client() as alice:
                self.assertEqual(alice.start(b'true').id, '1')
            self.assertEqual(server.end(), 0)


class StartTest(ServerTest):

    def flags(self, *more):
        return [*self.site.standalone_flags(), *more]

    def test_a_port_that_is_taken_is_refused(self):
        with socket.create_server(('127.0.0.1', 0)) as taken:
            port = taken.getsockname()[1]
            self.assert_refused(self.flags(f'--listen=127.0.0.1:{port}'), str(port), '--listen')

    def test_a_port_that_another_jobserver_has_is_refused_and_that_one_goes_on(self):
        first = self.site.start_server()
        other = self.enterContext(testing.Site())
        status, log = other.refused_server(*other.standalone_flags(), f'--listen=127.0.0.1:{self.site.port}')
        self.assertEqual((status, other.left_over()), (1, []), log)
        with self.site.client() as alice:
            self.assertEqual(alice.start(b'true').finish().exit_code, 0)
        self.assertEqual(first.end(), 0)

    def test_what_is_not_an_address_and_port_is_refused(self):
        for listen in ('127.0.0.1', ':57533', '127.0.0.1:65536', '127.0.0.1:x', '::1:57533', '127.0.0.1:'):
            self.assert_refused(self.flags(f'--listen={listen}'), '--listen')

    def test_without_the_broker_beside_it_it_says_what_is_missing(self):
        alone = shutil.copy(shutil.which('jobserver'), self.site.path('jobserver'))
        self.assert_refused(self.flags(), self.site.path('jobbroker'), program=alone)

    def test_without_root_it_asks_for_a_broker_socket(self):
        os.chown(f'{self.site.certs}/worker-key.pem', self.site.server_uid, -1)
        uid = str(self.site.server_uid)
        become = ['setpriv', '--reuid', uid, '--regid', uid, '--clear-groups']
        self.assert_refused(['--port-file=/dev/null'], 'root', '--broker-socket', become=become)

    def test_it_never_runs_as_root(self):
        for account in ('0:0', 'root', '0:1000', '1000:0', 'no-such-user', '-1:-1', '4294967295:4294967295'):
            self.assert_refused([f'--run-as={account}', *self.flags()[1:]], '--run-as')

    def test_a_missing_controller_is_refused_by_name_unless_the_operator_allows_it(self):
        with open(f'{testing.cgroup_mount()}/cgroup.controllers', encoding='utf-8') as file:
            missing = {'cpu', 'io', 'memory', 'pids'} - set(file.read().split())
        if not missing:
            self.skipTest('this kernel has every controller in cgroup v2')
        self.assert_refused(self.flags()[:-1], *missing, '--missing-controllers')

    def test_a_users_list_that_others_can_write_is_refused(self):
        for mode in (0o664, 0o646):
            os.chmod(self.site.users_file, mode)
            self.assert_refused(self.flags(), self.site.users_file, 'chmod')

    def test_a_users_list_that_is_not_roots_is_refused(self):
        os.chown(self.site.users_file, self.site.uids['alice'], -1)
        self.assert_refused(self.flags(), self.site.users_file, 'chown')

    def test_a_users_list_with_a_mistake_in_it_is_refused_with_its_line(self):
        good = f'alice uid={self.site.uids["alice"]} gid={self.site.uids["alice"]} dir={self.site.home("alice")}'
        bad_uids = ('0', '-1', '999', '4294967295', '4294969296', 'x')
        mistakes = [f'bob uid={uid} gid=2000 dir=/tmp/bob' for uid in bad_uids]
        mistakes += ['bob uid=2000 gid=0 dir=/tmp/bob', 'bob uid=2000 dir=/tmp/bob', 'bob uid=2000 gid=2000 dir=bob',
                     'bob uid=2000 gid=2000 dir=/tmp/bob cpu=', 'bob uid=2000 gid=2000 dir=/tmp/bob shell=/bin/sh',
                     '../bob uid=2000 gid=2000 dir=/tmp/bob', good]
        for mistake in mistakes:
            with self.subTest(mistake):
                self.site.write('users', f'# people\n{good}\n{mistake}\n')
                self.assert_refused(self.flags(), self.site.users_file, 'line 3')

    def test_a_private_key_that_others_can_read_is_refused(self):
        for name in ('worker', 'alice'):
            os.chmod(f'{self.site.certs}/{name}-key.pem', 0o640)
        self.assert_refused(self.flags(), 'worker-key.pem', 'chmod')
        self.site.port = 1
        run = self.site.cli('start', 'true')
        self.assertEqual(run.returncode, 125)
        self.assertRegex(run.stderr.decode(), r'alice-key\.pem.*chmod')

    def use_published_certificates(self):
        """Readable by all, as they are after a checkout."""
        for file in glob.glob(os.path.join(testing.SOURCE, 'certs/*.pem')):
            os.chmod(shutil.copy(file, self.site.certs), 0o644)

    def test_the_published_certificates_are_taken_as_they_are_on_loopback(self):
        self.use_published_certificates()
        server = self.site.start_server()
        self.assertEqual(self.site.cli('start', 'sh', '-c', 'exit 9').returncode, 9)
        self.assertEqual(self.site.cli('start', 'true', user='carl').returncode, 125)
        self.assertEqual(server.end(), 0)

    def test_the_published_certificates_are_refused_on_any_other_address(self):
        self.use_published_certificates()
        for listen in ('0.0.0.0:0', '[::]:0', '10.0.0.1:0', '[::ffff:127.0.0.1]:0', 'example.org:0'):
            self.assert_refused(self.flags(f'--listen={listen}'), 'published', 'scripts/make-certs')

    def test_other_certificates_are_not_tied_to_loopback(self):
        self.assertEqual(self.site.start_server('--listen=0.0.0.0:0').end(), 0)

    def test_missing_certificates_are_named(self):
        for name in ('ca.pem', 'worker.pem', 'worker-key.pem'):
            path = f'{self.site.certs}/{name}'
            os.rename(path, path + '.away')
            self.assert_refused(self.flags(), path)
            os.rename(path + '.away', path)


class LogTest(ServerTest):

    def test_every_event_is_one_line_and_hostile_text_cannot_make_another(self):
        hostile = b'\n\rjobserver: job started user=root job=1 \x1b[2J\xff%n\xe2\x80\xae'
        server = self.site.start_server()
        with self.site.client() as alice:
            alice.start(b'sh', b'-c', b'exit 3', hostile).finish()
            code, _ = testing.outcome(lambda: alice.start(b'/' + hostile))
            self.assertEqual(code, grpc.StatusCode.FAILED_PRECONDITION)
        stranger = certificates.issue(self.site.authority, 'x\njobserver: allowed user=alice')
        with self.site.client(stranger) as client:
            self.assertEqual(testing.outcome(lambda: client.query('1'))[0], grpc.StatusCode.UNAUTHENTICATED)
        self.assertEqual(server.end(), 0)
        for line in server.lines:
            self.assertRegex(line, r'^job(server|broker): [\x20-\x7e]+$')
        events = {'allowed method=JobStart user=alice': 2, 'denied method=JobQuery user=-': 1,
                  'job started user=alice job=1': 1, 'job ended user=alice job=1 code=3': 1,
                  'job not started user=alice': 1, 'listening address=127.0.0.1:': 1, 'stopped': 1,
                  'job started user=root': 0, 'allowed user=': 0}
        for event, count in events.items():
            found = [line for line in server.lines if line.startswith(f'jobserver: {event}')]
            self.assertEqual(len(found), count, f'{event}\n{server.log()}')


class DeployedTest(ServerTest):
    """The broker by itself, and a front end that is never root."""

    def setUp(self):
        super().setUp()
        self.socket = self.site.path('broker.socket')
        os.chown(f'{self.site.certs}/worker-key.pem', self.site.server_uid, -1)
        os.chown(self.site.write('port', ''), self.site.server_uid, -1)
        self.start_broker()
        self.addCleanup(self.end_all)

    def start_broker(self):
        self.broker = self.site.run([shutil.which('jobbroker'), f'--socket={self.socket}',
                                     f'--peer={self.site.server_uid}', *self.site.standalone_flags()[1:]])
        self.broker.wait_for_line('^jobbroker: waiting for a front end')

    def become(self, uid):
        return ['setpriv', '--reuid', str(uid), '--regid', str(uid), '--clear-groups', '--no-new-privs']

    def start_front_end(self):
        return self.site.start_server(f'--broker-socket={self.socket}', become=self.become(self.site.server_uid))

    def end_all(self):
        if self.broker.process.poll() is None:
            self.assertEqual(self.broker.end(), 0, self.broker.log())
        if self.site.server is not None and self.site.server.process.poll() is None:
            self.assertEqual(self.site.server.end(), 0, self.site.server.log())
        self.assert_nothing_left()
        self.assertFalse(os.path.exists(self.socket))

    def test_jobs_and_their_numbers_outlive_a_front_end_that_is_killed(self):
        front_end = self.start_front_end()
        release = self.enterContext(testing.contextlib.closing(self.site.fifo()))
        with self.site.client() as alice:
            self.assertEqual(alice.start(b'sh', b'-c', b'exit 5').finish().exit_code, 5)
            alice.shell('echo ready; read word <"$1"; echo "$word"; exit 6', release.path).read_until(b'ready\n')
            alice.start(b'sleep', b'1000')
        with self.site.client('bob') as bob:
            self.assertEqual(bob.start(b'true').finish().exit_code, 0)
        self.assertEqual(front_end.end(signal.SIGKILL), -signal.SIGKILL)
        second = self.start_front_end()
        with self.site.client() as alice:
            self.assertEqual(alice.query('1').finish().exit_code, 5)
            follower = alice.query('2')
            release.write_line(b'still here')
            self.assertEqual(follower.finish().exit_code, 6)
            self.assertTrue(follower.stdout.endswith(b'still here\n'))
            self.assertEqual(alice.stop('3').end.signal, signal.SIGTERM)
            self.assertEqual(alice.start(b'true').id, '4')
        with self.site.client('bob') as bob:
            self.assertEqual(bob.start(b'true').id, '2')
        self.assertEqual(second.end(), 0, second.log())

    def test_a_front_end_that_ends_in_good_order_leaves_the_jobs_running(self):
        front_end = self.start_front_end()
        with self.site.client() as alice:
            job = alice.start(b'sleep', b'1000').id
        self.assertEqual(front_end.end(), 0)
        self.assertEqual(len(testing.processes_of({self.site.uids['alice']})), 1)
        second = self.start_front_end()
        with self.site.client() as alice:
            self.assertTrue(alice.stop(job).end.stopped)
        self.assertEqual(second.end(), 0)

    def test_a_broker_that_ends_ends_the_jobs_and_the_front_end_goes_on_with_the_next_one(self):
        self.check_another_broker(lambda: self.assertEqual(self.broker.end(), 0, self.broker.log()))

    def test_a_broker_that_is_killed_ends_the_jobs_and_the_front_end_goes_on_with_the_next_one(self):
        self.check_another_broker(lambda: self.assertEqual(self.broker.end(signal.SIGKILL), -signal.SIGKILL))

    def check_another_broker(self, end_broker):
        front_end = self.start_front_end()
        with self.site.client() as alice:
            self.assertEqual(alice.start(b'sh', b'-c', b'echo kept; exit 3').finish().exit_code, 3)
            running = alice.start(b'sh', b'-c', b'echo said; exec sleep 1000')
            running.read_until(b'said\n')
            end_broker()
            front_end.wait_for_line('broker gone')
            self.assertEqual(testing.processes_of({self.site.uids['alice']}), [])
            self.assertEqual(testing.outcome(lambda: alice.start(b'true'))[0], grpc.StatusCode.UNAVAILABLE)
            again = alice.query('1')
            self.assertEqual((again.finish().exit_code, again.stdout), (3, b'kept\n'))
            self.start_broker()
            # No broker saw its end, so none is invented.
            end = running.finish()
            self.assertEqual((end.cause, end.reason), (alice.messages.JobEnd.UNKNOWN, alice.messages.JobEnd.LOST))
            job = alice.start(b'true')
            self.assertEqual((job.id, job.finish().exit_code), ('3', 0))

    def test_only_the_uid_of_peer_is_let_in(self):
        stranger = self.site.uids['carl']
        for file in (f'{self.site.certs}/worker-key.pem', self.site.path('port')):
            os.chown(file, stranger, -1)
        refused = self.site.start_server(f'--broker-socket={self.socket}', become=self.become(stranger))
        refused.wait_for_line(f'broker away socket={self.socket}')
        with self.site.client() as alice:
            self.assertEqual(testing.outcome(lambda: alice.start(b'true'))[0], grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(refused.end(), 0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as root:
            root.settimeout(testing.HANG)
            root.connect(self.socket)
            self.assertEqual(root.recv(1), b'')
        self.broker.wait_for_line(r'refused uid=0 .*wrong uid')

    def test_a_second_front_end_is_refused_until_the_first_has_gone(self):
        first = self.start_front_end()
        with self.site.client() as alice:
            second = self.start_front_end()
            second.wait_for_line('broker away .*another jobserver is connected')
            self.assertEqual(alice.start(b'true').finish().exit_code, 0)
        self.assertEqual(first.end(), 0)
        second.wait_for_line('broker met')
        with self.site.client() as alice:
            self.assertEqual(alice.start(b'true').finish().exit_code, 0)

    def test_a_front_end_waits_for_a_broker_that_is_not_there_yet(self):
        self.assertEqual(self.broker.end(), 0)
        front_end = self.start_front_end()
        front_end.wait_for_line('broker away .*is jobbroker running')
        with self.site.client() as alice:
            for call in (lambda: alice.start(b'true'), lambda: alice.query('1').finish(), lambda: alice.stop('1')):
                self.assertEqual(testing.outcome(call)[0], grpc.StatusCode.UNAVAILABLE)
            self.start_broker()
            front_end.wait_for_line('broker met')
            self.assertEqual(alice.start(b'true').finish().exit_code, 0)


if __name__ == '__main__':
    testing.main()
