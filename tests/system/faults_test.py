#!/usr/bin/python3 -B
"""What the kernel may refuse the front end: an error for one request at most, nothing is lost, and the next one works.

strace(1) makes the calls fail. What it cannot make is a splice that moves less than was there: that comes from jobs
whose writes have odd sizes, so that a pipe never has what was asked for.
"""

import contextlib
import ctypes
import itertools
import os
import re
import select
import signal
import subprocess
import unittest

import jobworker_testing as testing
from jobworker_testing import grpc
from numbered_output import OUR_THREADS, PROGRAM, STREAMS, DeployedSite, Follower, Gate, Job, numbered

CONFIG = """
[output]
per-job = 1_048_576
policy = "block"
[ended]
per-user = {ended}
"""
JOURNAL = '/memfd:job'
EVENTFD = 'anon_inode:[eventfd]'


class Strace:
    """Lets calls of a running front end fail: of one thread, or of all. A context manager."""

    def __init__(self, site, call, error, when, path=None, thread=None):
        self._file = site.path('strace')
        self._program = site.run(['strace', '-o', self._file, '-p', str(thread or site.front_end_pid()),
                                  *strace_flags(call, error, when, path), *['-f'] * (thread is None)])

    def __enter__(self):
        self._program.wait_for_line('attached')
        return self

    def __exit__(self, *unused):
        self._program.end(signal.SIGTERM)

    def injected(self):
        with open(self._file, encoding='utf-8', errors='replace') as file:
            return file.read().count('(INJECTED)')


def strace_flags(call, error, when, path):
    return ['-e', f'trace={call}', '-e', f'inject={call}:error={error}:when={when}', *(['-P', path] if path else [])]


class FaultsTest(unittest.TestCase):

    ended = 1000
    broker_limit = ()

    def setUp(self):
        self.site = self.enterContext(DeployedSite())
        os.chown(self.site.write('config', CONFIG.format(ended=self.ended)), self.site.server_uid, -1)
        self.flags = [f'--config={self.site.path("config")}']
        self.program = self.site.program('torture_job')
        self.tags = itertools.count(1)
        self.messages = testing.our_api()[0]
        self.site.start_broker(self.broker_limit)
        self.addCleanup(lambda: self.assertEqual(self.site.end(), [], self.site.logs()))
        self.worker, channel = self.site.worker()
        self.addCleanup(channel.close)

    def new_job(self, out, err, end=3, gate=(), chunk=4999):
        job = Job(next(self.tags), out, err, chunk, end, gate)
        job.user = 'alice'
        return job

    def gated_job(self, out, err, end=3):
        gate = self.enterContext(contextlib.closing(Gate(self.site, 'alice')))
        return self.new_job(out, err, end, gate.paths), gate

    def follow(self, job, **options):
        follower = Follower(self.worker, job, **options)
        follower.start()
        return follower

    def finish(self, *followers):
        for follower in followers:
            follower.join(testing.HANG)
            self.assertFalse(follower.is_alive(), f'{follower.job!r} at {follower.offset}, the server: '
                             f'{self.site.server.process.poll()} {self.site.server.log()}')
            self.assertIsNone(follower.wrong, self.site.server.log())

    def run_job(self, job):
        """True when it was refused, in clear words; then it runs the next time."""
        refused = 0
        while True:
            follower = self.follow(job, start=self.program)
            follower.join(testing.HANG)
            if refused == 1 or not re.search('RESOURCE_EXHAUSTED|UNAVAILABLE', follower.wrong or ''):
                break
            refused += 1
        self.finish(follower)
        return refused == 1

    def again(self, jobs):
        """After a restart: the same bytes, but for what retention has removed, and the same ends."""
        self.finish(*[self.follow(job, allow_gaps=True) for job in jobs])


class RunningTest(FaultsTest):
    """The faults begin when the front end is running. Tests are made from FAULTS."""

    def check(self, call, error, when, path=None, main_thread=False):
        self.site.start_front_end(*self.flags)
        warm = self.new_job(1000, 1000)
        self.finish(self.follow(warm, start=self.program))
        quiet, gate = self.gated_job(5000, 5000)
        quiet_follower = self.follow(quiet, start=self.program)
        self.assertTrue(quiet.started.wait(testing.HANG))
        before = self.site.descriptors()
        path = path or None
        if path == 'broker':
            path, = (link for link in before.values() if link in self.unix_sockets())
        job = self.new_job(1_700_001, 900_001)
        with Strace(self.site, call, error, when, path, self.site.front_end_pid() if main_thread else None) as strace:
            self.run_job(job)
            gate.release()
            self.finish(self.follow(job, streams=1, allow_gaps=True), self.follow(warm), quiet_follower)
        self.assertGreater(strace.injected(), 0, 'nothing failed')
        last = self.new_job(100_000, 100_000)
        self.assertFalse(self.run_job(last))
        self.assertNotIn('output lost', self.site.server.log())
        # The quiet job has closed two pipes; each of the two that came after it has two files.
        self.assertEqual(len(self.site.descriptors()), len(before) - 2 + 2 * 2)
        if self.site.threads()[PROGRAM] != OUR_THREADS:
            self.run_job(self.new_job(10, 10))
        self.assertEqual(self.site.threads()[PROGRAM], OUR_THREADS)
        self.site.kill_front_end()
        self.site.start_front_end(*self.flags)
        self.again([warm, quiet, job, last])
        self.assertNotRegex(self.site.server.log(), 'damage="?(?!none)[a-z]')

    @staticmethod
    def unix_sockets():
        with open('/proc/net/unix', encoding='utf-8') as file:
            return {f'socket:[{line.split()[6]}]' for line in list(file)[1:] if line.split()[4] == '0005'}


class StartingTest(FaultsTest):
    """The faults are there when a front end takes over what another one left."""

    def check(self, call, error, when):
        self.site.start_front_end(*self.flags)
        ended, (running, gate) = self.new_job(200_001, 100_001, chunk=7), self.gated_job(5000, 5000)
        self.finish(self.follow(ended, start=self.program))
        quiet_follower = self.follow(running, start=self.program)
        self.assertTrue(running.started.wait(testing.HANG))
        self.site.kill_front_end()
        strace = ['strace', '-f', '-qq', '-o', self.site.path('strace'), *strace_flags(call, error, when, JOURNAL)]
        self.site.start_front_end(*self.flags, become=strace)
        self.run_job(self.new_job(10_000, 10_000))
        self.site.kill_front_end()
        with open(self.site.path('strace'), encoding='utf-8') as file:
            self.assertIn('(INJECTED)', file.read(), 'nothing failed')
        self.site.start_front_end(*self.flags)
        self.assertNotRegex(self.site.server.log(), 'damage="?(?!none)[a-z]')
        gate.release()
        self.finish(self.follow(ended), self.follow(running), quiet_follower)


class ExhaustionTest(FaultsTest):
    """No descriptors are left: the start that hits it says so, and the next one works once a job has ended."""

    ended = 1  # so that the one that ended before makes room

    def check(self):
        self.start(b'true')
        jobs = self.start_all()
        self.assertGreater(len(jobs), 3)
        for _ in range(3):  # again and again
            stop = self.messages.WorkerPIDRequest(pid=jobs.pop(0), now=True)
            self.assertEqual(self.worker.JobStop(stop, timeout=testing.HANG).end.signal, signal.SIGKILL)
            jobs.append(self.start(b'sleep', b'1000'))
            jobs += self.start_all()
        self.assertNotIn('broker gone', self.site.server.log())
        return jobs

    def start_all(self):
        """As many as there is room for."""
        jobs = []
        with self.assertRaises(grpc.RpcError) as refused:
            while len(jobs) < 1000:
                jobs.append(self.start(b'sleep', b'1000'))
        self.assertEqual(refused.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertIn('Too many open files', refused.exception.details())
        return jobs

    def start(self, *words):
        """The id of a job that has started, or ended if it is true."""
        request = self.messages.WorkerStartRequest(command=words[0], args=words[1:])
        stream = self.worker.JobStart(request, timeout=testing.HANG)
        job_id = next(stream).pid
        if words == (b'true',):
            list(stream)
        else:
            stream.cancel()
        return job_id


class FrontEndExhaustionTest(ExhaustionTest):

    def test_the_front_end_has_no_descriptors_left(self):
        self.site.start_front_end(*self.flags, become=['prlimit', '--nofile=60:60'])
        jobs = self.check()
        # With room for all it also knows all of them again.
        self.site.kill_front_end()
        self.site.start_front_end(*self.flags)
        worker, channel = self.site.worker()
        with channel:
            for job_id in jobs:
                stop = self.messages.WorkerPIDRequest(pid=job_id, now=True)
                self.assertEqual(worker.JobStop(stop, timeout=testing.HANG).end.signal, signal.SIGKILL)


class TakeOverExhaustionTest(FaultsTest):

    def test_output_that_found_no_room_is_read_once_there_is_some(self):
        self.site.start_front_end(*self.flags)
        ended = [self.new_job(1000, 1000) for _ in range(3)]
        for job in ended:
            self.finish(self.follow(job, start=self.program))
        gated = [self.gated_job(150_000, 150_000) for _ in range(12)]
        for job, _ in gated:
            self.started(job)
        self.site.kill_front_end()
        self.site.start_front_end(*self.flags, become=['prlimit', '--nofile=64:64'])
        lacking = re.findall(r'job taken over.* job=(\d+) .*no descriptors free', self.site.server.log())
        self.assertGreater(len(lacking), 3)
        self.assertEqual(lacking[-1], gated[-1][0].id)
        self.worker, channel = self.site.worker()
        self.addCleanup(channel.close)
        followers = [self.follow(job) for job, _ in gated]
        for job in ended:
            self.worker.JobRemove(self.messages.WorkerPIDRequest(pid=job.id), timeout=testing.HANG)
        for (job, gate), follower in zip(gated, followers):
            gate.release()
            self.finish(follower)
            self.worker.JobRemove(self.messages.WorkerPIDRequest(pid=job.id), timeout=testing.HANG)
        self.assertFalse(self.run_job(self.new_job(1000, 1000)))

    def started(self, job):
        stream = self.worker.JobStart(job.start_request(self.program), timeout=testing.HANG)
        job.took_id(next(stream).pid)
        stream.cancel()


class BrokerExhaustionTest(ExhaustionTest):

    broker_limit = ('prlimit', '--nofile=90:90')

    def test_the_broker_has_no_descriptors_left(self):
        self.site.start_front_end(*self.flags)
        self.check()


class StartingJobTest(FaultsTest):

    def test_a_start_is_joined_across_a_kill_while_the_job_is_being_born(self):
        """Nobody but the broker knows of the job yet: it is frozen before it executes anything."""
        self.site.start_front_end(*self.flags)
        home = f'{self.site.cgroup_root}/alice'
        with Inotify(home) as made:
            self.freeze(home, True)
            follower = self.follow(self.new_job(1000, 1000), start=self.program)
            self.assertEqual(made.next(), '1')
        self.site.kill_front_end()
        second = self.site.start_front_end(*self.flags)
        second.wait_for_line('allowed method=JobStart user=alice')  # the follower's second try
        other, channel = self.site.worker('bob')
        with channel:
            request = self.messages.WorkerStartRequest(command=b'true')
            self.assertEqual(list(other.JobStart(request, timeout=testing.HANG))[-1].end.exit_code, 0)
        self.freeze(home, False)
        self.finish(follower)
        self.assertEqual(follower.job.id, '1', self.site.logs())
        self.assertNotRegex(self.site.broker.log(), 'not allowed|malformed')
        self.assertFalse(self.run_job(last := self.new_job(10, 10)))
        self.assertEqual(last.id, '2')

    @staticmethod
    def freeze(cgroup, frozen):
        with open(f'{cgroup}/cgroup.freeze', 'w', encoding='ascii') as file:
            file.write('1' if frozen else '0')


class Inotify:
    """Tells of directories that are made in a directory. A context manager."""

    IN_CREATE = 0x100

    def __init__(self, directory):
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_CLOEXEC)
        if libc.inotify_add_watch(self._fd, directory.encode(), self.IN_CREATE) < 0:
            raise OSError(ctypes.get_errno(), directory)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        os.close(self._fd)

    def next(self):
        if not select.select([self._fd], [], [], testing.HANG)[0]:
            raise AssertionError('nothing was made')
        return os.read(self._fd, 4096)[16:].split(b'\0')[0].decode()


class DamageTest(FaultsTest):
    """The index of a running and of an ended job is written over while there is no front end."""

    ended = 4

    def index_of(self, word):
        """A path to the file: of the job with that word in its command."""
        pid = self.site.broker_pid()
        for number, link in self.site.descriptors(pid).items():
            path = f'/proc/{pid}/fd/{number}'
            if link.startswith(JOURNAL):
                with open(path, 'rb') as file:
                    if word.encode() in file.read(4096):
                        return path
        raise AssertionError(f'no index of the job with {word!r}')

    def damage(self, word, how):
        path = self.index_of(word)
        size = os.stat(path).st_size
        with open(path, 'r+b') as file:
            if how == 'other version':
                file.write(b'JURNAL99')
            elif how == 'begins after its end':
                file.seek(8)
                file.write((1 << 40).to_bytes(8, 'little'))
            elif how == 'no start':
                file.seek(512)
                file.write(os.urandom(64))
            elif how == 'marks out of order':
                file.seek(size - 32)
                file.write((1 << 62).to_bytes(8, 'little'))
            elif how == 'marks of nothing':
                file.seek(size - 16)
                file.write(bytes(16))
            elif how == 'noise':
                file.write(os.urandom(size))
            else:
                file.truncate({'empty': 0, 'header only': 100}[how])

    def two_parts(self):
        """The id of a job that has written 10,000 bytes, and its gate, after which it writes 100,000 more."""
        gate = self.enterContext(contextlib.closing(Gate(self.site, 'alice')))
        script = '"$0" 7 5000 5000 999 0; exec "$0" 8 50000 50000 999 4 "$1" "$2"'
        words = ['-c', script, self.program, *gate.paths]
        request = self.messages.WorkerStartRequest(command=b'sh', args=[word.encode() for word in words])
        responses = self.worker.JobStart(request, timeout=testing.HANG)
        job_id = next(responses).pid
        while (response := next(responses)).offset + len(response.log) < 10_000:
            pass
        responses.cancel()
        return job_id, gate

    def query(self, job_id):
        return list(self.worker.JobQuery(self.messages.WorkerPIDRequest(pid=job_id), timeout=testing.HANG))

    def check_second_part(self, job_id):
        answers = self.query(job_id)
        self.assertEqual([answer.dropped for answer in answers if answer.dropped], [10_000])
        self.assertEqual([answer.offset for answer in answers if answer.log][0], 10_000)
        for stream in STREAMS:
            output = b''.join(answer.log for answer in answers if answer.stream == stream)
            self.assertTrue(output == numbered(8, stream, 0, 50_000), f'stream {stream}')
        self.assertEqual((answers[-1].end.exit_code, answers[-1].offset), (4, 110_000))

    def start_again(self):
        server = self.site.start_front_end(*self.flags)
        self.worker, channel = self.site.worker()
        self.addCleanup(channel.close)
        return server

    def check(self, how):
        self.site.start_front_end(*self.flags)
        ended, whole = (self.new_job(5000, 5000, 9, chunk=chunk) for chunk in (801, 802))
        for job in (ended, whole):
            self.finish(self.follow(job, start=self.program))
        (running, gate), (stopped, unused) = self.two_parts(), self.two_parts()
        self.site.kill_front_end()
        for word in ('801', *(gates.paths[0] for gates in (gate, unused))):
            self.damage(word, how)
        server = self.start_again()
        for job_id in (ended.id, running, stopped):
            server.wait_for_line(f'job taken over user=alice job={job_id} .*damage="[a-z]')
        server.wait_for_line(f'job={whole.id} .*damage=none')
        # Its end is the broker's to know; what it wrote is gone, and that is said.
        answers = self.query(ended.id)
        ended.took_end(answers[-1].end)
        self.assertEqual(sum(answer.dropped for answer in answers), 10_000)
        self.finish(self.follow(whole))
        stop = self.messages.WorkerPIDRequest(pid=stopped, now=True)
        self.assertEqual(self.worker.JobStop(stop, timeout=testing.HANG).end.signal, signal.SIGKILL)
        # It goes on, and what it writes now is kept over another restart.
        gate.release()
        self.check_second_part(running)
        self.site.kill_front_end()
        self.start_again().wait_for_line(f'job={running} output=110000 ')
        self.check_second_part(running)
        # Forgotten like any other, when newer ones have ended.
        for _ in range(4):
            self.assertFalse(self.run_job(self.new_job(10, 10)))
        # Its answer comes from the broker, after what the last end made it forget.
        self.worker.WhoAmI(self.messages.WhoAmIRequest(), timeout=testing.HANG)
        memories = [link for link in self.site.descriptors(self.site.broker_pid()).values() if link.startswith(JOURNAL)]
        self.assertEqual(len(memories), 4 * 2)


def make_damage_tests():
    for how in ('other version', 'begins after its end', 'no start', 'marks out of order', 'marks of nothing', 'noise',
                'empty', 'header only'):
        setattr(DamageTest, 'test_' + how.replace(' ', '_'), lambda self, how=how: self.check(how))


FAULTS = {
    RunningTest: [
        *(('splice', error, when) for error in ('ENOMEM', 'EAGAIN', 'EINTR') for when in ('1', '2..3', '1+2')),
        *(('pread64', error, when, JOURNAL) for error in ('ENOMEM', 'EINTR', 'EIO') for when in ('1', '3', '20+20')),
        *(('pwrite64', error, when, JOURNAL) for error in ('ENOSPC', 'EINTR', 'ENOMEM') for when in ('1', '2', '3+50')),
        *(('fallocate', error, when) for error in ('ENOMEM', 'EINTR') for when in ('1', '1+2')),
        *(('epoll_ctl', 'ENOMEM', when, None, True) for when in ('1', '2', '3', '4')),
        *(('recvmsg', error, when, None, True) for error, when in (('EINTR', '1+2'), ('ENOMEM', '1'))),
        *(('sendmsg', 'EAGAIN', when, 'broker') for when in ('1', '1+2')),
        ('write', 'EINTR', '1+2', EVENTFD),
    ],
    StartingTest: [
        *(('pread64', error, when) for error in ('ENOMEM', 'EINTR') for when in ('1', '2', '3', '4', '5', '6')),
        *(('pwrite64', error, when) for error in ('ENOMEM', 'EINTR') for when in ('1', '2')),
        *(('fstat,newfstatat', 'ENOMEM', when) for when in ('1', '2', '4')),
        *(('lseek', 'ENOMEM', when) for when in ('1', '2')),
    ],
}


def make_tests():
    for case, faults in FAULTS.items():
        for fault in faults:
            name = 'test_' + re.sub(r'\W+', '_', '_'.join(map(str, fault[:3])))
            setattr(case, name, lambda self, fault=fault: self.check(*fault))


make_tests()
make_damage_tests()

if __name__ == '__main__':
    testing.main()
