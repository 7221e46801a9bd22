"""The checks of the level `limits`, run as root inside user-mode Linux by tests/limits/run.

Prints lines for tests/limits/verdict: "ok NAME", "not ok NAME: why", and "# NAME: figures".
usage: guest.py BUILD_DIR all|no-memory [CHECK]...
"""
import functools
import json
import os
import select
import subprocess
import sys
import time

import linger

BIN = sys.argv[1] + '/bin/'
CERTS = os.path.dirname(os.path.abspath(__file__)) + '/../../certs'
ROOT = '/sys/fs/cgroup/jobworker'
HANG = 100  # seconds: nothing here takes so long; a guard, not a measure
HOME = '/var/lib/jobworker/'

# alice has the seed's limits, bob none, carl room for eight processes.
USERS = f'''
alice uid=70001 gid=70001 dir={HOME}alice
bob uid=70002 gid=70002 dir={HOME}bob cpu=max memory=max write-bytes=max write-ops=max
carl uid=70003 gid=70003 dir={HOME}carl pids=8
'''
POLICY = ''.join(f'{user} allow_start allow_stop allow_query\n' for user in ('alice', 'bob', 'carl'))


class Failure(Exception):
    pass


def Require(condition, why):
    if not condition:
        raise Failure(why)


def Write(path, text):
    with open(path, 'w') as file:
        file.write(text)
    return path


def Read(*path):
    with open('/'.join((ROOT,) + path)) as file:
        return file.read().strip()


def Number(key, *path):
    """The value of `key` in a flat-keyed control file."""
    return next((int(line.split()[1]) for line in Read(*path).splitlines() if line.split()[0] == key), 0)


def DiskNumber(key, user):
    words = ' '.join(line for line in Read(user, 'io.stat').splitlines() if line.startswith('98:0 ')).split()
    return next((int(word.split('=')[1]) for word in words if word.startswith(key + '=')), 0)


class Server:
    """jobserver with a jobbroker of its own, from its first line to the last of its cgroups."""

    def __init__(self, *arguments):
        command = [BIN + 'jobserver', '--listen', '127.0.0.1:0', '--port-file', '/run/port', '--certs', CERTS]
        self.process = subprocess.Popen(command + list(arguments), stderr=subprocess.PIPE, text=True)
        self.log = ''
        self.listening = False
        for line in self.process.stderr:
            self.log += line
            self.listening = 'listening' in line
            if self.listening:
                break

    def __enter__(self):
        Require(self.listening, 'jobserver did not start: ' + self.log)
        with open('/run/port') as file:
            self.port = file.read().strip()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=HANG)
        Require(not os.path.exists(ROOT), 'the server left its cgroups behind')

    def Cli(self, user, *words):
        return [BIN + 'jobworker', '-h', '127.0.0.1:' + self.port, '--certs', CERTS, '-u', user, *words]

    def Run(self, user, *words):
        """A CLI to its end: (exit status, stdout, stderr)."""
        done = subprocess.run(self.Cli(user, *words), capture_output=True, text=True, timeout=HANG)
        return done.returncode, done.stdout, done.stderr

    def Detach(self, user, *words):
        status, out, err = self.Run(user, 'start', '-d', '--', *words)
        Require(status == 0, f'start -d: {status}: {err}')
        return out.strip()

    def Stop(self, user, job):
        status, _, err = self.Run(user, 'stop', job)
        Require(status == 0, f'stop: {status}: {err}')

    def Measure(self, user, command, read):
        """Runs a job that says "go" when it begins; (seconds, growth of read()) from there to its end."""
        cli = subprocess.Popen(self.Cli(user, 'start', '--', 'sh', '-c', 'echo go; exec ' + command),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        Require(cli.stdout.readline() == 'go\n', f'the job of {user} did not begin: {command}')
        began, before = time.monotonic(), read()
        _, err = cli.communicate(timeout=HANG)
        Require(cli.returncode == 0, f'{command}: {cli.returncode}: {err}')
        return time.monotonic() - began, read() - before


def Full():
    return Server('--users', Write('/run/users', USERS), '--policy', Write('/run/policy', POLICY))


def SeedsFigures(say):
    with Server() as server:  # the built-in users
        job = server.Detach('alice', 'sleep', '1000')
        expected = {'cpu.max': '100000 200000', 'memory.max': '134217728', 'memory.swap.max': '0',
                    'io.max': '98:0 rbps=max wbps=1048576 riops=max wiops=120', 'pids.max': '2048',
                    job + '/pids.max': '128', job + '/memory.oom.group': '1'}
        for user in ('alice', 'bob', 'carl'):
            for file, value in expected.items():
                if user != 'alice' and '/' in file:
                    continue
                if os.path.exists(f'{ROOT}/{user}/{file}') or file != 'memory.swap.max':
                    found = Read(user, file)
                    Require(found == value, f'{user}/{file} is "{found}", not "{value}"')
        Require(Read('alice', job, 'cgroup.procs').count('\n') == 0, 'not one process in the leaf')
        server.Stop('alice', job)
        Require(not os.path.exists(f'{ROOT}/alice/{job}'), 'the leaf is still there')
        say('io.max of alice: ' + Read('alice', 'io.max'))


def CpuHeldToHalf(say):
    with Full() as server:
        shares = {}
        for user in ('alice', 'bob'):
            throttled = Number('nr_throttled', user, 'cpu.stat')
            seconds, used = server.Measure(user, 'stress -q -c 1 -t 4', lambda: Number('usage_usec', user, 'cpu.stat'))
            shares[user] = used / 1e6 / seconds
            throttled = Number('nr_throttled', user, 'cpu.stat') - throttled
            say(f'{user}: {used / 1e6:.2f} s of CPU in {seconds:.2f} s, share {shares[user]:.2f}, '
                f'throttled {throttled} times')
            Require((throttled > 0) == (user == 'alice'), f'nr_throttled of {user} grew by {throttled}')
        Require(0.35 <= shares['alice'] <= 0.55, f"alice's share is {shares['alice']:.2f}")
        Require(shares['bob'] > 1.4 * shares['alice'], f"bob, without a limit, got only {shares['bob']:.2f}")


def MemoryKilled(say):
    with Full() as server:
        status, _, err = server.Run('alice', 'start', '--', 'stress', '-q', '--vm', '1', '--vm-bytes', '300M')
        peak, kills = int(Read('alice', 'memory.peak')), Number('oom_kill', 'alice', 'memory.events')
        say(f'exit status {status}, peak {peak} bytes, oom_kill {kills}, "{err.strip()}"')
        Require(status == 128 + 9 and 'out of memory' in err, f'the end does not say so: {status}: {err}')
        Require(kills >= 1 and peak <= 134217728, f'oom_kill {kills}, peak {peak}')
        same = ('stress-ng', '-q', '--vm', '1', '--vm-bytes', '200M', '--vm-populate', '--vm-ops', '1')
        status, _, err = server.Run('bob', 'start', '--', *same)
        peak = int(Read('bob', 'memory.peak'))
        say(f'bob, without a limit: exit status {status}, peak {peak} bytes')
        Require(status == 0 and peak > 200 << 20, f'bob, without a limit: {status}: {err}')


def MemoryOfOneProcess(say):
    with Full() as server:
        status, _, err = server.Run('alice', 'start', '--', 'tail', '/dev/zero')
        say(f'exit status {status}, "{err.strip()}"')
        Require(status == 128 + 9 and 'out of memory' in err, f'{status}: {err}')


def LimitsByFlag(say):
    with Full() as server:
        flags = ('--cpu', '0.25', '--memory', '64M', '--pids', '9', '--io-read', '1M', '--io-write', '2M')
        status, out, err = server.Run('bob', 'start', '-d', *flags, '--', 'sleep', '1000')
        Require(status == 0, f'start: {status}: {err}')
        job = out.strip()
        expected = {'cpu.max': '50000 200000', 'memory.max': '67108864', 'pids.max': '9',
                    'io.max': '98:0 rbps=1048576 wbps=2097152 riops=max wiops=max'}
        for file, value in expected.items():
            Require(Read('bob', job, file) == value, f'{file} is "{Read("bob", job, file)}", not "{value}"')
        limits = json.loads(server.Run('bob', '--json', 'status', job)[1])['limits']
        Require(limits == {'cpu_milli': 250, 'memory_bytes': 67108864, 'pids': 9, 'read_bytes_per_second': 1048576,
                           'write_bytes_per_second': 2097152}, f'the limits that are told: {limits}')
        server.Stop('bob', job)
        status, _, err = server.Run('bob', 'start', '--memory', '64M', '--', 'tail', '/dev/zero')
        say(err.strip())
        Require(status == 128 + 9 and "out of memory (the job's own limit)" in err, f'--memory: {status}: {err}')
        forks = 'for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done'
        status, _, err = server.Run('bob', 'start', '--pids', '9', '--', 'sh', '-c', forks)
        say(err.strip())
        Require(status == 2 and 'fork' in err, f'--pids: {status}: {err}')


def WrittenAtMost(say, command, key, limit, unit):
    with Full() as server:
        rates = {}
        for user in ('alice', 'bob'):
            seconds, written = server.Measure(user, command, lambda: DiskNumber(key, user))
            rates[user] = written / seconds
            say(f'{user}: {written} {unit} in {seconds:.2f} s, {rates[user] / limit:.2f} of the limit')
        Require(0.5 <= rates['alice'] / limit <= 1.15, f"alice wrote {rates['alice']:.0f} {unit}/s")
        Require(rates['bob'] > 3 * rates['alice'], f"bob, without a limit, wrote {rates['bob']:.0f} {unit}/s")


def BytesHeld(say):
    stress = 'stress-ng -q --hdd 1 --hdd-opts direct,wr-seq --hdd-bytes 4M --hdd-write-size 64k --hdd-ops 64'
    WrittenAtMost(say, stress, 'wbytes', 1048576, 'bytes')


def OperationsHeld(say):
    command = 'dd if=/dev/zero of=operations bs=4k count=480 oflag=direct status=none'
    WrittenAtMost(say, command, 'wios', 120, 'operations')


def ForkBombHeld(say):
    with Full() as server:
        bomb = 'import os\nprint("go", flush=True)\nwhile True:\n  try: os.fork()\n  except OSError: pass'
        cli = subprocess.Popen(server.Cli('alice', 'start', '--', 'python3', '-c', bomb), stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
        Require(cli.stdout.readline() == 'go\n', 'the bomb did not go off')
        with open(f'{ROOT}/alice/1/pids.events') as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while Number('max', 'alice', '1', 'pids.events') == 0:
                Require(poll.poll(HANG * 1000), 'the ceiling was never reached')
                events.seek(0)
                events.read()
        processes = int(Read('alice', '1', 'pids.current'))
        Require(processes <= 128, f'{processes} processes')
        status, out, err = server.Run('bob', 'start', '--', 'echo', 'works')
        Require((status, out) == (0, 'works\n'), f"bob's job meanwhile: {status}: {err}")
        server.Stop('alice', '1')
        Require(not os.path.exists(f'{ROOT}/alice/1'), 'the leaf is still there')
        Require(cli.wait(HANG) == 128 + 15 or cli.returncode == 128 + 9, f'its CLI ended with {cli.returncode}')
        say(f'{processes} processes of 128 allowed, all stopped')


def BornAtTheCeiling(say):
    with Full() as server:
        script = 'for i in 1 2 3 4 5 6 7; do sleep 1000 & done; echo full; wait'
        cli = subprocess.Popen(server.Cli('carl', 'start', '--', 'sh', '-c', script), stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
        Require(cli.stdout.readline() == 'full\n', 'the first job did not fill the ceiling')
        Require(Read('carl', 'pids.current') == '8', 'carl has not 8 processes')
        status, _, err = server.Run('carl', 'start', '--', 'true')
        say(f'exit status {status}, "{err.strip()}"')
        Require(status == 125 and 'limit of processes' in err, f'{status}: {err}')
        Require(os.listdir(f'{ROOT}/carl').count('2') == 0, 'the failed start left its leaf')
        server.Stop('carl', '1')
        cli.wait(HANG)
        status, _, err = server.Run('carl', 'start', '--', 'true')
        Require(status == 0, f'the next start: {status}: {err}')


def WarnedAbout(server, name, say):
    with server:
        for words in (('start', '--', 'echo', 'hello'), ('query', '1')):
            status, out, err = server.Run('alice', *words)
            Require((status, out) == (0, 'hello\n') and 'does not enforce' in err and name in err,
                    f'{words[0]}: {status}: {out}: {err}')
        say(err.strip())


def Refused(server, name, say):
    refusal = [line for line in server.log.splitlines() if line.startswith('jobbroker:')]
    status = server.process.wait(HANG)
    Require(status != 0 and refusal and name in refusal[0], f'{status}: {server.log}')
    Require(not os.path.exists(ROOT), 'it left its cgroups behind')
    say(refusal[0])


def NoDisk(say):
    users = ('--users', Write('/run/users', 'alice uid=70001 gid=70001 dir=/tmp/jobworker/alice\n'))
    Refused(Server(*users), 'io of alice', say)
    WarnedAbout(Server(*users, '--missing-controllers=warn'), ': io', say)


def NoMemoryRefused(say):
    Refused(Server(), 'memory', say)


def NoMemoryWarned(say):
    WarnedAbout(Server('--missing-controllers=warn'), ': memory', say)


def LingerStall(say):
    linger.Check(BIN + 'jobbroker', HANG, Require, say)


CHECKS = {
    'all': {
        'seeds-figures': SeedsFigures,
        'cpu-held-to-half': CpuHeldToHalf,
        'memory-killed-at-128-mib': MemoryKilled,
        'memory-of-one-process': MemoryOfOneProcess,
        'limits-by-flag': LimitsByFlag,
        'write-bytes-held': BytesHeld,
        'write-operations-held': OperationsHeld,
        'fork-bomb-held': ForkBombHeld,
        'born-at-the-ceiling': BornAtTheCeiling,
        'no-disk': NoDisk,
        'linger-stall': LingerStall,
    },
    'no-memory': {
        'no-controller-refused': NoMemoryRefused,
        'no-controller-warned': NoMemoryWarned,
    },
}


def Say(name, figures):
    for line in figures.splitlines():
        print(f'# {name}: {line}', flush=True)


def Main():
    for name, check in CHECKS[sys.argv[2]].items():
        if not name.startswith(tuple(sys.argv[3:]) or ''):
            continue
        began = time.monotonic()
        verdict = 'ok ' + name
        try:
            check(functools.partial(Say, name))
        except (Failure, OSError, subprocess.TimeoutExpired) as failure:
            verdict = f'not ok {name}: ' + str(failure).replace('\n', '; ')
        print(verdict, flush=True)
        Say(name, f'{time.monotonic() - began:.1f} s')


Main()
