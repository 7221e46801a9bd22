"""What happens to jobs, seen by a person with the command line client and by a program with the API."""

import os
import random
import re
import signal

import jobworker_testing as testing
from jobworker_testing import grpc

MIB = 1024 * 1024
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class CommandLineTest(testing.SiteTest):

    def assert_exit(self, status, *words, **options):
        """The client ends with this status; returns what it says itself."""
        run = self.site.cli(*words, **options)
        self.assertEqual(run.returncode, status, run.stderr)
        return run.stderr.decode()

    def test_the_exit_status_is_the_jobs(self):
        self.assert_exit(0, 'start', 'true')
        self.assert_exit(7, 'start', 'sh', '-c', 'exit 7')

    def test_a_job_that_a_signal_ends_gives_128_and_its_number(self):
        for name, number in {'TERM': 15, 'KILL': 9, 'SEGV': 11}.items():
            self.assert_exit(128 + number, 'start', 'sh', '-c', f'kill -{name} $$')

    def test_a_command_that_is_not_there_gives_127_and_the_path_tried(self):
        self.assertIn('/usr/local/bin:/usr/bin:/bin', self.assert_exit(127, 'start', 'no-such-program', 'word'))
        self.assertIn('/no/such/program', self.assert_exit(127, 'start', '/no/such/program'))

    def test_a_command_that_cannot_be_executed_gives_126_and_its_name(self):
        file = self.site.write('home/alice/plain-file', '#!/bin/sh\n')
        self.assertIn(file, self.assert_exit(126, 'start', file))
        self.assertIn('/usr/bin', self.assert_exit(126, 'start', '/usr/bin'))

    def test_what_jobworker_itself_cannot_do_gives_125(self):
        self.assert_exit(125, 'start', '')
        self.assert_exit(125, 'start')
        self.assertIn('quote', self.assert_exit(125, 'start', "echo 'a b"))
        self.assertIn('carl', self.assert_exit(125, 'start', 'true', user='carl'))
        self.assert_exit(125, 'start', 'true', user='nobody-has-this-name')
        for verb in ('stop', 'query'):
            self.assertIn('no job', self.assert_exit(125, verb, '77777'))
            self.assert_exit(125, verb, 'seven')

    def test_no_error_shows_the_words_of_grpc(self):
        for words in (('start', '/none'), ('start', ''), ('stop', '77777'), ('query', '-1')):
            said = self.site.cli(*words).stderr.decode()
            self.assertRegex(said, r'^jobworker: ')
            self.assertNotRegex(said, r'(?i)grpc|rpc error|StatusCode|_ARGUMENT|NOT_FOUND|PRECONDITION')

    def test_one_word_is_split_and_several_are_taken_as_they_are(self):
        split = self.site.cli('start', "printf '%s|' 'a b' c\\ d $HOME")
        self.assertEqual(split.stdout, b'a b|c d|$HOME|')
        taken = self.site.cli('start', 'printf', '%s|', 'a b', "it's", '$HOME', '-u')
        self.assertEqual(taken.stdout, b"a b|it's|$HOME|-u|")

    def test_detached_start_prints_the_id_alone_and_the_job_goes_on(self):
        fifo = self.fifo()
        started = self.site.cli('start', '-d', 'sh', '-c', 'read word <"$0"; echo "$word"', fifo.path)
        self.assertEqual(started.returncode, 0, started.stderr)
        self.assertRegex(started.stdout, rb'^[1-9][0-9]*\n$')
        fifo.write_line(b'released')
        queried = self.site.cli('query', started.stdout.strip().decode())
        self.assertEqual((queried.returncode, queried.stdout), (0, b'released\n'))

    def test_16_mib_of_random_bytes_come_through_bit_for_bit_and_apart(self):
        noise = random.Random(1).randbytes(16 * MIB)
        out, err = noise[:12 * MIB], noise[12 * MIB:]
        for name, part in {'out': out, 'err': err}.items():
            with open(f'{self.site.home("alice")}/{name}', 'wb') as file:
                file.write(part)
            os.chmod(file.name, 0o644)
        script = 'cat out & cat err >&2; wait'
        run = self.site.cli('start', 'sh', '-c', script)
        self.assertEqual(run.returncode, 0)
        self.assertTrue(run.stdout == out, 'stdout differs')
        ours = re.match(rb'(jobworker: [^\n]*\n)?', run.stderr).end()  # that limits are not enforced here
        self.assertTrue(run.stderr[ours:] == err, 'stderr differs')

    def test_a_client_that_is_killed_leaves_the_job_to_run_and_all_its_output_to_be_read(self):
        written, release = self.fifo(), self.fifo()
        script = 'head -c 4194304 /dev/zero; echo yes >"$0"; read word <"$1"; echo end'
        client = self.site.start_cli('start', 'sh', '-c', script, written.path, release.path)
        client.stdout.read(1)  # and no more, so the client comes to a stop in its own full pipe
        self.assertEqual(written.read_line(), b'yes')
        client.kill()
        self.assertEqual(client.wait(testing.HANG), -signal.SIGKILL)
        client.stdout.close()
        client.stderr.close()
        release.write_line()
        job_id = re.findall(r'job started .*job=(\d+)', self.server.log())[-1]
        queried = self.site.cli('query', job_id)
        self.assertEqual(queried.returncode, 0)
        self.assertTrue(queried.stdout == bytes(4 * MIB) + b'end\n', len(queried.stdout))

    def test_stop_says_so_and_the_client_that_watches_ends_with_the_signal(self):
        fifo = self.fifo()
        client = self.site.start_cli('start', 'sh', '-c', 'echo "$JOB_ID" >"$0"; exec sleep 1000', fifo.path)
        job_id = fifo.read_line().decode()
        stopped = self.site.cli('stop', job_id)
        self.assertEqual(stopped.returncode, 0, stopped.stderr)
        self.assertIn(job_id.encode(), stopped.stdout)
        client.communicate(timeout=testing.HANG)
        self.assertEqual(client.returncode, 128 + signal.SIGTERM)


class RequestTest(testing.SiteTest):
    """Bad requests fail by themselves: each is followed by a good one."""

    def tearDown(self):
        self.assertEqual(self.client().start(b'true').finish().exit_code, 0)

    def test_a_command_without_a_word_is_refused(self):
        for command in (b'', b'  \t\n ', b"''", b'"" word'):
            self.assertIn('command', self.assert_code(INVALID, lambda: self.client().start(command)))
        self.assert_code(INVALID, lambda: self.client().start(b'', b'word'))

    def test_a_command_that_ends_inside_a_quote_is_refused(self):
        for command in (b'echo "a', b"echo 'a", b"echo 'a\"", b'echo "a\\"'):
            self.assertIn('quote', self.assert_code(INVALID, lambda: self.client().start(command)))
        self.assertIn('backslash', self.assert_code(INVALID, lambda: self.client().start(b'echo a\\')))

    def test_argv_is_taken_up_to_1024_words(self):
        count = b'echo $(($#+3))'
        job = self.client().start(b'sh', b'-c', count, *[b'x'] * 1021)
        job.finish()
        self.assertEqual(job.stdout, b'1023\n')  # without $0
        past = lambda: self.client().start(b'sh', b'-c', count, *[b'x'] * 1022)
        self.assertIn('1024', self.assert_code(INVALID, past))

    def test_argv_is_taken_up_to_36_kib(self):
        most = 36 * 1024 - len('printf%s')
        job = self.client().start(b'printf', b'%s', b'x' * most)
        job.finish()
        self.assertEqual(len(job.stdout), most)
        past = lambda: self.client().start(b'printf', b'%s', b'x' * (most + 1))
        self.assertIn('36864', self.assert_code(INVALID, past))

    def test_the_environment_is_taken_up_to_256_entries(self):
        entries = [b'N%d=x' % number for number in range(256)]
        job = self.client().start(b'sh', b'-c', b'env | grep -c ^N[0-9]', env=entries)
        job.finish()
        self.assertEqual(job.stdout, b'256\n')
        self.assertIn('256', self.assert_code(INVALID, lambda: self.client().start(b'true', env=entries + [b'M=x'])))

    def test_the_environment_is_taken_up_to_16_kib(self):
        entry = b'N=' + b'x' * (16 * 1024 - 2)
        job = self.client().start(b'sh', b'-c', b'printf %s "$N"', env=[entry])
        job.finish()
        self.assertEqual(len(job.stdout), 16 * 1024 - 2)
        self.assertIn('16384', self.assert_code(INVALID, lambda: self.client().start(b'true', env=[entry + b'x'])))

    def test_strings_that_no_process_can_get_are_refused(self):
        for words in ((b'true', b'a\0b'), (b'tr\0ue',), (b'tr\0ue', b'a')):
            self.assertIn('command', self.assert_code(INVALID, lambda: self.client().start(*words)))
        for entry in (b'A=\0', b'A\0=x', b'\0=x', b'A', b'=x', b'=A=x', b''):
            self.assertIn('env:', self.assert_code(INVALID, lambda: self.client().start(b'true', env=[entry])))

    def test_what_is_not_a_job_id_is_refused(self):
        bad = ('', '-1', 'abc', '18446744073709551616', '0', '01', ' 1', '1 ', '+1', '1.0', '0x1', '1\0', '9' * 5000)
        for job_id in bad:
            for call in (self.client().stop, self.client().query):
                self.assertIn('pid', self.assert_code(INVALID, lambda: call(job_id)))

    def test_an_id_that_no_job_has_yet_is_not_found(self):
        for job_id in ('18446744073709551615', '777777'):
            for call in (self.client().stop, self.client().query):
                self.assert_code(grpc.StatusCode.NOT_FOUND, lambda: call(job_id))


class LifeTest(testing.SiteTest):

    def test_a_query_replays_from_the_first_byte_and_follows_to_the_end(self):
        fifo = self.fifo()
        alice = self.client()
        job = alice.shell('echo first; read word <"$1"; echo "$word"; exit 3', fifo.path)
        job.read_until(b'first\n')
        followers = [alice.query(job.id) for _ in range(8)]
        for follower in followers:
            follower.read_until(b'first\n')
        fifo.write_line(b'second')
        for stream in (job, *followers, alice.query(job.id)):
            self.assertEqual(stream.finish().exit_code, 3)
            self.assertEqual(stream.stdout, b'first\nsecond\n')

    def test_queries_while_the_job_ends_all_get_its_output_and_its_end(self):
        alice = self.client()
        for _ in range(50):
            job = alice.start(b'sh', b'-c', b'echo output; exit 5')
            for stream in [alice.query(job.id) for _ in range(4)]:
                self.assertEqual((stream.finish().exit_code, stream.stdout), (5, b'output\n'))

    def test_a_job_that_fills_its_pipes_with_no_reader_runs_to_its_end(self):
        alice = self.client()
        job = alice.shell('head -c 8388608 /dev/zero; head -c 8388608 /dev/zero >&2')
        job.cancel()
        again = alice.query(job.id)
        self.assertEqual(again.finish().exit_code, 0)
        self.assertTrue(again.stdout == again.stderr == bytes(8 * MIB))

    def test_stopping_twice_gives_the_same_end_twice(self):
        alice = self.client()
        job = alice.start(b'sleep', b'1000')
        first, second = alice.stop(job.id), alice.stop(job.id)
        self.assertEqual(first.end, second.end)
        self.assertEqual((first.end.signal, first.end.stopped), (signal.SIGTERM, True))
        self.assertEqual(job.finish(), first.end)

    def test_stopping_a_job_that_has_ended_leaves_its_end_as_it_was(self):
        alice = self.client()
        job = alice.start(b'sh', b'-c', b'exit 4')
        end = job.finish()
        self.assertEqual(alice.stop(job.id).end, end)
        self.assertEqual((end.exit_code, end.stopped), (4, False))

    def test_a_job_may_clean_up_when_it_is_told_to_stop(self):
        alice = self.client()
        job = alice.shell('trap "echo bye; exit 3" TERM; sleep 1000 & echo ready; wait')
        job.read_until(b'ready\n')
        end = alice.stop(job.id).end
        self.assertEqual((end.exit_code, end.stopped, end.leftovers), (3, True, 1))
        job.finish()
        self.assertEqual(job.stdout, b'ready\nbye\n')

    ESCAPE = '(setsid sh -c "exec <&- >&- 2>&-; echo \\$\\$ >$1; exec sleep 1000" &); '

    def test_a_process_that_got_away_from_its_job_is_gone_after_stop(self):
        fifo = self.fifo()
        alice = self.client()
        job = alice.shell(self.ESCAPE + 'exec sleep 1000', fifo.path)
        runaway = int(fifo.read_line())
        self.assertIn(runaway, testing.processes_of({self.site.uids['alice']}))
        self.assertEqual(alice.stop(job.id).end.leftovers, 1)
        self.assertEqual(testing.processes_of({self.site.uids['alice']}), [])

    def test_a_process_that_got_away_from_its_job_is_gone_when_the_main_process_ends(self):
        fifo = self.fifo()
        job = self.client().shell(self.ESCAPE + 'read pid <"$1"; exit 6', fifo.path)
        end = job.finish()
        self.assertEqual((end.exit_code, end.leftovers), (6, 1))
        self.assertEqual(testing.processes_of({self.site.uids['alice']}), [])

    def test_every_job_is_born_into_a_cgroup_of_its_own(self):
        job = self.client().start(b'cat', b'/proc/self/cgroup')
        job.finish()
        own = os.path.basename(self.site.cgroup_root)
        self.assertRegex(job.stdout.decode(), rf'(?m)^0::.*/{own}/alice/{job.id}$')


class GraceTest(testing.SiteTest):
    server_config = 'stop-grace = 0.2'

    def test_a_job_that_ignores_sigterm_is_killed_after_the_grace_period(self):
        alice = self.client()
        job = alice.shell('trap "" TERM; echo ready; exec sleep 1000')
        job.read_until(b'ready\n')
        end = alice.stop(job.id).end
        self.assertEqual((end.signal, end.stopped), (signal.SIGKILL, True))
        self.assertEqual(job.finish(), end)


class UsersTest(testing.SiteTest):
    user_settings = 'jobs=2'

    def test_each_user_counts_from_one_and_names_only_their_own_jobs(self):
        streams = {user: self.client(user).start(b'sh', b'-c', b'echo $USER; sleep 1000') for user in ('alice', 'bob')}
        for user, stream in streams.items():
            self.assertEqual(stream.id, '1')
            stream.read_until(f'{user}\n'.encode())
        self.client('alice').stop('1')
        self.assertTrue(streams['alice'].finish().stopped)
        self.assertEqual(testing.processes_of({self.site.uids['alice']}), [])
        self.assertEqual(len(testing.processes_of({self.site.uids['bob']})), 2, 'bob keeps his shell and his sleep')
        self.client('bob').stop('1')
        self.assertTrue(streams['bob'].finish().stopped)

    def test_more_jobs_than_the_users_list_allows_are_refused_by_name_of_the_limit(self):
        carl = self.site.write('policy', 'carl allow_start allow_stop\n')
        site = self.enterContext(testing.Site(self.user_settings))
        server = site.start_server(f'--policy={carl}')
        with site.client('carl') as client:
            for _ in range(2):
                client.start(b'sleep', b'1000')
            code, message = testing.outcome(lambda: client.start(b'true'))
            self.assertEqual(code, grpc.StatusCode.RESOURCE_EXHAUSTED)
            self.assertIn('jobs=', message)
        self.assertEqual(server.end(), 0)
        self.assertEqual(site.left_over(), [])


if __name__ == '__main__':
    testing.main()
