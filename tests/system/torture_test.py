#!/usr/bin/python3 -B
"""The front end is killed again and again, at random instants, while jobs write and followers read; nothing is lost.

usage: torture_test.py [--kills N] [--minutes M] [--seed S] [UNITTEST-ARGUMENT...]
  --kills    of each test (80, and 30 of the one whose jobs wait for their followers)
  --minutes  goes on until both are reached
  --seed     of the choices that are made; what the kernel and the network make of them is not repeatable

The clock only picks the instant of a kill. Nothing is judged by it.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import threading
import time
import unittest

import jobworker_testing as testing
from jobworker_testing import grpc
from numbered_output import DeployedSite, Follower, Gate, Job, random_end

MIB = 1024 * 1024
USERS = ('alice', 'bob')
LIVE_AT_MOST = 12
IN_A_PIPE = 4000  # fits even where the kernel is down to two pages for a pipe (pipe-user-pages-soft)

OPTIONS = argparse.Namespace(kills=None, minutes=0, seed=None)

CONFIG = """
[output]
per-job = {job}
per-user = {all}
total = {all}
policy = "{policy}"
"""


class Kills:
    """How many there were, for whoever wants to sleep over one."""

    def __init__(self):
        self.count, self._over, self._changed = 0, False, threading.Condition()

    def add(self):
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def end(self):
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait_for_next(self):
        with self._changed:
            wanted = self.count + 1
            self._changed.wait_for(lambda: self._over or self.count >= wanted)


class CliFollower:
    """The command line client, which connects again by itself."""

    def __init__(self, site, job):
        self.job = job
        self._out, self._arrived = b'', threading.Event()
        self._err = open(site.path(f'cli-{site.cli_count}'), 'w+b')
        site.cli_count += 1
        self._process = subprocess.Popen(site.cli_command('query', job.id, user=job.user), stdin=subprocess.DEVNULL,
                                         stdout=subprocess.PIPE, stderr=self._err, env=site.cli_environment())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # It gives up at once on a server that it has never reached.
        if not self._arrived.wait(testing.HANG):
            raise AssertionError(f'{job!r}: nothing comes to the command line client')

    def _read(self):
        while data := self._process.stdout.read1():
            self._out += data
            self._arrived.set()
        self._process.stdout.close()

    def check(self, test):
        self._reader.join(testing.HANG)
        end = self.job.end_with
        self._err.seek(0)
        with self._err:
            err = self._err.read()
        test.assertEqual(self._process.wait(testing.HANG), end if end >= 0 else 128 - end, f'{self.job}\n{err[-300:]}')
        test.assertTrue(self._out == self.job.output(0), f'{self.job!r}: stdout of the command line client')
        # Its own words are there too.
        ours = re.sub(rb'jobworker: [^\n]*\n', b'', err)
        test.assertTrue(ours == self.job.output(1), f'{self.job!r}: stderr of the command line client')
        return err.count(b'jobworker: ')


class TortureTest(unittest.TestCase):

    repeats = (0, 0, 1)  # of a start, with the same request key, at the same time

    def setUp(self):
        self.seed = OPTIONS.seed if OPTIONS.seed is not None else random.SystemRandom().randrange(1 << 32)
        print(f'--seed {self.seed}', file=sys.stderr)
        self.chosen = random.Random(self.seed)
        self.site = self.enterContext(DeployedSite('pids=max job-pids=max memory=max cpu=max write-bytes=max '
                                                   'write-ops=max jobs=max'))
        self.site.cli_count = 0
        self.kills = Kills()
        self.jobs, self.followers, self.clis, self.gates, self.front_ends = [], [], [], [], []
        self.workers, self.program = {}, self.site.program('torture_job')
        self.addCleanup(self.close)

    def close(self):
        for _, channel in self.workers.values():
            channel.close()
        for gate in self.gates:
            gate.close()

    def configure(self, **values):
        self.flags = [f'--config={self.site.write("config", CONFIG.format(**values))}']
        os.chown(self.site.path('config'), self.site.server_uid, -1)

    # What goes on

    def worker(self, user):
        """One of a few connections, which followers share."""
        key = user, self.chosen.randrange(3)
        if key not in self.workers:
            self.workers[key] = self.site.worker(user)
        return self.workers[key][0]

    def follow(self, job, **options):
        follower = Follower(self.worker(job.user), job, **options)
        self.followers.append(follower)
        follower.start()
        return follower

    def new_job(self, out, err, chunk, end, gated=False):
        """The start is on its way when this returns."""
        user = self.chosen.choice(USERS)
        gate = Gate(self.site, user) if gated else None
        self.gates += [gate] if gate else []
        job = Job(len(self.jobs) + 1, out, err, chunk, end, gate.paths if gate else ())
        job.user = user
        self.jobs.append(job)
        self.follow(job, start=self.program)
        for _ in range(self.chosen.choice(self.repeats)):
            self.follow(job, start=self.program)
        return job, gate

    def random_job(self, gated=False):
        chunk = self.chosen.choice((1, 7, 100, 5000, 200_000))
        most = min(chunk * 40_000, 3 * MIB)
        return self.new_job(self.chosen.randint(0, most), self.chosen.randint(0, most), chunk,
                            random_end(self.chosen), gated)

    def live(self):
        return sum(follower.is_alive() and follower.whole for follower in self.followers)

    def stall(self):
        if self.chosen.random() < 0.05:
            self.kills.wait_for_next()

    def add_followers(self):
        """Of jobs that run and of ended ones."""
        started = [job for job in self.jobs[-10:] if job.started.is_set()]
        for job in self.chosen.sample(started, min(1, len(started))):
            kind = self.chosen.randrange(5)
            if kind == 0:
                self.follow(job, pause=self.stall)
            elif kind == 1:
                offset, positions = job.known_place(self.chosen)
                self.follow(job, offset=offset, positions=positions)
            elif kind in (2, 3):
                self.follow(job, streams=kind - 2, pause=self.chosen.choice((None, self.stall)))
            elif len(self.clis) < 8 and job.has_stdout():
                self.clis.append(CliFollower(self.site, job))

    # The kills

    def start_front_end(self):
        self.front_ends.append(self.site.run_front_end(*self.flags))

    def kill(self):
        front_end = self.front_ends[-1]
        # What it said before it was ready may be why it ended by itself.
        self.assertIsNone(front_end.process.poll(), front_end.log)
        self.assertEqual(front_end.end(testing.signal.SIGKILL), -testing.signal.SIGKILL, front_end.log())
        self.kills.add()

    def ready(self):
        self.front_ends[-1].wait_for_line('^jobserver: listening')

    def pass_time(self, most):
        time.sleep(self.chosen.uniform(0, most))

    def goes_on(self, kills):
        wrong = [follower.wrong for follower in self.followers if follower.wrong]
        self.assertEqual(wrong, [], self.front_ends[-1].log() if self.front_ends else '')
        enough = self.kills.count >= (OPTIONS.kills if OPTIONS.kills is not None else kills)
        return not enough or time.monotonic() < self.began + OPTIONS.minutes * 60

    def one_kill(self):
        """At an instant of one of several kinds, and perhaps a job ends before there is a front end again."""
        kind = self.chosen.choice(('starting up', 'burst', 'burst', 'start', 'any', 'any', 'any'))
        if kind == 'starting up':
            self.pass_time(0.06)
            return self.kill()
        self.ready()
        if self.live() < LIVE_AT_MOST:
            self.random_job()
        self.add_followers()
        ends_unseen = self.new_job(self.chosen.randint(0, IN_A_PIPE), self.chosen.randint(0, IN_A_PIPE), 5000,
                                   random_end(self.chosen), True) if self.chosen.random() < 0.3 else None
        burst = self.new_job(2 * MIB, 3 * MIB, 100_000, random_end(self.chosen), True) if kind == 'burst' else None
        for gated in filter(None, (ends_unseen, burst)):
            self.assertTrue(gated[0].started.wait(testing.HANG), self.front_ends[-1].log())
        if burst:
            burst[1].release()
            self.pass_time(0.01)
        elif kind == 'start':
            self.random_job()
            self.pass_time(0.01)
        else:
            self.pass_time(0.3)
        self.kill()
        if ends_unseen:
            ends_unseen[1].release()
            ends_unseen[1].wait_for_the_end()

    # What has become of it all

    def finish_followers(self):
        self.kills.end()
        deadline = time.monotonic() + testing.HANG
        for follower in self.followers:
            follower.join(max(0, deadline - time.monotonic()))
        self.assertEqual([follower.wrong for follower in self.followers if follower.wrong], [])
        self.assertEqual([f'{follower.job!r} at {follower.offset}' for follower in self.followers
                          if follower.is_alive()], [], self.front_ends[-1].log())

    def check_all_anew(self):
        """The same bytes in the same order, and the same end."""
        orders = {}
        for follower in self.followers:
            if follower.whole:
                orders.setdefault(follower.job, set()).add(follower.order())
        anew = [self.follow(job) for job in self.jobs]
        self.finish_followers()
        for follower in anew:
            self.assertEqual(orders[follower.job], {follower.order()}, follower.job)

    def check_ids(self):
        """Each start made one job with an id of its own, no job is there that nobody knows, and no id is used again."""
        messages = testing.our_api()[0]
        for user in USERS:
            ids = [int(job.id) for job in self.jobs if job.user == user]
            self.assertEqual(len(ids), len(set(ids)))
            worker, channel = self.site.worker(user)
            with channel:
                newest = max(ids, default=0)
                for unknown in set(range(1, newest + 3)) - set(ids):
                    request = messages.WorkerPIDRequest(pid=str(unknown), no_follow=True)
                    code, _ = testing.outcome(lambda asked=request: list(worker.JobQuery(asked, timeout=testing.HANG)))
                    self.assertEqual(code, grpc.StatusCode.NOT_FOUND, f'{user}/{unknown}')
                started = list(worker.JobStart(messages.WorkerStartRequest(command=b'true'), timeout=testing.HANG))
                self.assertGreater(int(started[0].pid), newest)

    def check_logs(self):
        for front_end in self.front_ends:
            self.assertNotRegex(front_end.log(), r'output lost|output waits|broker gone|damage="?(?!none)[a-z]')
        for line in self.site.broker.lines:
            self.assertRegex(line, 'waiting for a front end|has no controllers|front end dropped reason="(closed|Broken pipe)"')

    def torture(self, kills):
        self.began = time.monotonic()
        self.site.start_broker()
        self.start_front_end()
        self.ready()
        broker_fds = f'/proc/{self.site.broker_pid()}/fd'
        descriptors = len(os.listdir(broker_fds))
        while self.goes_on(kills):
            self.one_kill()
            self.start_front_end()
        self.ready()
        for gate in self.gates:
            gate.release()
        self.finish_jobs()
        notices = sum(cli.check(self) for cli in self.clis)
        self.check_all_anew()
        self.check_ids()
        self.check_logs()
        # Of each job the broker keeps two pipes and two files. (The last of each user is check_ids's.)
        self.assertEqual(len(os.listdir(broker_fds)) - descriptors, 4 * (len(self.jobs) + len(USERS)))
        self.assertEqual(self.site.end(), [], self.site.logs())
        followers, losses = len(self.followers), sum(follower.losses for follower in self.followers)
        size = sum(follower.offset for follower in self.followers) / MIB
        print(f'{self.kills.count} kills, {len(self.jobs)} jobs, {followers} followers that lost their connection '
              f'{losses} times and had up to {size:.0f} MiB in all, {len(self.clis)} command line clients that said '
              f'{notices} words', file=sys.stderr)

    def finish_jobs(self):
        self.finish_followers()


class NothingLostTest(TortureTest):

    def test_no_byte_end_or_id_is_lost_or_doubled(self):
        self.configure(job=256 * MIB, all=8192 * MIB, policy='drop-oldest')
        self.torture(80)


class WaitingJobsTest(TortureTest):
    """Jobs without an end, that wait at the bound of their journals, each with one follower: kills come when the front
    end reads pipes, punches holes and writes to the network all at once."""

    repeats = (0,)

    def one_kill(self):
        self.ready()
        while len(self.jobs) < 3:
            chunk = (65_536, 3000, 200)[len(self.jobs)]
            job, _ = self.new_job(1 << 40, 1 << 40, chunk, -testing.signal.SIGTERM)
            job.stopped = True
        self.pass_time(0.4)
        self.kill()

    def finish_jobs(self):
        messages = testing.our_api()[0]
        for job in self.jobs:
            worker, channel = self.site.worker(job.user)
            with channel:
                stopped = worker.JobStop(messages.WorkerPIDRequest(pid=job.id), timeout=testing.HANG)
                self.assertEqual(stopped.end.reason, messages.JobEnd.STOPPED)
        self.finish_followers()

    def check_all_anew(self):
        """What is held is the end of what was written."""
        anew = [self.follow(job, allow_gaps=True) for job in self.jobs]
        self.finish_followers()
        self.assertGreater(sum(follower.gaps for follower in anew), 0)

    def test_a_job_that_waits_for_its_follower_loses_nothing(self):
        self.configure(job=2 * MIB, all=4096 * MIB, policy='block')
        self.torture(30)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split('\n\n')[1])
    parser.add_argument('--kills', type=int)
    parser.add_argument('--minutes', type=float, default=0)
    parser.add_argument('--seed', type=int)
    _, rest = parser.parse_known_args(namespace=OPTIONS)
    sys.argv[1:] = rest
    testing.main()


if __name__ == '__main__':
    main()
