#!/usr/bin/python3 -B
"""Followers by the thousand, floods, what is kept and for how long, and what it all costs when nothing happens."""

import contextlib
import itertools
import os
import random
import re
import sys
import time
import unittest

import jobworker_testing as testing
from jobworker_testing import grpc
from numbered_output import OUR_THREADS, PROGRAM, DeployedSite, Follower, Gate, Job

MIB = 1024 * 1024
ENDLESS = 1 << 40


class FollowersTest(unittest.TestCase):
    """Each with a broker and a front end of its own."""

    config = ''

    def setUp(self):
        self.site = self.enterContext(DeployedSite())
        self.program = self.site.program('torture_job')
        self.messages = testing.our_api()[0]
        self.tags = itertools.count(1)
        self.site.start_broker()
        self.start_front_end(self.config)
        self.addCleanup(lambda: self.assertEqual(self.site.end(), [], self.site.logs()))

    def start_front_end(self, config):
        os.chown(self.site.write('config', config), self.site.server_uid, -1)
        self.site.start_front_end(f'--config={self.site.path("config")}')
        self.worker, channel = self.site.worker()
        self.addCleanup(channel.close)

    def restart_front_end(self, config):
        self.site.kill_front_end()
        self.start_front_end(config)

    def start(self, command, *args, worker=None):
        """The stream of a job that has started, and its first response."""
        request = self.messages.WorkerStartRequest(command=command, args=args)
        stream = (worker or self.worker).JobStart(request, timeout=testing.HANG)
        return stream, next(stream)

    def run_job(self, command, *args):
        """The id of a job that has ended."""
        stream, first = self.start(command, *args)
        list(stream)
        return first.pid

    def query(self, job_id, **options):
        request = self.messages.WorkerPIDRequest(pid=job_id, **options)
        return self.worker.JobQuery(request, timeout=testing.HANG)

    def stop(self, job_id):
        request = self.messages.WorkerPIDRequest(pid=job_id, now=True)
        return self.worker.JobStop(request, timeout=testing.HANG).end

    def new_job(self, out, err, chunk, end=0, gate=()):
        job = Job(next(self.tags), out, err, chunk, end, gate)
        job.user = 'alice'
        return job

    def follow(self, job, **options):
        follower = Follower(self.worker, job, start=self.program, **options)
        follower.start()
        return follower

    def finish(self, follower):
        follower.join(testing.HANG)
        self.assertFalse(follower.is_alive(), follower.job)
        self.assertIsNone(follower.wrong)

    def assert_unknown(self, job_id):
        code, details = testing.outcome(lambda: list(self.query(job_id)))
        self.assertEqual(code, grpc.StatusCode.NOT_FOUND, details)

    def journals(self):
        """Of each file in memory that the broker keeps: its size, and the memory that it takes."""
        pid = self.site.broker_pid()
        files = [os.stat(f'/proc/{pid}/fd/{number}') for number, link in self.site.descriptors(pid).items()
                 if link.startswith('/memfd:job')]
        return [(file.st_size, file.st_blocks * 512) for file in files]

    def memory(self):
        """Of the front end alone, without what it shares with files."""
        with open(f'/proc/{self.site.front_end_pid()}/status', encoding='utf-8') as file:
            return int(re.search(r'^RssAnon:\s+(\d+) kB', file.read(), re.M)[1]) * 1024


class ManyFollowersTest(FollowersTest):

    # Freed memory is not all given back: each of the allocator's arenas keeps some, in pieces. So it is measured from
    # where the first thousand streams have brought it. One stream costs several KiB while it lives; if each of the
    # other 9,000 left 300 bytes behind, it would show.
    TOLERANCE = 9000 * 300
    BATCH, CONNECTIONS = 500, 5

    def batch(self, job_id, how):
        """Streams that are all open at once, on several connections, and then are gone."""
        request = self.messages.WorkerPIDRequest(pid=job_id)
        connections = [self.site.worker() for _ in range(self.CONNECTIONS)]
        streams = [connections[i % self.CONNECTIONS][0].JobQuery(request) for i in range(self.BATCH)]
        for stream in streams:
            self.assertEqual(next(stream).pid, job_id)
        if how == 'cancelled':
            for stream in streams:
                stream.cancel()
        for _, channel in connections:  # which kills what is still open
            channel.close()

    def settle(self, job_id, descriptors):
        """Nobody is told when gRPC has noticed that a connection is gone, so this asks until it has; a leak is what
        makes it ask for ever."""
        deadline = time.monotonic() + testing.HANG
        while True:
            first, = [answer for answer in self.query(job_id, no_follow=True) if answer.HasField('status')]
            if (first.status.output.followers == 0 and len(self.site.descriptors()) <= descriptors and
                    self.site.threads()[PROGRAM] == OUR_THREADS):
                return
            self.assertLess(time.monotonic(), deadline, f'{first.status.output.followers} followers, '
                            f'{self.site.descriptors()} instead of {descriptors}, {self.site.threads()}')

    def test_10000_streams_leave_nothing_behind(self):
        stream, first = self.start(b'sh', b'-c', b'echo; exec sleep 1000')
        stream.cancel()
        descriptors = len(self.site.descriptors())
        for how in ('cancelled', 'killed'):
            self.batch(first.pid, how)
        self.settle(first.pid, descriptors)
        memory = self.memory()
        for how in ('cancelled', 'killed') * 9:
            self.batch(first.pid, how)
        self.settle(first.pid, descriptors)
        self.assertEqual(len(self.site.descriptors()), descriptors)
        # gRPC's pools grow with the load at any time, not with the streams, and never shrink: its executors up to twice
        # the cores, the others by one when all of theirs are busy.
        for name, count in self.site.threads().items():
            self.assertLessEqual(count, 2 * os.cpu_count(), name)
        self.assertLess(self.memory() - memory, self.TOLERANCE)
        print(f'memory of the front end after 1,000 and 10,000 streams: {memory // 1024} and '
              f'{self.memory() // 1024} KiB', file=sys.stderr)


class FloodTest(FollowersTest):
    """Hostile jobs, one of which writes single bytes to both streams by turns, which costs the most bookkeeping."""

    LIMITS = {'per-job': 1 * MIB, 'per-user': 2 * MIB, 'total': 3 * MIB}
    config = '[output]\n' + '\n'.join(f'{key} = {value}' for key, value in LIMITS.items())
    # Over a bound by what is taken from a pipe at once, and what is not punched away one by one; for each job.
    SLACK = MIB + MIB // 2
    # The front end's own, for each job: what it keeps of each mark in memory is counted as output.
    OWN = 4 * MIB

    def flood(self, chunk, user='alice'):
        worker, channel = self.site.worker(user)
        self.addCleanup(channel.close)
        words = [str(word).encode() for word in (next(self.tags), ENDLESS, ENDLESS, chunk, 0)]
        stream, first = self.start(self.program.encode(), *words, worker=worker)
        stream.cancel()
        return first.pid

    def test_a_flood_is_bounded_per_job_user_and_in_all_and_harms_nobody_else(self):
        before = self.memory()
        floods = [self.flood(chunk) for chunk in (1, 65536, 3000)]
        self.flood(65536, 'bob')
        follower = self.follow(self.new_job(4 * MIB, 2 * MIB, 777), allow_gaps=True)
        bob = self.enterContext(self.site.client('bob'))
        for _ in range(20):
            self.assertEqual(bob.start(b'echo', b'undisturbed').finish().exit_code, 0)
            taken = sorted(memory for _, memory in self.journals())
            self.assertLessEqual(sum(taken), self.LIMITS['total'] + 5 * self.SLACK)
            self.assertLessEqual(taken[-1], self.LIMITS['per-job'] + self.SLACK)
            self.assertLess(self.memory() - before, self.OWN + self.LIMITS['total'])
        quiet = bob.start(b'echo', b'undisturbed')
        quiet.finish()
        self.assertEqual(quiet.stdout, b'undisturbed\n')
        self.finish(follower)
        self.assertGreater(max(size for size, _ in self.journals()), 3 * self.LIMITS['total'])
        for job_id in floods:
            status = next(self.query(job_id, no_follow=True)).status
            self.assertGreater(status.output.first, 0)
            self.assertLessEqual(status.output.held, self.LIMITS['per-job'] + MIB)
            self.assertEqual(self.stop(job_id).signal, 9)

    def test_a_gap_is_told_with_its_size_and_what_follows_is_right(self):
        gate = self.enterContext(contextlib.closing(Gate(self.site, 'alice')))
        job = self.new_job(8 * MIB, 8 * MIB, 5000, 7, gate.paths)
        first = self.follow(job, allow_gaps=True)
        self.assertTrue(job.started.wait(testing.HANG))
        gate.release()
        self.finish(first)
        late = Follower(self.worker, job, allow_gaps=True)
        one_stream = Follower(self.worker, job, streams=1, allow_gaps=True)
        for follower in (late, one_stream):
            follower.start()
            self.finish(follower)
        status = next(self.query(job.id, no_follow=True)).status
        self.assertEqual((late.gaps, status.output.end), (status.output.first, 16 * MIB))
        self.assertGreater(late.gaps, 14 * MIB)

    def test_what_was_dropped_is_given_back_to_the_machine(self):
        self.finish(self.follow(self.new_job(32 * MIB, 0, 65536), allow_gaps=True))
        (size, taken), = [journal for journal in self.journals() if journal[0] >= 32 * MIB]
        self.assertEqual(size, 32 * MIB)
        self.assertLessEqual(taken, self.LIMITS['per-job'] + MIB // 2)


class WaitingJobTest(FollowersTest):

    config = '[output]\nper-job = 1_048_576\npolicy = "block"'

    def test_a_job_waits_for_its_follower_and_nothing_is_lost(self):
        gate = self.enterContext(contextlib.closing(Gate(self.site, 'alice')))
        job = self.new_job(40 * MIB, 24 * MIB, 65536, 5, gate.paths)
        follower = self.follow(job, pause=lambda: self.query(job.id, no_follow=True).cancel())  # a slow one
        self.assertTrue(job.started.wait(testing.HANG))
        gate.release()
        self.finish(follower)
        self.assertEqual((follower.offset, follower.gaps), (64 * MIB, 0))


    # Jobs of one stream, so that an offset is a position in it.
    SIZE = 24 * MIB
    READER = 7

    def waiting_job(self):
        """One that nobody follows, and that waits."""
        gate = self.enterContext(contextlib.closing(Gate(self.site, 'alice')))
        job = self.new_job(self.SIZE, 0, 65536, 3, gate.paths)
        self.start_and_leave(job)
        gate.release()
        self.wait_until_full(job)
        return job

    def start_and_leave(self, job):
        """And nobody is expected to come back. It has not been sent any output."""
        stream = self.worker.JobStart(job.start_request(self.program), timeout=testing.HANG)
        job.took_id(next(stream).pid)
        stream.cancel()
        deadline = time.monotonic() + testing.HANG
        while self.output_of(job).followers > 0:
            self.assertLess(time.monotonic(), deadline)

    def wait_until_full(self, job):
        deadline = time.monotonic() + testing.HANG
        while self.output_of(job).held < MIB:
            self.assertLess(time.monotonic(), deadline)

    def output_of(self, job):
        return self.worker.JobStatusOf(self.messages.WorkerPIDRequest(pid=job.id), timeout=testing.HANG).output

    def stalled(self, job, worker=None, **options):
        """A client that gets a bit and then reads no more: the stream, and where it is."""
        request = self.messages.WorkerPIDRequest(pid=job.id, **options)
        stream = (worker or self.worker).JobQuery(request, timeout=testing.HANG)
        next(stream)
        response = next(stream)
        return stream, response.offset + len(response.log)

    def from_there(self, job, offset, reader=READER):
        follower = Follower(self.worker, job, offset=offset, positions=(offset, 0), reader=reader)
        follower.start()
        return follower

    def test_without_a_follower_it_waits_and_a_front_end_that_is_killed_makes_no_difference(self):
        job = self.waiting_job()
        self.restart_front_end(self.config)
        self.assertTrue(list(self.query(job.id, no_follow=True))[-1].partial)  # who has a look reads for nobody
        self.assertEqual(self.output_of(job).first, 0)
        self.finish(self.follow(job))

    def test_what_a_client_that_is_broken_off_had_not_read_is_there(self):
        job = self.waiting_job()
        worker, channel = self.site.worker()
        _, offset = self.stalled(job, worker, reader=self.READER)
        self.wait_until_full(job)
        channel.close()
        self.finish(self.from_there(job, offset))

    def test_nor_does_a_killed_front_end_take_it_away(self):
        job = self.waiting_job()
        stream, offset = self.stalled(job, reader=self.READER)
        self.wait_until_full(job)
        self.restart_front_end(self.config)
        stream.cancel()
        self.finish(self.from_there(job, offset))

    def test_a_client_that_is_broken_off_is_waited_for_by_another(self):
        for restart in (False, True):
            job = self.waiting_job()
            worker, channel = self.site.worker()
            _, offset = self.stalled(job, worker, reader=self.READER)
            other = self.from_there(job, 0, reader=8)
            self.wait_until_full(job)
            channel.close()
            if restart:
                self.restart_front_end(self.config)
            self.finish(self.from_there(job, offset))
            self.finish(other)

    def test_one_that_does_not_read_holds_up_the_job_until_it_is_gone_for_good(self):
        self.restart_front_end(self.config)
        job = self.waiting_job()
        stream, _ = self.stalled(job, reader=self.READER)
        other = self.from_there(job, 0, reader=8)
        self.wait_until_full(job)
        self.assertEqual(self.output_of(job).first, 0)
        stream.cancel()
        other.join(30)  # so long it may come back
        self.finish(other)

    def test_a_follower_of_one_stream_makes_room_of_the_other(self):
        for only, sizes in ((0, (1000, 8 * MIB)), (1, (8 * MIB, 1000)), (0, (8 * MIB, 8 * MIB))):
            gate = self.enterContext(contextlib.closing(Gate(self.site, 'alice')))
            job = self.new_job(*sizes, 3000, 0, gate.paths)
            self.start_and_leave(job)
            follower = Follower(self.worker, job, streams=only)
            follower.start()
            gate.release()
            self.finish(follower)

    def test_a_client_that_does_not_come_back_gets_all_in_one_stream(self):
        job = self.waiting_job()
        self.assertEqual(b''.join(response.log for response in self.query(job.id)), job.output(0))


class KilledFloodTest(FollowersTest):

    config = '[output]\nper-job = 1_048_576\npolicy = "kill"'

    def test_a_flood_is_ended_and_its_end_says_so(self):
        stream, _ = self.start(b'cat', b'/dev/zero')
        end = list(stream)[-1].end
        self.assertEqual((end.reason, end.signal), (self.messages.JobEnd.OUTPUT_LIMIT, 9))
        self.run_job(b'true')


class RoundTripTest(FollowersTest):

    config = '[output]\nper-job = 134_217_728'

    def test_64_mib_of_random_bytes_come_through_bit_for_bit_while_they_are_written_and_later(self):
        noise = random.Random(2).randbytes(64 * MIB)
        path = f'{self.site.home("alice")}/noise'
        with open(path, 'wb') as file:
            file.write(noise)
        os.chmod(path, 0o644)
        stream, first = self.start(b'cat', path.encode())
        for responses in (stream, self.query(first.pid)):
            self.assertTrue(b''.join(response.log for response in responses) == noise)


class RetentionTest(FollowersTest):

    def test_ended_jobs_are_kept_by_count_and_the_oldest_goes_first(self):
        self.restart_front_end('[ended]\nper-user = 2')
        ids = [self.run_job(b'true') for _ in range(4)]
        for forgotten in ids[:2]:
            self.assert_unknown(forgotten)
        for kept in ids[2:]:
            list(self.query(kept))
        # Of what is forgotten the broker keeps nothing.
        self.assertEqual(len(self.journals()), 2 * 2)

    def kinds(self, pid=None):
        """How many files in memory and pipes a process has open: the broker, or the front end."""
        links = self.site.descriptors(pid).values()
        return [sum(link.startswith(kind) for link in links) for kind in ('/memfd:job', 'pipe:')]

    def test_an_ended_job_costs_the_front_end_its_two_files_and_the_broker_its_pipes_too(self):
        """The broker cannot know whether what is in a pipe was read: a front end may die between the end and that. It
        keeps all until the job is forgotten."""
        jobs = 20
        self.run_job(b'true')
        front_end, broker = self.kinds(), self.kinds(self.site.broker_pid())
        ids = [self.run_job(b'echo', b'hi') for _ in range(jobs)]
        for _ in range(2):
            self.assertEqual(self.kinds(), [front_end[0] + 2 * jobs, front_end[1]])
            self.assertEqual(self.kinds(self.site.broker_pid()), [broker[0] + 2 * jobs, broker[1] + 2 * jobs])
            self.restart_front_end('')
            self.run_job(b'true')
            jobs += 1
        for job_id in ids:
            self.worker.JobRemove(self.messages.WorkerPIDRequest(pid=job_id), timeout=testing.HANG)
        self.run_job(b'true')  # behind which the broker has forgotten
        self.assertEqual(self.kinds(), [front_end[0] + 2 * 3, front_end[1]])
        self.assertEqual(self.kinds(self.site.broker_pid()), [broker[0] + 2 * 3, broker[1] + 2 * 3])

    def test_ended_jobs_are_kept_by_age_and_ids_go_on_when_all_are_forgotten(self):
        age = 1
        self.restart_front_end(f'[ended]\ndays = {age / 86400}')
        ids = [self.run_job(b'true') for _ in range(3)]
        time.sleep(age)  # what is tested is that this passes
        self.restart_front_end(f'[ended]\ndays = {age / 86400}')
        for forgotten in ids:
            self.assert_unknown(forgotten)
        self.restart_front_end('')
        for forgotten in ids:
            self.assert_unknown(forgotten)
        self.assertEqual(self.run_job(b'true'), str(int(ids[-1]) + 1))

    def test_days_0_is_for_ever(self):
        self.restart_front_end('[ended]\ndays = 0')
        first, _ = (self.run_job(b'true') for _ in range(2))
        list(self.query(first))


class WakeUpsTest(FollowersTest):

    JOBS, SECONDS = 100, 10
    # gRPC's timer thread looks one second ahead at most, whatever there is to wait for. They are its own, and counted
    # by themselves.
    TIMERS = re.compile('grpc_global_tim|timer_manager')

    def switches(self, pids):
        """How often the threads of these processes came to run again: gRPC's timers, and all others."""
        counts = {}
        for pid in pids:
            for task in os.listdir(f'/proc/{pid}/task'):
                with open(f'/proc/{pid}/task/{task}/status', encoding='utf-8') as file:
                    text = file.read()
                name = re.search(r'^Name:\s+(.*)', text)[1]
                counts[pid, task, name] = sum(map(int, re.findall(r'ctxt_switches:\s+(\d+)', text)))
        return counts

    def test_100_quiet_jobs_with_100_followers_wake_nobody_up(self):
        followers = []
        for _ in range(self.JOBS):
            follower = self.site.start_cli('start', 'sh', '-c', 'echo; exec sleep 1000')
            followers.append(follower)
            self.addCleanup(self.end_cli, follower)
        for follower in followers:
            self.assertEqual(follower.stdout.readline(), b'\n')
        pids = [self.site.broker.pid, *testing.children_of(self.site.broker.pid, "jobbroker"), self.site.front_end_pid(),
                *(follower.pid for follower in followers)]
        time.sleep(2)  # until what their start has set off is over
        before = self.switches(pids)
        time.sleep(self.SECONDS)
        after = self.switches(pids)
        self.assertEqual(before.keys(), after.keys())
        woken = {who: after[who] - before[who] for who in before if after[who] != before[who]}
        timers = sum(count for who, count in woken.items() if self.TIMERS.match(who[2]))
        print(f'gRPC\'s own timers woke up {timers} times in {len(pids)} processes', file=sys.stderr)
        self.assertEqual({who: count for who, count in woken.items() if not self.TIMERS.match(who[2])}, {})

    @staticmethod
    def end_cli(follower):
        follower.kill()
        follower.wait()
        follower.stdout.close()
        follower.stderr.close()

    def test_one_byte_is_there_without_any_further_event(self):
        fifo = self.enterContext(contextlib.closing(self.site.fifo()))
        stream, _ = self.start(b'sh', b'-c', b'while read word; do printf x; done <"$0"', fifo.path.encode())
        for offset in range(50):
            fifo.write_line()
            response = next(stream)
            self.assertEqual((response.log, response.offset), (b'x', offset))


if __name__ == '__main__':
    testing.main()
