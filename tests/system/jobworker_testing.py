"""Runs the real three programs for the system tests, each test on a site of its own, and checks that nothing is left.

Nothing here sleeps or polls: readiness comes through sd_notify, the end of all programs is the end of their standard
error, and HANG only bounds how long a broken test hangs.
"""

import contextlib
import functools
import importlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest


def skip(why):
    print(f'SKIPPED: {why}')
    sys.exit(77)


try:
    import grpc
    import certificates
except ImportError as error:
    skip(f'{error}; install python3-grpcio, python3-protobuf and python3-cryptography')

HANG = 15
SOURCE = os.path.realpath(os.path.join(os.path.dirname(__file__), '../..'))


def cgroup_mount():
    with open('/proc/self/mounts', encoding='utf-8') as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == 'cgroup2':
                return fields[1]
    return None


def main():
    """Runs the tests of the calling file, or says why it cannot."""
    if os.geteuid() != 0:
        skip('the jobbroker needs root')
    if cgroup_mount() is None:
        skip('no cgroup v2 is mounted')
    ours = ('jobworker', 'jobserver', 'jobbroker')
    for program in (*ours, 'protoc', 'grpc_python_plugin', 'openssl', 'sslscan', 'setpriv'):
        if shutil.which(program) is None:
            skip(f'{program} is not in PATH')
    unittest.main(verbosity=2)


@functools.lru_cache(maxsize=None)
def generate(proto):
    """The two modules that protoc and gRPC's plugin make from a .proto file."""
    directory = tempfile.mkdtemp(prefix='jobworker-proto-')
    try:
        subprocess.run(['protoc', f'--proto_path={os.path.dirname(proto)}', f'--python_out={directory}',
                        f'--grpc_python_out={directory}',
                        f'--plugin=protoc-gen-grpc_python={shutil.which("grpc_python_plugin")}', proto], check=True)
        sys.path.insert(0, directory)
        name = os.path.basename(proto).removesuffix('.proto')
        return tuple(importlib.import_module(name + suffix) for suffix in ('_pb2', '_pb2_grpc'))
    finally:
        shutil.rmtree(directory)


def our_api():
    return generate(os.path.join(SOURCE, 'proto/jobworker.proto'))


def processes_of(uids):
    """The processes that run as one of the uids, but for those that have ended, and a sanitizer's own: it starts one for
    what it suppresses, which ends after its program."""
    found = []
    for entry in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f'/proc/{entry}/status', encoding='utf-8', errors='replace') as status:
                text = status.read()
            uid = int(re.search(r'^Uid:\s+(\d+)', text, re.M)[1])
            if uid in uids and not re.search(r'^State:\s+Z|^Name:\s+llvm-symbolizer$', text, re.M):
                found.append(int(entry))
    return found


def children_of(pid, name):
    """The children of a process that run the program of that name."""
    found = []
    for entry in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f'/proc/{entry}/stat', encoding='utf-8', errors='replace') as stat:
                comm, rest = re.fullmatch(r'\d+ \((.*)\) . (\d+) .*', stat.read().strip(), re.S).groups()
            if int(rest) == pid and comm == name:
                found.append(int(entry))
    return found


class Program:
    """One of the servers. Its standard error is read as it comes; it closes when all that it started has ended too."""

    def __init__(self, command, **arguments):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, **arguments)
        self.pid = self.process.pid
        self.lines = []
        self._news = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.decode('utf-8', 'backslashreplace').rstrip('\n'))
                self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    def log(self):
        with self._news:
            return '\n'.join(self.lines)

    def wait_for_line(self, pattern, nth=1):
        with self._news:
            found = lambda: [line for line in self.lines if re.search(pattern, line)][nth - 1:]
            self._news.wait_for(lambda: found() or self._closed, HANG)
            if not found():
                raise AssertionError(f'no line {pattern!r} number {nth} in:\n' + '\n'.join(self.lines))
            return found()[0]

    def send(self, number):
        self.process.send_signal(number)

    def wait(self):
        """The exit status, once the program and all that shares its standard error have ended."""
        status = self.process.wait(HANG)
        self._reader.join(HANG)
        if self._reader.is_alive():
            raise AssertionError('a program outlives what started it:\n' + self.log())
        self.process.stderr.close()
        return status

    def end(self, number=signal.SIGTERM):
        self.send(number)
        return self.wait()


class Site:
    """Users, certificates, a cgroup root and a directory that no other test uses. A context manager."""

    USERS = ('alice', 'bob', 'carl')
    _count = 0

    def __init__(self, user_settings=''):
        Site._count += 1
        self.directory = tempfile.mkdtemp(prefix='jobworker-test-')
        os.chmod(self.directory, 0o711)
        self.cgroup_root = f'{cgroup_mount()}/jobworker-test-{os.getpid()}-{Site._count}'
        # No account's, nor those of another site or of a test that runs at the same time.
        first_uid = 1_000_000 + os.getpid() % 1_000_000 * 1000 + Site._count * 10
        self.uids = {name: first_uid + number for number, name in enumerate(self.USERS)}
        self.server_uid = first_uid + 9
        self.users_file = self.write('users', ''.join(
            f'{name} uid={uid} gid={uid} dir={self.home(name)} {user_settings}\n' for name, uid in self.uids.items()))
        self.certs = self.path('certs')
        os.mkdir(self.certs)
        self.authority = certificates.make_authority()
        certificates.save(self.certs, 'worker', certificates.make_server(self.authority))
        for name in self.USERS:
            certificates.save(self.certs, name, certificates.issue(self.authority, name))
        with open(f'{self.certs}/ca.pem', 'wb') as file:
            file.write(self.authority.pem())
        self.port = None
        self.server = None
        self._programs = []

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for program in self._programs:  # after a failed test: a broker ends when its server has
            if program.process.poll() is None:
                program.end(signal.SIGKILL)
        shutil.rmtree(self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def home(self, user):
        return self.path(f'home/{user}')

    def write(self, name, text, mode=0o644):
        with open(self.path(name), 'w', encoding='utf-8') as file:
            file.write(text)
        os.chmod(file.name, mode)
        return file.name

    # Servers

    def standalone_flags(self):
        # Limits are tested elsewhere, on a kernel that is sure to have every controller.
        return [f'--run-as={self.server_uid}:{self.server_uid}', f'--cgroup-root={self.cgroup_root}',
                f'--users={self.users_file}', '--missing-controllers=warn']

    def server_command(self, flags):
        values = {'--listen': '127.0.0.1:0', '--certs': self.certs, '--port-file': self.path('port')}
        defaults = [f'{name}={value}' for name, value in values.items()
                    if not any(flag.startswith(name + '=') for flag in flags)]
        return [shutil.which('jobserver'), *defaults, *flags]

    def run(self, command, **arguments):
        program = Program(command, **arguments)
        self._programs.append(program)
        return program

    def start_server(self, *flags, become=()):
        """A standalone server, or with --broker-socket among the flags only the front end; ready when this returns."""
        if not any(flag.startswith('--broker-socket') for flag in flags):
            flags = (*self.standalone_flags(), *flags)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind('')  # the kernel picks a name that file permissions have no say in
            notified.settimeout(HANG)
            environment = {**os.environ, 'NOTIFY_SOCKET': '@' + notified.getsockname()[1:].decode()}
            self.server = self.run([*become, *self.server_command(flags)], env=environment)
            ended = os.pidfd_open(self.server.pid)
            readable, _, _ = select.select([notified, ended], [], [], HANG)
            os.close(ended)
            if notified not in readable:
                self.server.wait()
                raise AssertionError('the server ended instead of getting ready:\n' + self.server.log())
            assert notified.recv(4096) == b'READY=1'
        with open(self.path('port'), encoding='utf-8') as file:
            self.port = int(file.read())
        return self.server

    def refused_server(self, *flags, become=(), program=None):
        """The exit status and the log of a server that is expected to end before it is ready."""
        command = self.server_command(flags)
        server = self.run([*become, program or command[0], *command[1:]])
        status = server.wait()
        return status, server.log()

    def broker_pids(self):
        """The guardian, and the broker that it guards."""
        broker, = children_of(self.server.pid, 'jobbroker')
        guardian, = children_of(broker, 'jobbroker')
        return guardian, broker

    def left_over(self):
        """What should not be there any more once the programs have ended."""
        left = processes_of({*self.uids.values(), self.server_uid})
        return left + [self.cgroup_root] * os.path.exists(self.cgroup_root)

    def logs(self):
        return '\n'.join(f'{program.process.args[0]}:\n{program.log()}' for program in self._programs)

    # Clients

    def credentials(self, identity):
        return grpc.ssl_channel_credentials(self.authority.pem(), identity and identity.key_pem(),
                                            identity and identity.pem())

    def channel(self, identity):
        """With the certificate of a user, by name, or with any other identity, or with none."""
        if isinstance(identity, str):
            identity = certificates.issue(self.authority, identity)
        return grpc.secure_channel(f'127.0.0.1:{self.port}', self.credentials(identity))

    def client(self, user='alice'):
        return Client(self.channel(user))

    def cli_command(self, *words, user='alice'):
        return [shutil.which('jobworker'), '-u', user, '-h', f'127.0.0.1:{self.port}', '--certs', self.certs, *words]

    def cli(self, *words, user='alice'):
        """A finished run of the command line client, with bytes in stdout and stderr."""
        return subprocess.run(self.cli_command(*words, user=user), stdin=subprocess.DEVNULL, capture_output=True,
                              env=self.cli_environment(), timeout=HANG, check=False)

    def start_cli(self, *words, user='alice'):
        return subprocess.Popen(self.cli_command(*words, user=user), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=self.cli_environment())

    def cli_environment(self):
        sanitizers = {name: value for name, value in os.environ.items() if name.endswith('SAN_OPTIONS')}
        if 'TSAN_OPTIONS' in sanitizers:
            sanitizers['TSAN_OPTIONS'] += ' atexit_sleep_ms=0'  # a second, for each of hundreds of clients
        return {'PATH': os.environ['PATH'], 'HOME': self.path('nowhere'), **sanitizers}

    def fifo(self, user='alice'):
        return Fifo(self.home(user))


class Fifo:
    """How a job and a test wait for each other: a line written into one end is read at the other."""

    _count = 0

    def __init__(self, directory):
        Fifo._count += 1
        self.path = os.path.join(directory, f'fifo-{Fifo._count}')
        os.mkfifo(self.path)
        os.chmod(self.path, 0o666)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def read_line(self):
        line = b''
        while not line.endswith(b'\n'):
            if not select.select([self._fd], [], [], HANG)[0]:
                raise AssertionError('the job does not write to its FIFO')
            line += os.read(self._fd, 1)
        return line[:-1]

    def write_line(self, line=b'go'):
        os.write(self._fd, line + b'\n')

    def close(self):
        os.close(self._fd)
        os.unlink(self.path)


class Client:
    """Calls with our own API, bounded by HANG. A context manager."""

    def __init__(self, channel):
        self.messages, services = our_api()
        self._channel = channel
        self._worker = services.WorkerStub(channel)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._channel.close()

    def start(self, command, *args, env=(), **options):
        request = self.messages.WorkerStartRequest(command=command, args=args, env=env)
        return Stream(self._worker.JobStart(request, timeout=HANG, **options))

    def query(self, job_id, **options):
        return Stream(self._worker.JobQuery(self.messages.WorkerPIDRequest(pid=job_id), timeout=HANG, **options))

    def stop(self, job_id, **options):
        return self._worker.JobStop(self.messages.WorkerPIDRequest(pid=job_id), timeout=HANG, **options)

    def shell(self, script, *arguments):
        """A job that runs a shell script, with $1, $2 … for the arguments."""
        return self.start(b'/bin/sh', b'-c', script.encode(), b'sh', *(word.encode() for word in arguments))


class Stream:
    """A job's stream. The first response has been read, so the job has started."""

    def __init__(self, responses):
        self._responses = responses
        self.first = next(responses)
        self.id = self.first.pid
        self.output = {0: b'', 1: b''}
        self.end = None

    def _read(self):
        response = next(self._responses)
        self.output[response.stream] += response.log
        if response.HasField('end'):
            self.end = response.end

    @property
    def stdout(self):
        return self.output[0]

    @property
    def stderr(self):
        return self.output[1]

    def read_until(self, text):
        while text not in self.stdout:
            self._read()

    def finish(self):
        """Reads to the end, which every job has, and returns it."""
        with contextlib.suppress(StopIteration):
            while True:
                self._read()
        return self.end

    def cancel(self):
        self._responses.cancel()


def outcome(call):
    """The status code of a call and its message; OK for one that gets an answer."""
    try:
        call()
        return grpc.StatusCode.OK, ''
    except grpc.RpcError as error:
        return error.code(), error.details()


class SiteTest(unittest.TestCase):
    """Tests that share one site and one server, and end with a check that nothing is left of it."""

    server_flags = ()
    server_config = ''
    user_settings = ''

    @classmethod
    def setUpClass(cls):
        cls.site = cls.enterClassContext(Site(cls.user_settings))
        config = cls.site.write('jobserver.toml', cls.server_config)
        cls.server = cls.site.start_server(f'--config={config}', *cls.server_flags)

    @classmethod
    def tearDownClass(cls):
        status = cls.server.end()
        if status != 0 or cls.site.left_over():
            raise AssertionError(f'exit status {status}, left over: {cls.site.left_over()}, log:\n{cls.server.log()}')

    def client(self, user='alice'):
        return self.enterContext(self.site.client(user))

    def fifo(self, user='alice'):
        return self.enterContext(contextlib.closing(self.site.fifo(user)))

    def assert_code(self, expected, call):
        """The call is answered with this code; returns the message."""
        code, details = outcome(call)
        self.assertEqual(code, expected, details)
        return details
