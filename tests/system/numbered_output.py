"""A deployed broker with a front end that comes and goes, jobs whose every byte is known, and followers that check it.

See torture_job.cc for what is at which position of a job's streams.
"""

import array
import collections
import contextlib
import hashlib
import os
import random
import select
import shutil
import signal
import socket
import threading

import certificates
import jobworker_testing as testing
from jobworker_testing import grpc

PROGRAM = 'jobserver'
OUR_THREADS = 2  # the loop's and the calls'

STREAMS = (0, 1)


def numbered(tag, stream, position, size):
    """`size` bytes of the job with that tag, from a position of one of its streams on."""
    first, skipped = divmod(position, 8)
    base = tag << 48 | stream << 47
    words = array.array('Q', range(base + first, base + (position + size + 7) // 8))
    return words.tobytes()[skipped:skipped + size]


def free_port():
    """Not one of those that outgoing connections get: a client that tries to reach one of them while nobody listens
    can come to be connected with itself."""
    with open('/proc/sys/net/ipv4/ip_local_port_range', encoding='utf-8') as file:
        first_outgoing = int(file.read().split()[0])
    candidates = random.SystemRandom().sample(range(1024, first_outgoing), 100)
    for port in candidates:
        with contextlib.suppress(OSError), socket.create_server(('127.0.0.1', port)):
            return port
    raise AssertionError('no port is free')


class DeployedSite(testing.Site):
    """A broker by itself, and one front end after the other on the same port."""

    def __init__(self, user_settings='pids=max job-pids=max memory=max cpu=max write-bytes=max write-ops=max'):
        super().__init__(user_settings)
        self.broker_socket = self.path('broker.socket')
        os.chown(f'{self.certs}/worker-key.pem', self.server_uid, -1)
        os.chown(self.write('port', ''), self.server_uid, -1)
        self.port = free_port()
        self.broker = None
        self._identities = {name: certificates.issue(self.authority, name) for name in self.USERS}

    def start_broker(self, become=()):
        self.broker = self.run([*become, shutil.which('jobbroker'), f'--socket={self.broker_socket}',
                                  f'--peer={self.server_uid}', *self.standalone_flags()[1:]])
        self.broker.wait_for_line('^jobbroker: waiting for a front end')

    def broker_pid(self):
        """The process that has the jobs."""
        return self.broker.pid

    def become(self):
        uid = str(self.server_uid)
        return ['setpriv', '--reuid', uid, '--regid', uid, '--clear-groups', '--no-new-privs']

    def front_end_flags(self, *flags):
        return (f'--broker-socket={self.broker_socket}', f'--listen=127.0.0.1:{self.port}', *flags)

    def start_front_end(self, *flags, become=()):
        """Ready when it returns."""
        return self.start_server(*self.front_end_flags(*flags), become=[*become, *self.become()])

    def run_front_end(self, *flags):
        """Does not wait until it is ready."""
        self.server = self.run([*self.become(), *self.server_command(self.front_end_flags(*flags))])
        return self.server

    def front_end_pid(self):
        """Of jobserver itself, when something else was started that runs it."""
        children = testing.children_of(self.server.pid, 'jobserver')
        return children[0] if children else self.server.pid

    def kill_front_end(self):
        os.kill(self.front_end_pid(), signal.SIGKILL)
        self.server.wait()

    def descriptors(self, pid=None):
        """What the open descriptors of a process, or of the front end, are, by number."""
        directory = f'/proc/{pid or self.front_end_pid()}/fd'
        found = {}
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found[int(name)] = os.readlink(f'{directory}/{name}')
        return found

    def threads(self):
        """How many threads of each name the front end has. Its own have the program's; so has one of gRPC's, but for a
        moment when it has just begun."""
        directory = f'/proc/{self.front_end_pid()}/task'
        names = collections.Counter()
        for task in os.listdir(directory):
            with contextlib.suppress(OSError), open(f'{directory}/{task}/comm', encoding='utf-8') as file:  # it ended
                names[file.read().strip()] += 1
        return names

    def program(self, name):
        """A copy of a program of the build where jobs can execute it."""
        copy = self.path(name)
        if not os.path.exists(copy):
            os.chmod(shutil.copy(shutil.which(name), copy), 0o755)
        return copy

    def worker(self, user='alice'):
        """A stub on a connection of its own, which is tried again soon after it was lost; and its channel."""
        identity = self._identities[user]
        options = {'grpc.use_local_subchannel_pool': 1, 'grpc.initial_reconnect_backoff_ms': 50,
                   'grpc.min_reconnect_backoff_ms': 20_000, 'grpc.max_reconnect_backoff_ms': 200}
        channel = grpc.secure_channel(f'127.0.0.1:{self.port}', self.credentials(identity), list(options.items()))
        return testing.our_api()[1].WorkerStub(channel), channel

    def end(self):
        """Ends both, and returns what went wrong with it."""
        wrong = []
        for program in (self.server, self.broker):
            if program is not None and program.process.poll() is None and program.end() != 0:
                wrong.append(program.log())
        return wrong + self.left_over()


class Job:
    """What a job of torture_job is to write, and how it is to end: an exit code, or a signal as a negative number."""

    def __init__(self, tag, out, err, chunk, end, gate=()):
        self.tag, self.sizes, self.chunk, self.end_with, self.gate = tag, (out, err), chunk, end, gate
        self.user, self.id, self.end = None, None, None
        self.stopped = False  # before it has written all
        self.lock = threading.Lock()
        self.key = os.urandom(16)
        # What is known of the order of its streams: where each run of one stream begins, in the job's output, which
        # stream it is, and how much of each stream is before it.
        self.runs = [(0, None, (0, 0))]
        self.started = threading.Event()

    def start_request(self, program, reader=0):
        words = (self.tag, *self.sizes, self.chunk, self.end_with, *self.gate)
        return testing.our_api()[0].WorkerStartRequest(
            command=program.encode(), args=[str(word).encode() for word in words], request_key=self.key,
            reader=reader)

    def __repr__(self):
        return f'job {self.user}/{self.id} (tag {self.tag}, {self.sizes} bytes, end {self.end_with})'

    def has_stdout(self):
        """Somebody has got some."""
        with self.lock:
            return any(stream == 0 for _, stream, _ in self.runs)

    def output(self, stream):
        return numbered(self.tag, stream, 0, self.sizes[stream])

    def took_id(self, job_id):
        with self.lock:
            if self.id not in (None, job_id):
                raise AssertionError(f'{self!r}: the same request key also made job {job_id}')
            self.id = job_id
        self.started.set()

    def took_end(self, end):
        expected = (1, self.end_with, 0) if self.end_with >= 0 else (2, 0, -self.end_with)
        got = (end.cause, end.exit_code, end.signal)
        if got != expected:
            raise AssertionError(f'{self!r}: it ended with {got}, not {expected}')
        with self.lock:
            if self.end not in (None, end):
                raise AssertionError(f'{self!r}: two ends: {self.end} and {end}')
            self.end = end

    def known_place(self, chosen):
        """An offset in the job's output for which the positions in both streams are known, and those."""
        with self.lock:
            at = chosen.randrange(len(self.runs))
            (begin, stream, positions), after = self.runs[at], self.runs[at + 1:at + 2]
        further = chosen.randrange(after[0][0] - begin) if after and stream is not None else 0
        return begin + further, [position + further * (each == stream) for each, position in enumerate(positions)]


class Gate:
    """Holds a job back until it is released, and tells when its process is gone."""

    def __init__(self, site, user):
        self._release = site.fifo(user)
        self._held_path = self._release.path + '-held'
        os.mkfifo(self._held_path)
        os.chmod(self._held_path, 0o666)
        self._held = os.open(self._held_path, os.O_RDONLY | os.O_NONBLOCK)
        self.paths = (self._held_path, self._release.path)

    def release(self):
        self._release.write_line()

    def wait_for_the_end(self):
        poll = select.poll()
        poll.register(self._held, 0)
        if not poll.poll(testing.HANG * 1000):
            raise AssertionError('a job that was released did not end')

    def close(self):
        os.close(self._held)
        os.unlink(self._held_path)
        self._release.close()


class Follower(threading.Thread):
    """Checks all that it gets, and goes on from where it was whenever the connection is lost.

    It starts the job, with its request key, if `start` is the program; else it waits until somebody has.
    """

    # What a client sees of a server that is killed, beside UNAVAILABLE.
    LOST = {grpc.StatusCode.UNAVAILABLE: '', grpc.StatusCode.UNKNOWN: 'Stream removed',
            grpc.StatusCode.CANCELLED: '', grpc.StatusCode.INTERNAL: 'RST_STREAM'}

    def __init__(self, worker, job, start=None, streams=None, offset=0, positions=(0, 0), pause=None,
                 allow_gaps=False, reader=None):
        super().__init__(daemon=True)
        self._worker, self.job, self._start, self.streams, self._pause = worker, job, start, streams, pause
        self.offset = offset
        self.positions = list(positions)
        self.whole = offset == 0 and streams is None
        self.losses, self.wrong = 0, None
        self.gaps = 0  # bytes that retention removed before they came here
        self.allow_gaps = allow_gaps
        self._reader = reader or random.SystemRandom().randrange(1, 1 << 64)
        self._run = [0, None, None, 0]  # where the present one begins, its stream, its size
        self._order = hashlib.sha256()

    def run(self):
        try:
            while not self._try():
                pass
        except Exception as error:  # pylint: disable=broad-except
            self.wrong = f'{self.job!r}, follower of {self.streams} at {self.offset}: {error!r}'

    def _try(self):
        try:
            if self._start is not None:
                responses = self._worker.JobStart(self.job.start_request(self._start, self._reader), wait_for_ready=True)
            else:
                self.job.started.wait()
                streams = 0 if self.streams is None else 1 + self.streams
                request = testing.our_api()[0].WorkerPIDRequest(pid=self.job.id, offset=self.offset, streams=streams,
                                                                   reader=self._reader)
                responses = self._worker.JobQuery(request, wait_for_ready=True)
            return self._read(responses)
        except grpc.RpcError as error:
            if self.LOST.get(error.code()) is None or self.LOST[error.code()] not in error.details():
                raise
            self.losses += 1
            return False

    def _read(self, responses):
        first = next(responses)
        self.job.took_id(first.pid)
        self._start = None
        if first.log or first.offset != self.offset:
            raise AssertionError(f'it begins at {first.offset}')
        for response in responses:
            self._take(response)
            if response.HasField('end'):
                self._take_end(response)
                return True
            if response.resume:
                return False
            if self._pause is not None:
                self._pause()
        raise AssertionError('the stream ended without an end')

    def _take(self, response):
        if response.dropped and not self.allow_gaps:
            raise AssertionError(f'{response.dropped} bytes before {response.offset} are gone')
        self.gaps += response.dropped
        expected = self.offset + response.dropped
        # Of one stream, what is between two responses may be the other's.
        if response.offset != expected and (self.streams is None or response.offset < expected):
            raise AssertionError(f'a response for {response.offset}, where {expected} comes next')
        stream, size = response.stream, len(response.log)
        self.offset = response.offset + size
        if size == 0:
            return
        if response.dropped or self.gaps and self.streams is not None:
            self._find_positions(response)
        if self.streams not in (None, stream):
            raise AssertionError(f'bytes of stream {stream}')
        if response.log != numbered(self.job.tag, stream, self.positions[stream], size):
            raise AssertionError(f'other bytes than there should be at {response.offset}, which is '
                                 f'{self.positions[stream]} of stream {stream}: {response.log[:32]!r}')
        self._note_order(response.offset, stream, size)
        self.positions[stream] += size

    def _find_positions(self, response):
        """After a gap the words tell where one is; together the streams' positions are the job's offset."""
        log = response.log
        for skipped in range(8):
            word = int.from_bytes(log[skipped:skipped + 8], 'little')
            position = (word & (1 << 47) - 1) * 8 - skipped
            if len(log) >= skipped + 8 and word >> 48 == self.job.tag and position >= 0 and log[:4096] == numbered(
                    self.job.tag, response.stream, position, len(log[:4096])):
                self.positions[response.stream] = position
                self.positions[1 - response.stream] = response.offset - position
                return
        raise AssertionError(f'unknown bytes after a gap at {response.offset}: {log[:32]!r}')

    def _note_order(self, offset, stream, size):
        if self.streams is not None or stream == self._run[1]:
            return
        before = tuple(self.positions)
        self._run = [offset, stream]
        self._order.update(f'{offset} {stream};'.encode())
        with self.job.lock:
            if self.whole and offset > self.job.runs[-1][0]:
                self.job.runs.append((offset, stream, before))

    def _take_end(self, response):
        self.job.took_end(response.end)
        sizes = self.positions if self.job.stopped else self.job.sizes
        wanted = [size if self.streams in (None, stream) else self.positions[stream]
                  for stream, size in enumerate(sizes)]
        if self.positions != wanted or self.streams is None and self.offset != sum(sizes):
            raise AssertionError(f'it ended at {self.positions}, not at {wanted}, and at {self.offset}')

    def order(self):
        """The same for all that had the whole output."""
        return self._order.hexdigest()


def random_end(chosen):
    """Exit codes, and signals whose default is to end a process."""
    return chosen.choice([0, 1, chosen.randint(2, 255), -signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV,
                          -signal.SIGUSR1, -signal.SIGHUP])
