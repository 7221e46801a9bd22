"""The command line client against the real servers, by the words of its manual page.

At the end what was given to it and seen of it is compared with what its manual page names.
"""

import datetime
import hashlib
import io
import os
import random
import re
import select
import shutil
import signal
import subprocess
import tarfile
import unittest

import cli_testing
import jobworker_testing as testing
import numbered_output
from cli_testing import Lines

KIB, MIB = 2 ** 10, 2 ** 20
READER_GONE = (141, -signal.SIGPIPE)  # which is 141 in a shell
TIME = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d'


class CliTest(cli_testing.Clients, testing.SiteTest):
    pass


class StartTest(CliTest):
    user_settings = 'cpu=4000 memory=268435456 pids=500 read-bytes=2097152 write-bytes=4194304'

    def test_what_no_flag_takes_is_refused_with_flag_and_bound(self):
        year = 365 * 24 * 3600 * 1000
        cases = [('--cpu', '0', '0.5'), ('--cpu', '1.5G', '0.5'), ('--cpu', '4.001', 4001, 4000),
                 ('--cpu', '4294968', 4294968000, 4294967295), ('--cpu', '4m', '4 ', 5),
                 ('--memory', '0', 65536), ('--memory', '65535', 65536), ('--memory', '-1', '128M'),
                 ('--memory', '1X', '128M'), ('--memory', '8388608T', '2^63'),
                 ('--memory', '256.5M', 268959744, 268435456), ('--pids', '0', 'from 1'), ('--pids', '1K', 'from 1'),
                 ('--pids', '501', 501, 500), ('--pids', '4194305', 4194304), ('--io-read', '0', 'from 1'),
                 ('--io-read', '2097153', 2097152), ('--io-write', '1/m', 'from 1'),
                 ('--io-write', '5M/s', 5242880, 4194304), ('--timeout', '0', 'leave it out'),
                 ('--timeout', '-1s', '10s'),
                 ('--timeout', '31536001', year + 1000, year), ('--timeout', '106751991168d', '2^63'),
                 ('--label', 'a', 'KEY=VALUE'), ('--label', '=b', 63), ('--label', 'a b=c', 'A-Z'),
                 ('--label', 'k' * 64 + '=v', 63), ('--label', 'k=' + 'v' * 256, 256, 255),
                 ('--label', 'k=' + 'v' * 120 * KIB, 120 * KIB, 255),  # about the longest word that a kernel passes on
                 ('--env', 'A', 'NAME=VALUE'), ('--env', '=A', 'NAME=VALUE'),
                 ('--env', 'A=' + 'x' * 16 * KIB, 16384), ('--cwd', 'tmp', 'absolute'),
                 ('--cwd', '/no/such', "'/no/such'", 'No such file'), ('--cwd', '/etc/passwd', 'Not a directory'),
                 ('--cwd', self.site.home('alice'), 'Permission denied'), ('--cwd', '/' + 'x' * 1024, 1025, 1024),
                 ('--on-disconnect', 'drop', 'keep', 'stop')]
        for flag, value, *bounds in cases:
            with self.subTest(flag=flag, value=value[:40]):
                self.assert_refused(('start', flag, value, 'true'), flag, *bounds, user='bob')
        seventeen = [word for number in range(17) for word in ('--label', f'k{number}=v')]
        for flags, *parts in ((('--lease', '5s'), '--lease', '--on-disconnect stop'),
                              (('--on-disconnect', 'stop', '--lease', '999ms'), '--lease', 1000, 86400000),
                              (('--on-disconnect', 'stop', '--lease', '86401'), '--lease', 1000, 86400000),
                              (('-d', '--stdin'), '--stdin', '-d'), (('--no-such-flag',), '--no-such-flag'),
                              (seventeen, '--label', 17, 16)):
            self.assert_refused(('start', *flags, 'true'), *parts, user='bob')
        self.assertEqual(self.text('list', '--ids', user='bob'), '')

    def test_a_detached_job_is_left_running_and_its_id_printed(self):
        fifo = self.fifo()
        for flag in ('-d', '--detach'):
            started = self.cli('start', flag, 'sh', '-c', 'read code <"$0"; exit $code', fifo.path)
            self.assertRegex(started.out, rb'\A[1-9][0-9]*\n\Z')
            self.assertEqual(started.err, '')
            job = started.out.decode().strip()
            self.assertIn(job, self.text('list', '--live', '--ids').split())
            fifo.write_line(b'6')
            self.cli('wait', job, status=6)

    def test_all_that_a_start_asked_for_is_told(self):
        flags = ('--cwd', '/usr/bin', '--timeout', '1h', '--label', 'team=web', '--label', 'n=\x1b[31m', '--cpu', '50%',
                 '--memory', '64M', '--pids', '9', '--io-read', '1M', '--io-write', '2M/s',
                 '--on-disconnect', 'stop', '--lease', '1d')
        job = self.detach(*flags, 'sleep', '1000')
        status, = self.json('status', job)
        self.assertEqual((status['directory'], status['timeout_ms'], status['on_disconnect'], status['lease_ms']),
                         ('/usr/bin', 3600_000, 'stop', 86400_000))
        self.assertEqual(status['labels'], {'team': 'web', 'n': '\x1b[31m'})
        # Those that this kernel does not have are told as not enforced; tests/limits looks at all of them.
        missing = set(status['unenforced'])
        asked = {'cpu': {'cpu_milli': 500}, 'memory': {'memory_bytes': 64 * MIB}, 'pids': {'pids': 9},
                 'io': {'read_bytes_per_second': MIB, 'write_bytes_per_second': 2 * MIB}}
        for controller, limits in asked.items():
            self.assertEqual({name: status['limits'].get(name) for name in limits},
                             dict.fromkeys(limits) if controller in missing else limits)
        text = self.text('status', job)
        for line in ('directory +/usr/bin', 'timeout +1 h', 'lease +.*1 d', 'label +team=web', r'label +n=\\x1b\[31m'):
            self.assertRegex(text, rf'(?m)^  {line}')
        self.cli('stop', job)

    def test_limits_at_the_ceiling_are_taken(self):
        limits = ('--cpu', '4', '--memory', '256M', '--pids', '500', '--io-read', '2M', '--io-write', '4M')
        self.cli('start', *limits, 'true')

    def test_the_environment_is_clean_but_for_what_is_asked_for(self):
        names = self.text('start', '--env', 'A=1', '--env', 'B=x = y', '--env', 'LANG=xx', '--', 'env')
        self.assertEqual({line.split('=')[0] for line in names.splitlines()},
                         {'HOME', 'USER', 'LOGNAME', 'PATH', 'LANG', 'SHELL', 'JOB_ID', 'A', 'B'})
        for line in ('A=1', 'B=x = y', 'LANG=xx'):
            self.assertIn(line, names.splitlines())

    def test_a_job_runs_in_its_directory(self):
        self.assertEqual(self.text('start', '--cwd', '/usr/bin', 'pwd'), '/usr/bin\n')
        self.assertEqual(self.text('start', 'pwd'), self.site.home('alice') + '\n')

    def test_dashes_end_the_flags_and_keep_one_word_whole(self):
        self.assertEqual(self.text('start', '--', 'echo', '-d', '--', '--json'), '-d -- --json\n')
        self.assertEqual(self.text('start', 'echo', '-d', '--help'), '-d --help\n')
        self.assertEqual(self.text('start', "printf '%s|' a 'b c'"), 'a|b c|')
        program = self.site.write('home/alice/two words', '#!/bin/sh\necho "$0"\n', 0o755)
        self.assertEqual(self.text('start', '--', program), program + '\n')

    def test_a_timeout_ends_it_with_124_and_words(self):
        ended = self.cli('start', '--timeout', '100ms', 'sleep', '1000', status=124)
        self.assertIn('timeout was over', ended.err)
        job = self.text('list', '-n', '1', '-q').strip()
        self.assertRegex(self.text('list', '-n', '1'), rf'(?m)^{job} +timed out ')
        self.assertEqual(self.json('wait', job, status=124)[0]['reason'], 'timed-out')

    def test_on_disconnect_stop_ends_what_nobody_follows(self):
        left = self.detach('--on-disconnect', 'stop', '--lease', '1s', 'sleep', '1000')
        kept = self.detach('--on-disconnect', 'keep', 'sleep', '1000')
        self.assertIn('nobody followed it', self.text('wait', left, status=128 + 15))
        self.assertEqual(self.json('status', left)[0]['end']['reason'], 'lease-lost')
        self.assertIn(f'job {kept}: running', self.text('status', kept))
        self.assertEqual(self.json('status', kept)[0]['on_disconnect'], 'keep')
        self.cli('stop', kept)

    def test_exit_statuses_are_the_jobs_or_say_what_failed(self):
        for status, *words in ((200, 'sh', '-c', 'exit 200'), (137, 'sh', '-c', 'kill -9 $$'), (126, '/etc/passwd'),
                               (127, 'no-such-program')):
            self.cli('start', *words, status=status)

    def test_what_is_left_of_a_job_is_killed_and_said(self):
        ended = self.cli('start', 'sh', '-c', 'sleep 1000 & sleep 1000 & exit 3', status=3)
        self.assertRegex(ended.err, r'\Ajobworker: job \d+ left 2 processes running; what was left has been killed\n\Z')

    def test_json_is_the_job_its_output_and_its_end(self):
        script = r'printf "\377"; printf err >&2; exit 5'
        first, *output, end = self.json('start', '--label', 'a=b', '--', 'sh', '-c', script, status=5)
        self.assertEqual((first['type'], first['labels'], first['argv'][0]), ('job', {'a': 'b'}, 'sh'))
        written = {each['stream']: each['data'] for each in output}
        self.assertEqual(written, {'stdout': {'base64': '/w=='}, 'stderr': 'err'})
        self.assertEqual((end['type'], end['id'], end['reason'], end['exit_status']), ('end', first['id'], 'exited', 5))
        detached, = self.json('start', '-d', 'true')
        self.assertEqual((detached['type'], detached['argv']), ('job', ['true']))


class InputTest(CliTest):

    def test_an_archive_is_unpacked(self):
        noise = random.Random(7).randbytes(3 * MIB + 1)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode='w') as tar:
            entry = tarfile.TarInfo('noise')
            entry.size = len(noise)
            tar.addfile(entry, io.BytesIO(noise))
        listed = self.text('start', '--stdin', '--', 'sh', '-c', 'tar x; sha256sum noise', stdin=archive.getvalue())
        self.assertEqual(listed.split()[0], hashlib.sha256(noise).hexdigest())

    def test_an_empty_input_is_an_end_at_once(self):
        self.assertEqual(self.text('start', '--stdin', 'wc', '-c').strip(), '0')

    def test_without_the_flag_the_job_has_no_input(self):
        self.assertEqual(self.text('start', 'wc', '-c', stdin=b'not for the job').strip(), '0')
        job, = self.json('status', '@last')
        self.assertNotIn('input', job)

    def test_a_job_that_ends_or_closes_its_input_does_not_keep_the_client(self):
        for script in ('exit 7', 'read line; exit 7', 'exec <&-; exit 7'):
            reader, writer = os.pipe()
            client = self.launch('start', '--stdin', '--', 'sh', '-c', script, stdin=reader)
            os.close(reader)
            os.write(writer, b'line\nmore\n')  # and no end
            self.assertEqual(self.outcome_of(client, 7, script).err, '')
            os.close(writer)
            # What was sent meanwhile and what was not is a race.
            self.assertRegex(self.text('status', '@last'), r'(?m)^  input +\d+ bytes taken')

    def test_a_job_that_does_not_read_lets_the_client_wait(self):
        fifo, waiting = self.fifo(), self.fifo()
        script = 'echo "$JOB_ID" >"$1"; read word <"$0"; sha256sum'
        words = ('start', '--stdin', '--', 'sh', '-c', script, fifo.path, waiting.path)
        client = self.launch(*words, stdin=subprocess.PIPE)
        job = waiting.read_line().decode()
        writable = select.poll()
        writable.register(client.stdin, select.POLLOUT)
        noise, sent = random.Random(8).randbytes(16 * MIB), 0
        os.set_blocking(client.stdin.fileno(), False)
        # As much as fits on the way, which is a MiB and some pipes; the job gets all of it once it reads.
        while writable.poll(200):
            sent += os.write(client.stdin.fileno(), noise[sent:sent + 64 * KIB])
        self.assertLess(sent, 8 * MIB)
        state = self.json('status', job)[0]['input']
        self.assertEqual(state['state'], 'open')
        self.assertLess(state['taken'], sent)
        fifo.write_line()
        os.set_blocking(client.stdin.fileno(), True)
        told = self.outcome_of(client, 0, ('start',), noise[sent:]).out.split()[0].decode()
        self.assertEqual(told, hashlib.sha256(noise).hexdigest())
        state = self.json('status', job)[0]['input']
        self.assertEqual((state['taken'], state['state']), (len(noise), 'closed'))


class QueryTest(CliTest):
    server_config = '[output]\nper-job = 65_536\n'

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = None

    def known_job(self):
        """Ended with 4, after o1 and o2 on standard output, e1 on standard error, and o3 without a newline."""
        if QueryTest.job is None:
            ready, go = self.fifo(), self.fifo()
            script = 'echo o1; echo o2; read w <"$0"; echo e1 >&2; read w <"$0"; printf o3; exit 4'
            client = self.launch('start', '--', 'sh', '-c', script, go.path, ready.path)
            Lines(client.stdout).read_until(b'o1\no2\n')
            go.write_line()
            Lines(client.stderr).read_until(b'e1\n')
            go.write_line()
            self.outcome_of(client, 4, ('start',))
            QueryTest.job = self.text('list', '-q', '-n', '1').strip()
        return QueryTest.job

    def assert_shows(self, out, err, *flags):
        shown = self.cli('query', *flags, self.known_job(), status=4)
        self.assertEqual((shown.out.decode(), shown.err), (out, err), flags)

    def test_what_cannot_be_is_refused(self):
        job = self.known_job()
        for words, *parts in ((('--tail', 'x'), '--tail', '512B'), (('--tail', '-1'), '--tail'),
                              (('--from', '-1'), '--from'), (('--from', '12'), '--from', 12, 11),
                              (('--no-such-flag',), '--no-such-flag'),
                              (('--tail', '1', '--from', '2'), '--tail', '--from'),
                              (('--stdout', '--stderr'), '--stdout', '--stderr')):
            self.assert_refused(('query', *words, job), *parts)
        for words in ((), ('01',), ('1', '2')):
            self.assert_refused(('query', *words), 'ID')
        self.assert_refused(('query', '18446744073709551615'), 'job 18446744073709551615', 'no job with this id')

    def test_it_begins_where_it_is_told_to(self):
        self.assert_shows('o1\no2\no3', 'e1\n')
        self.assert_shows('o1\no2\no3', 'e1\n', '--from', '0')
        self.assert_shows('\no2\no3', 'e1\n', '--from', '2')
        self.assert_shows('o3', '\n', '--from', '8')
        self.assert_shows('', '', '--from', '11')
        self.assert_shows('o3', '', '--tail', '1')
        self.assert_shows('o3', 'e1\n', '--tail', '2')
        self.assert_shows('', '', '--tail', '0')
        self.assert_shows('3', '', '--tail', '1B')
        self.assert_shows('o1\no2\no3', 'e1\n', '--tail', '1K')

    def test_it_shows_one_stream_when_asked_to(self):
        self.assert_shows('o1\no2\no3', '', '--stdout')
        self.assert_shows('', 'e1\n', '--stderr')
        self.assert_shows('o2\no3', '', '--stdout', '--tail', '2')

    def test_times_stand_before_each_line(self):
        job = self.known_job()
        shown = self.cli('query', '--timestamps', job, status=4)
        stamp = rf'({TIME}\.\d{{6}})Z '
        out = re.fullmatch(rf'{stamp}o1\n{stamp}o2\n{stamp}o3', shown.out.decode())
        err = re.fullmatch(rf'{stamp}e1\n', shown.err)
        self.assertTrue(out and err, shown)
        ended, = self.json('status', job)
        of = lambda micros: datetime.datetime.utcfromtimestamp(micros / 1e6).isoformat(timespec='microseconds')
        times = [of(ended['started_us']), out[1], out[2], err[1], out[3]]
        self.assertEqual(times, sorted(times))

    def test_json_tells_positions_and_times(self):
        job, *output, end = self.json('query', self.known_job(), status=4)
        self.assertEqual([(each['offset'], each['stream'], each['data']) for each in output[-2:]],
                         [(6, 'stderr', 'e1\n'), (9, 'stdout', 'o3')])
        self.assertTrue(all(each['time_us'] >= job['started_us'] for each in output))
        self.assertEqual((end['exit_code'], end['exit_status'], end.get('signal')), (4, 4, None))

    def test_without_following_only_what_is_there_is_shown(self):
        fifo = self.fifo()
        client = self.launch('start', '--', 'sh', '-c', 'echo before; read w <"$0"; echo after', fifo.path)
        Lines(client.stdout).read_until(b'before\n')
        self.assertEqual(self.text('query', '--no-follow', '@last'), 'before\n')
        self.assertEqual(self.json('query', '--no-follow', '@last')[-1]['type'], 'partial')
        following = self.launch('query', '@last')
        Lines(following.stdout).read_until(b'before\n')
        fifo.write_line()
        self.assertEqual(self.outcome_of(following, 0, ('query',)).out, b'after\n')
        self.outcome_of(client, 0, ('start',))
        self.assert_shows('o1\no2\no3', 'e1\n', '--no-follow')

    def test_what_is_not_kept_is_told_as_a_gap(self):
        job = self.ended('sh', '-c', 'head -c 300000 /dev/zero; echo end')
        shown = self.cli('query', job)
        gone = int(re.search(r'(\d+) bytes of job \d+\'s output before this point are gone', shown.err)[1])
        self.assertEqual(gone + len(shown.out), 300_004)
        _, gap, *output, _ = self.json('query', job)
        self.assertEqual((gap['type'], gap['dropped'], gap['offset'], output[0]['offset']), ('gap', gone, gone, gone))

    def test_an_answer_on_a_closed_pipe_is_no_error_message(self):
        for words in (('query', self.known_job()), ('list',), ('status', self.known_job())):
            reader, writer = os.pipe()
            client = self.launch(*words, stdout=writer)
            os.close(writer)
            os.close(reader)
            _, err = client.communicate(timeout=testing.HANG)
            self.assertIn(client.returncode, READER_GONE, err)
            self.assertEqual(cli_testing.UNENFORCED.sub('', err.decode()).replace('e1\n', ''), '')


class JobsTest(CliTest):

    def test_what_is_not_an_id_is_refused_by_every_verb(self):
        for verb in ('stop', 'status', 'wait', 'rm', 'signal'):
            before = ('HUP',) if verb == 'signal' else ()
            for wrong in ((), ('x',)):
                self.assert_refused((verb, *before, *wrong), 'ID')
            self.assertIn('no job with this id', self.assert_refused((verb, *before, '777777'), 'job 777777'))
            self.assert_refused((verb, '--no-such-flag', *before, '1'), '--no-such-flag')

    def test_one_waits_for_100_jobs_and_not_for_1000(self):
        job = self.ended('true')
        self.cli('wait', *[job] * 1000)  # each once
        for count in (101, 1000):
            self.assert_refused(('wait', *map(str, range(1, count + 1))), 'ID', count, 'from 1 to 100')

    def test_a_list_has_a_line_for_each_job_with_what_it_is(self):
        running = self.detach('--label', 'set=list', 'sleep', '1000')
        signalled = self.ended('--label', 'set=list', '--', 'sh', '-c', 'kill -9 $$', status=137)
        labels = ('--label', 'set=list', '--label', 'more=\x1b]0;x\x07')
        stopped = self.detach(*labels, '--', 'sh', '-c', 'exec sleep 1000', '\x1b[31m\nred', 'a b')
        self.cli('stop', stopped)
        ended = self.ended('--label', 'set=list', 'true')
        lines = self.text('list', '--label', 'set=list').splitlines()
        self.assertRegex(lines[0], r'^ID +STATE +STARTED +COMMAND \{LABEL\}$')
        ago = r'[\d.]+ (ms|s|min \d+ s) ago +'
        patterns = (rf'{ended} +exited 0 +{ago}true', rf"{stopped} +stopped +{ago}sh -c 'exec sleep 1000' ",
                    rf'{signalled} +SIGKILL +{ago}sh -c ', rf'{running} +running +{ago}sleep 1000')
        for line, pattern in zip(lines[1:], patterns, strict=True):
            self.assertRegex(line, f'^{pattern}')
        self.assertIn(r"'\x1b[31m\x0ared' 'a b'", lines[2])
        self.assertIn(r'{more=\x1b]0;x\x07}', lines[2])
        self.assertTrue(lines[1].endswith('true {set=list}'))
        self.assertTrue(''.join(lines).isprintable())
        told = {job['id']: job for job in self.json('list', '--label', 'set=list')}
        self.assertEqual(list(told), [ended, stopped, signalled, running])
        self.assertEqual(told[stopped]['argv'], ['sh', '-c', 'exec sleep 1000', '\x1b[31m\nred', 'a b'])
        self.assertEqual([job['state'] for job in told.values()], ['ended', 'ended', 'ended', 'running'])
        self.cli('stop', running)

    def test_what_the_terminal_can_show_is_shown(self):
        job = self.ended('--label', 'set=grün', '--', 'true', 'für \u202edich', '日本')
        for locale, words, label in (('C.UTF-8', r"true 'für \xe2\x80\xaedich' '日本'", '{set=grün}'),
                                     ('C', r"true 'f\xc3\xbcr \xe2\x80\xaedich' '\xe6", r'{set=gr\xc3\xbcn}')):
            listed = self.text('list', '--label', 'set=grün', environment=[('LC_ALL', locale)])
            self.assertIn(words, listed)
            self.assertIn(label, listed)
            self.assertIn(words, self.text('status', job, environment=[('LC_ALL', locale)]))
        self.assertEqual(self.json('list', '--label', 'set=grün')[0]['argv'], ['true', 'für \u202edich', '日本'])

    def test_a_list_is_as_short_as_is_asked_for(self):
        jobs = [self.ended('--label', f'short={number}', '--label', 'all=x', 'true') for number in range(3)]
        live = self.detach('--label', 'all=x', 'sleep', '1000')
        for flag in ('-q', '--ids'):
            self.assertEqual(self.text('list', flag, '--label', 'all=x').split(), [live, *jobs[::-1]])
        self.assertEqual(self.text('list', '-q', '-n', '2').split(), [live, jobs[2]])
        self.assertEqual(self.text('list', '-q', '--live', '--label', 'all=x').split(), [live])
        self.assertEqual(self.text('list', '-q', '--label', 'all=x', '--label', 'short=1').split(), [jobs[1]])
        self.assertEqual(self.text('list', '-q', '--label', 'all=y'), '')
        self.assertEqual(self.text('list', '-q', user='bob'), '')
        self.assert_refused(('list', '-n', '0'), '-n', 'from 1')
        self.assert_refused(('list', '--label', 'x'), '--label', 'KEY=VALUE')
        self.assert_refused(('list', '3'), '3')
        self.cli('stop', live)

    def test_a_status_tells_how_it_ended_and_what_it_used(self):
        job = self.ended('sh', '-c', 'echo out; exit 3', status=3)
        other = self.ended('sh', '-c', 'kill -SEGV $$', status=139)
        text = self.text('status', job, other)
        self.assertRegex(text, rf'(?s)\Ajob {job}: exited 3\n.*\njob {other}: SIGSEGV\n')
        for line in ("command +sh -c 'echo out; exit 3'", f'started +{TIME}Z ', f'ended +{TIME}Z ',
                     'output +4 bytes; 64 MiB are kept', 'usage +cpu .* user, .* system; .*read, .*written',
                     f'end +job {job} exited with 3'):
            self.assertRegex(text, rf'(?m)^  {line}')
        both = self.json('status', job, other)
        self.assertEqual([each['end']['exit_status'] for each in both], [3, 139])
        # One that is not there does not keep the others from being told.
        partly = self.cli('status', '777777', job, status=125)
        self.assertRegex(partly.out.decode(), rf'\Ajob {job}: exited 3\n')

    def test_a_wait_is_for_all_or_for_any(self):
        fifos = [self.fifo() for _ in range(3)]
        jobs = [self.detach('sh', '-c', 'read code <"$0"; exit $code', fifo.path) for fifo in fifos]
        all_of, any_of = self.launch('wait', *jobs), self.launch('wait', '--any', *jobs)
        told = Lines(all_of.stdout)
        for number, code in ((2, 0), (0, 5), (1, 6)):
            fifos[number].write_line(b'%d' % code)
            told.read_until(rf'job {jobs[number]} exited with {code}\n'.encode())
            if number == 2:
                self.assertEqual(self.outcome_of(any_of, 0, ('wait',)).out.decode(), f'job {jobs[2]} exited with 0\n')
        self.outcome_of(all_of, 5, ('wait',))
        end, = self.json('wait', '--any', jobs[1], status=6)
        self.assertEqual((end['type'], end['exit_code']), ('end', 6))

    def test_a_signal_goes_by_name_or_number(self):
        fifo = self.fifo()
        script = 'trap "echo got >$0" HUP USR1; echo ready >"$0"; while :; do read word <"$1"; done'
        job = self.detach('sh', '-c', script, fifo.path, self.fifo().path)
        self.assertEqual(fifo.read_line(), b'ready')
        for name in ('HUP', 'SIGHUP', 'sigusr1', '10'):
            number = {'HUP': 1, 'SIGHUP': 1}.get(name, 10)
            self.assertRegex(self.text('signal', name, job), rf'^job {job} got signal {number} \(SIG')
            self.assertEqual(fifo.read_line(), b'got')
        self.assertEqual(self.json('signal', 'HUP', job)[0]['signal'], 1)
        self.assertEqual(fifo.read_line(), b'got')
        for wrong in ('0', '65', 'NONE'):
            self.assert_refused(('signal', wrong, job), 'SIGNAL', '1 to 64')
        self.cli('signal', 'RTMIN+3', job)
        self.assertIn('terminated by signal 37', self.text('wait', job, status=128 + 37))
        self.assertIn('has ended', self.assert_refused(('signal', 'HUP', job), f'job {job}'))

    def test_a_stopped_process_counts_as_running_and_a_stop_ends_it(self):
        job = self.detach('sleep', '1000')
        self.cli('signal', 'STOP', job)
        self.assertIn(f'job {job}: running', self.text('status', job))
        self.assertRegex(self.text('stop', '--grace', '1h', job), 'SIGTERM')

    def test_a_halted_job_times_out_all_the_same(self):
        job = self.detach('--timeout', '1s', 'sh', '-c', 'kill -STOP $$; exit 3')
        self.cli('wait', job, status=124)

    def test_a_stop_says_how_it_is_to_be_done(self):
        fifo = self.fifo()
        script = 'trap "exit 9" HUP; trap "" TERM; echo ready >"$0"; while :; do read word <"$1"; done'
        jobs = []
        for _ in range(4):
            jobs.append(self.detach('sh', '-c', script, fifo.path, self.fifo().path))
            self.assertEqual(fifo.read_line(), b'ready')
        self.assertEqual(self.text('stop', '--signal', 'HUP', jobs[0]), f'job {jobs[0]} is stopped: exit code 9\n')
        self.assertEqual(self.text('stop', '--grace', '0', jobs[1]), f'job {jobs[1]} is stopped: signal 9 (SIGKILL)\n')
        end, = self.json('stop', '--now', jobs[2])
        how = (end['reason'], end['actor'], end['signal'], end['stop_killed'])
        self.assertEqual(how, ('stopped', 'alice', 9, True))
        self.assertNotIn('stop_signal', end)
        ended, = self.json('stop', '--grace', '10ms', jobs[3])
        self.assertEqual((ended['stop_signal'], ended['signal'], ended['stop_killed']), (15, 9, True))
        self.assertEqual(self.text('stop', jobs[0]), f'job {jobs[0]} is stopped: exit code 9\n')
        before = self.ended('true')
        self.assertEqual(self.text('stop', before), f'job {before} had ended before: exit code 0\n')
        for words, *parts in ((('--grace', '3600001ms'), '--grace', 3600000),
                              (('--signal', 'NONE'), '--signal', '1 to 64'),
                              (('--now', '--grace', '1'), '--now', '--grace'),
                              (('--now', '--signal', '9'), '--now', '--signal')):
            self.assert_refused(('stop', *words, jobs[0]), *parts)

    def test_several_are_stopped_at_once_and_told_in_order(self):
        jobs = [self.detach('sleep', '1000') for _ in range(5)]
        done = self.cli('stop', *jobs, '777777', status=125)
        self.assertEqual(re.findall(r'job (\d+) is stopped', done.out.decode()), jobs)
        self.assertEqual(done.err, 'jobworker: job 777777: you have no job with this id\n')

    def test_rm_forgets_what_has_ended(self):
        jobs = [self.ended('true') for _ in range(3)]
        live = self.detach('sleep', '1000')
        self.assertIn('stop it first', self.assert_refused(('rm', live), f'job {live}'))
        self.assertEqual(self.text('rm', jobs[0], jobs[1]).count('forgotten'), 2)
        self.assertEqual(self.json('rm', jobs[2])[0], {'v': 1, 'type': 'removed', 'id': jobs[2]})
        for job in jobs:
            self.assert_refused(('status', job), 'no job with this id')
        self.cli('stop', live)

    def test_last_is_the_newest_job_of_the_user(self):
        self.assertIn('no @last', self.assert_refused(('status', '@last'), 'no job of yours', user='bob'))
        self.ended('sh', '-c', 'exit 1', status=1)
        job = self.detach('sleep', '1000')
        self.assertIn(f'job {job}: running', self.text('status', '@last'))
        self.assertIn(f'job {job} is stopped', self.text('stop', '@last', job))
        self.cli('wait', '@last', status=143)
        self.assertIn(job, self.text('rm', '@last'))


class AboutTest(CliTest):
    user_settings = 'cpu=1000 memory=67108864 read-bytes=1048576 read-ops=300 pids=500 job-pids=20 jobs=7'

    def test_help_is_there_for_all_and_for_each_verb(self):
        everything = self.text('--help')
        verbs = cli_testing.pages()['jobworker.1'].verbs
        for verb in verbs:
            self.assertRegex(everything, rf'(?m)^  {verb}  ')
            help_text = self.text(verb, '--help')
            self.assertRegex(help_text, rf'(?m)^Usage: jobworker .*{verb}')
            self.assertRegex(help_text, r'(?m)^  jobworker ')

    def test_the_version_is_that_of_client_and_server(self):
        version = self.text('--version')
        self.assertRegex(version, r'\Ajobworker \d+\.\d+\.\d+\n\Z')
        server = rf'jobserver [\d.]+ at 127.0.0.1:{self.site.port}, API 2, running since {TIME}Z'
        self.assertRegex(self.text('version'), rf'\A{version}{server}')
        told, = self.json('version', user='carl')
        self.assertEqual((f'jobworker {told["client"]}\n', told['api'], told['broker_connected']), (version, 2, True))

    def test_the_servers_have_help_and_a_version_and_speak_over_a_descriptor(self):
        patterns = {'--version': r'\A\d+\.\d+\.\d+\n\Z', '--help': '(?s)Example: jobserver .*--reflection'}
        for flag, pattern in patterns.items():
            told = subprocess.run([shutil.which('jobserver'), flag], capture_output=True, text=True, check=True)
            self.assertRegex(told.stdout, pattern)
        for pid in self.site.broker_pids():
            with open(f'/proc/{pid}/cmdline', encoding='utf-8') as file:
                self.assertIn('--fd', file.read().split('\0'))

    def test_whoami_tells_rights_limits_and_use(self):
        job = self.detach('sleep', '1000', user='bob')
        text = self.text('whoami', user='bob')
        limits = 'cpu 1, memory 64 MiB, 500 processes, read 1 MiB/s, write 1 MiB/s, 300 reads/s, 120 writes/s'
        for line in ('bob at 127.0.0.1', '  rights +allow_start, allow_stop, allow_query', f'  all jobs +{limits}',
                     '  each job +.*20 processes', '  jobs +1 live and 0 ended of 7', f'  certificate +until {TIME}Z'):
            self.assertRegex(text, f'(?m)^{line}')
        told, = self.json('whoami', user='bob')
        self.assertEqual((told['user'], told['ceilings']['pids'], told['defaults']['pids']), ('bob', 500, 20))
        self.assertEqual((told['jobs_live'], told['jobs_ended'], told['jobs_limit']), (1, 0, 7))
        self.cli('stop', job, user='bob')
        self.assertRegex(self.text('whoami', user='carl'), r'(?m)^  rights +none$')

    def test_who_has_no_right_is_told_so(self):
        for right, *words in (('allow_start', 'start', 'true'), ('allow_stop', 'stop', '1'), ('allow_stop', 'rm', '1'),
                              ('allow_query', 'query', '1'), ('allow_query', 'list'), ('allow_query', 'wait', '1')):
            self.assert_refused(words, 'not allowed', right, user='carl')

    def test_words_that_are_no_verb_or_too_many_are_refused(self):
        for words, part in (((), 'say what to do'), (('strat', 'ls'), "'strat'"), (('whoami', 'now'), 'now'),
                            (('version', '3'), '3'), (('completion',), 'SHELL'), (('completion', 'tcsh'), 'tcsh')):
            self.assert_refused(words, part, '--help')

    def test_completion_offers_live_ids_of_the_real_server(self):
        live, ended = self.detach('sleep', '1000'), self.ended('true')
        connection = self.site.cli_command()[1:]
        complete = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _jobworker; printf "%s\\n" "${COMPREPLY[@]}"'
        for verb, expected in (('stop', ['@last', live]), ('query', ['@last', ended, live])):
            script = f'source <({shutil.which("jobworker")} completion bash); {complete}'
            offered = subprocess.run(['bash', '-uc', script, 'bash', 'jobworker', *connection, verb, ''],
                                     env=self.site.cli_environment(), capture_output=True, text=True,
                                     timeout=testing.HANG, check=True)
            self.assertEqual(offered.stdout.split(), expected, offered.stderr)
        for shell, part in (('bash', 'complete -F'), ('zsh', '#compdef'), ('fish', 'complete -c')):
            script = self.text('completion', shell)
            self.assertIn(part, script)
            told, = self.json('completion', shell)
            self.assertEqual((told['shell'], told['script']), (shell, script))
        self.cli('stop', live)


class ConfigTest(CliTest):
    """Flag, variable, the user's file, built in, in this order; the machine's file is the unit tests'."""

    def configure(self, text):
        directory = self.site.path('config')
        os.makedirs(f'{directory}/jobworker', exist_ok=True)
        with open(f'{directory}/jobworker/config.toml', 'w', encoding='utf-8') as file:
            file.write(text)
        return {'XDG_CONFIG_HOME': directory}

    def settings(self, *words, **environment):
        lines = self.text(*words, 'config', bare=True, environment=environment).splitlines()
        return {line.split()[0]: tuple(line.split(maxsplit=2)[1:]) for line in lines}

    def test_each_setting_is_told_with_where_it_comes_from(self):
        plain = self.settings()
        self.assertEqual(plain, {'profile': ('alice', 'built in'), 'user': ('alice', "the profile's name"),
                                 'host': ('localhost', 'built in'), 'port': ('57533', 'built in'),
                                 'certs': ('-', 'the usual places')})
        variables = {'JOBWORKER_HOST': 'one:1', 'JOBWORKER_PROFILE': 'two', 'JOBWORKER_CERTS': '/three'}
        by_variable = self.settings(**variables)
        self.assertEqual((by_variable['host'], by_variable['port'], by_variable['profile'], by_variable['certs']),
                         (('one', 'JOBWORKER_HOST'), ('1', 'JOBWORKER_HOST'), ('two', 'JOBWORKER_PROFILE'),
                          ('/three', 'JOBWORKER_CERTS')))
        for flags in (('-u', 'x', '-h', '[::1]:2', '--certs', '/y'), ('--profile=x', '--host=[::1]:2', '--certs=/y')):
            by_flag = self.settings(*flags, **variables)
            self.assertEqual((by_flag['host'], by_flag['port'], by_flag['profile'], by_flag['certs']),
                             (('::1', '-h'), ('2', '-h'), ('x', '-u'), ('/y', '--certs')))
        profile = self.json('config', bare=True, environment=variables)[0]
        self.assertEqual(profile, {'v': 1, 'type': 'setting', 'key': 'profile', 'value': 'two',
                                   'source': 'JOBWORKER_PROFILE'})

    def test_the_file_and_its_profiles_are_used(self):
        text = f'''
host = "127.0.0.1"
port = {self.site.port}
certs = "{self.site.certs}"
profile = "work"
[profiles.work]
user = "bob"
[profiles.away]
host = "127.0.0.1"
port = 1
certs = "certs"
user = "alice"
'''
        places = self.configure(text)
        cli_testing.CONFIGURED.update(re.findall('(?m)^([a-z]+) = ', text))
        os.symlink(self.site.certs, f'{places["XDG_CONFIG_HOME"]}/jobworker/certs')
        for user, words, variables in (('bob', (), {}), ('alice', (), {'JOBWORKER_PROFILE': 'alice'}),
                                       ('carl', ('-u', 'carl'), {'JOBWORKER_PROFILE': 'alice'})):
            told = self.text(*words, 'whoami', bare=True, environment={**places, **variables})
            self.assertIn(f'{user} at 127.0.0.1', told)
        source = f'{places["XDG_CONFIG_HOME"]}/jobworker/config.toml'
        self.assertEqual(self.settings(**places)['user'], ('bob', f'{source}, profiles.work'))
        self.assert_refused(('-u', 'away', 'whoami'), '127.0.0.1:1', bare=True, environment=places)

    def test_a_mistake_in_the_file_is_named_with_its_line(self):
        for text, part in (('host = 7\n', 'string'), ('port = 65536\n', '65535'), ('profile = \n', ':1:'),
                           ('\nhots = "x"\n', ':2: unknown key hots')):
            self.assert_refused(('config',), 'config.toml', part, bare=True, environment=self.configure(text))
        for flag, wrong, part in (('-h', 'a b', 'host name'), ('-h', 'a:0', '65535'), ('-u', '../x', 'profile'),
                                  ('--certs', '/no/such', 'alice.pem')):
            self.assert_refused(('whoami', flag, wrong), part, bare=True)


class HandsTest(CliTest):
    """At a terminal, and what signals do."""

    STUBBORN = 'trap "echo got INT" INT; echo ready; while :; do read word <"$0"; done'

    def test_people_are_told_the_id_and_that_their_certificate_ends_soon(self):
        terminal = self.terminal('start', 'echo', 'hi')
        self.assertEqual(terminal.finish(), 0)
        self.assertRegex(terminal.text, r'jobworker: job \d+\r\n(.*\r\n)*hi\r\n')
        self.assertIn('alice.pem ends within two days; ask for a new one', terminal.text)

    def test_ctrl_c_is_the_jobs_and_twice_within_2_seconds_stops_it(self):
        terminal = self.terminal('start', '--', 'sh', '-c', self.STUBBORN, self.fifo().path)
        terminal.read_until('ready')
        job = re.search(r'jobworker: job (\d+)\r\n', terminal.text)[1]
        terminal.type('\x03')
        terminal.read_until(f'sent SIGINT to job {job}; Ctrl-C again within 2 seconds stops it')
        terminal.read_until('got INT')
        # On a slow machine the second one may come too late to be a stop; then it is a first one again.
        while 'stopping job' not in terminal.text:
            said = terminal.text.count('sent SIGINT')
            terminal.type('\x03')
            terminal.read_until(rf'(?s)stopping job {job}|(sent SIGINT.*){{{said + 1}}}')
        self.assertEqual(terminal.finish(), 128 + signal.SIGTERM)
        self.assertIn('was stopped by alice', terminal.text)

    def test_ctrl_c_of_a_query_leaves_the_job_to_itself(self):
        job = self.detach('sh', '-c', 'echo ready; exec sleep 1000')
        terminal = self.terminal('query', job)
        terminal.read_until('ready')
        terminal.type('\x03')
        self.assertEqual(terminal.finish(), 130)
        self.assertRegex(terminal.text, f'left job {job} to itself; come back to it: jobworker .* query {job}; '
                                        f'end it: jobworker .* stop {job}\r\n')
        self.cli('stop', job)

    def test_a_hang_up_leaves_the_job_and_the_words_that_come_back_work(self):
        fifo = self.fifo()
        client = self.launch('start', '--', 'sh', '-c', 'echo before; read w <"$0"; echo after; exit 3', fifo.path)
        Lines(client.stdout).read_until(b'before\n')
        client.send_signal(signal.SIGHUP)
        said = self.outcome_of(client, 129, ('start',)).err
        again = re.search('come back to it: (jobworker .*?); end it', said)[1]
        fifo.write_line()
        back = subprocess.run(['sh', '-c', again], env=self.site.cli_environment(), capture_output=True,
                              timeout=testing.HANG, check=False)
        self.assertEqual((back.returncode, back.stdout), (3, b'before\nafter\n'), back.stderr)

    def test_a_terminal_that_is_closed_leaves_the_job_running(self):
        fifo = self.fifo()
        terminal = self.terminal('start', '--', 'sh', '-c', 'echo before; read w <"$0"; exit 3', fifo.path)
        terminal.read_until('before')
        job = re.search(r'jobworker: job (\d+)\r\n', terminal.text)[1]
        terminal.hang_up()
        self.assertEqual(terminal.process.wait(testing.HANG), 129)
        fifo.write_line()
        self.cli('wait', job, status=3)

    def test_a_reader_that_goes_detaches_quietly(self):
        fifo = self.fifo()
        client = self.launch('start', '--', 'sh', '-c', 'echo "$JOB_ID"; yes; read w <"$0"', fifo.path)
        job = Lines(client.stdout).read_until(rb'\A(\d+)\n')[1].decode()
        client.stdout.close()
        err = client.stderr.read()
        self.assertIn(client.wait(testing.HANG), READER_GONE)
        self.assertEqual(cli_testing.UNENFORCED.sub('', err.decode()), '')
        self.assertIn(f'job {job}: running', self.text('status', job))
        self.cli('stop', job)

    def test_colours_are_for_terminals_and_not_with_no_color(self):
        job = self.detach('sleep', '1' + 300 * '0')
        for environment, coloured in ((), True), ({'NO_COLOR': '1'}, False), ({'NO_COLOR': ''}, True):
            terminal = self.terminal('list', environment=environment, columns=60)
            self.assertEqual(terminal.finish(), 0)
            self.assertEqual('\x1b[' in terminal.text, coloured, environment)
            line, = (each for each in terminal.text.split('\r\n') if each.startswith(f'{job} '))
            self.assertEqual(len(re.sub('\x1b[^m]*m', '', line)), 60)
        self.assertNotIn('\x1b', self.text('list'))
        self.assertIn('0' * 300, self.text('list'))
        self.cli('stop', job)

    def test_a_slow_server_is_noticed(self):
        self.server.send(signal.SIGSTOP)
        try:
            terminal = self.terminal('whoami')
            terminal.read_until(f'connecting to 127.0.0.1:{self.site.port} ...')
        finally:
            self.server.send(signal.SIGCONT)
        self.assertEqual(terminal.finish(), 0)
        self.assertIn('alice at 127.0.0.1', terminal.text)


class RestartTest(cli_testing.Clients, unittest.TestCase):
    """Front ends that are killed, and others that take their place."""

    def setUp(self):
        self.site = numbered_output.DeployedSite()
        self.enterContext(self.site)
        self.site.start_broker()
        self.site.start_front_end()
        self.addCleanup(lambda: self.assertEqual(self.site.end(), [], self.site.logs()))

    def test_what_follows_goes_on_by_itself_and_says_so(self):
        fifo = self.fifo()
        started = self.launch('start', '--', 'sh', '-c', 'echo one; read w <"$0"; echo two; exit 3', fifo.path)
        lines = Lines(started.stdout)
        lines.read_until(b'one\n')
        queried, waiting = self.launch('query', '@last'), self.launch('wait', '@last')
        Lines(queried.stdout).read_until(b'one\n')
        self.site.server.wait_for_line('allowed method=JobWait ')
        said = [Lines(client.stderr) for client in (started, queried, waiting)]
        for _ in range(2):
            self.site.kill_front_end()
            for each in said:
                each.read_until(b'the connection to .* was lost; trying again\n')
            self.site.start_front_end()
            for each in said:
                each.read_until(b'connected to .* again')
                each.text = b''
        self.assertEqual(lines.text, b'one\n')
        fifo.write_line()
        for client, out in ((started, b'two\n'), (queried, b'two\n'), (waiting, b'job 1 exited with 3\n')):
            self.assertEqual(self.outcome_of(client, 3, ('query',)), (3, out, ''))

    def test_without_reconnecting_it_fails_at_the_first_loss(self):
        fifo = self.fifo()
        words = ('start', '--no-reconnect', '--', 'sh', '-c', 'echo one; read w <"$0"', fifo.path)
        started = self.launch(*words)
        Lines(started.stdout).read_until(b'one\n')
        queried = self.launch('query', '--no-reconnect', '1')
        Lines(queried.stdout).read_until(b'one\n')
        self.site.kill_front_end()
        for client in (started, queried):
            said = self.outcome_of(client, 125, ('query',)).err
            self.assertRegex(said, r'\Ajobworker: the connection to .* was lost; '
                                   r'to see what has become of job 1: jobworker .* query 1\n\Z')
        self.assert_refused(('whoami',), 'nothing listens on', self.site.port)
        self.site.start_front_end()
        fifo.write_line()
        self.assertEqual(self.text('query', '1'), 'one\n')

    def test_a_start_that_was_not_answered_is_one_job(self):
        self.site.broker.send(signal.SIGSTOP)
        clients = [self.launch('start', '-d', 'true'), self.launch('start', 'sh', '-c', 'exit 4', user='bob')]
        for user in ('alice', 'bob'):
            self.site.server.wait_for_line(f'allowed method=JobStart user={user} ')
        self.site.kill_front_end()
        for client in clients:
            Lines(client.stderr).read_until(b'was lost; trying again\n')
        self.site.broker.send(signal.SIGCONT)
        self.site.start_front_end()
        self.assertEqual(self.outcome_of(clients[0], 0, ('start',)).out, b'1\n')
        self.outcome_of(clients[1], 4, ('start',))
        for user in ('alice', 'bob'):
            self.assertEqual(self.text('list', '-q', user=user), '1\n')

    def test_a_job_that_is_lost_with_its_broker_is_said_to_be(self):
        job = self.detach('sleep', '1000')
        waiting = self.launch('wait', job)
        self.site.server.wait_for_line('allowed method=JobWait ')
        self.site.broker.end(signal.SIGKILL)
        self.site.server.wait_for_line('broker gone')
        self.assertIn('its jobbroker is away', self.text('version'))
        self.assertIn('try again', self.assert_refused(('start', 'true'), str(self.site.port)))
        self.site.start_broker()
        self.assertRegex(self.outcome_of(waiting, 125, ('wait',)).out.decode(), rf'\Ajob {job} was lost \(.*\)\n\Z')
        self.assertRegex(self.text('list'), rf'(?m)^{job} +lost ')
        end = self.json('status', job)[0]['end']
        self.assertEqual((end['reason'], end['exit_status']), ('lost', 125))
        self.assertNotEqual(end['detail'], '')
        self.assertEqual(self.text('start', 'echo', 'again'), 'again\n')

    def test_input_that_was_cut_off_is_said_and_is_a_failure(self):
        client = self.launch('start', '--stdin', 'cat', stdin=subprocess.PIPE)
        lines = Lines(client.stdout)
        os.write(client.stdin.fileno(), b'abc\n')
        lines.read_until(b'abc\n')
        self.site.kill_front_end()
        Lines(client.stderr).read_until(b'was lost; trying again\n')
        self.site.start_front_end()
        said = self.outcome_of(client, 125, ('start',), b'more\n').err
        self.assertIn('the input of job 1 was cut off when the server was restarted: 4 bytes are known to have arrived',
                      said)
        self.assertRegex(self.text('status', '1'), r'(?m)^job 1: exited 0$')
        self.assertRegex(self.text('status', '1'), r'(?m)^  input +about 4 bytes taken, then cut off')


def load_tests(loader, tests, _pattern):
    tests.addTests(loader.loadTestsFromTestCase(cli_testing.Agreement))
    return tests


if __name__ == '__main__':
    testing.main()
