"""All methods of our API, beside those that jobworker_testing.Client has."""

import os
import queue
import shutil
import signal

import jobworker_testing as testing
from jobworker_testing import grpc

Code = grpc.StatusCode


class Api(testing.Client):
    """Requests are given as keyword arguments: the fields of the message."""

    def begin(self, **fields):
        return testing.Stream(self.call('JobStart', self.messages.WorkerStartRequest(**fields)))

    def begin_shell(self, script, *arguments, **fields):
        """A job that runs a shell script, with $1, $2 … for the arguments."""
        words = [b'-c', script.encode(), b'sh', *(word.encode() for word in arguments)]
        return self.begin(command=b'/bin/sh', args=words, **fields)

    def call(self, method, request):
        return getattr(self._worker, method)(request, timeout=testing.HANG)

    def about(self, method, job_id, **fields):
        return self.call(method, self.messages.WorkerPIDRequest(pid=job_id, **fields))

    def status(self, job_id):
        return self.about('JobStatusOf', job_id)

    def signal(self, job_id, number):
        return self.about('JobSignal', job_id, signal=number)

    def remove(self, job_id):
        return self.about('JobRemove', job_id)

    def end(self, job_id, **fields):
        """Stops it; returns how it ended."""
        return self.about('JobStop', job_id, **fields).end

    def follow(self, job_id, **fields):
        return testing.Stream(self.about('JobQuery', job_id, **fields))

    def list(self, **fields):
        return self.call('JobList', self.messages.JobListRequest(**fields))

    def wait(self, *ids, **fields):
        return self.call('JobWait', self.messages.JobWaitRequest(pids=ids, **fields))

    def who_am_i(self):
        return self.call('WhoAmI', self.messages.WhoAmIRequest())

    def version(self):
        return self.call('ServerVersion', self.messages.ServerVersionRequest())

    def input(self, job_id=None):
        return Input(self, job_id)

    def stub(self, proto, service):
        """Of one of the standard services: the messages, and the stub."""
        messages, services = testing.generate(os.path.join(testing.SOURCE, 'proto', proto))
        return messages, getattr(services, service + 'Stub')(self._channel)


class Input:
    """A JobInput call. Each chunk is sent when it is put; what the server answers is read one by one."""

    def __init__(self, api, job_id):
        self.messages = api.messages
        self._pid = job_id
        self._chunks = queue.SimpleQueue()
        self.answers = api._worker.JobInput(iter(self._chunks.get, None), timeout=testing.HANG)

    def put(self, **fields):
        if self._pid is not None:
            fields['pid'], self._pid = self._pid, None
        self._chunks.put(self.messages.InputChunk(**fields))

    def put_and_read(self, **fields):
        self.put(**fields)
        return next(self.answers)

    def half_close(self):
        self._chunks.put(None)

    def cancel(self):
        self.answers.cancel()
        self.half_close()


class ApiTest(testing.SiteTest):
    config = ''

    @classmethod
    def setUpClass(cls):
        cls.site = cls.enterClassContext(testing.Site(cls.user_settings))
        flags = [*cls.server_flags]
        if cls.config:
            flags.append('--config=' + cls.site.write('server.toml', cls.config))
        cls.server = cls.site.start_server(*flags)

    def client(self, user='alice'):
        return self.enterContext(Api(self.site.channel(user)))

    def assert_invalid(self, field, call, *bounds):
        """INVALID_ARGUMENT that names the field and each bound."""
        details = self.assert_code(Code.INVALID_ARGUMENT, call)
        for word in (field, *bounds):
            self.assertIn(str(word), details)


class DeployedApiTest(testing.unittest.TestCase):
    """The broker by itself, and front ends that come and go; a site for each test."""

    def setUp(self):
        self.site = self.enterContext(testing.Site())
        self._socket = self.site.path('broker.socket')
        os.chown(f'{self.site.certs}/worker-key.pem', self.site.server_uid, -1)
        os.chown(self.site.write('port', ''), self.site.server_uid, -1)
        self.start_broker()
        self.addCleanup(self._end_all)

    def start_broker(self):
        self.broker = self.site.run([shutil.which('jobbroker'), f'--socket={self._socket}',
                                     f'--peer={self.site.server_uid}', *self.site.standalone_flags()[1:]])
        self.broker.wait_for_line('^jobbroker: waiting for a front end')

    def start_front_end(self):
        """Ready when this returns, with alice's client."""
        uid = str(self.site.server_uid)
        become = ['setpriv', '--reuid', uid, '--regid', uid, '--clear-groups', '--no-new-privs']
        self.server = self.site.start_server(f'--broker-socket={self._socket}', become=become)
        return self.enterContext(Api(self.site.channel('alice')))

    def restart_front_end(self, number=signal.SIGKILL):
        self.server.end(number)
        return self.start_front_end()

    def _end_all(self):
        for program in (self.broker, self.server):
            if program.process.poll() is None:
                self.assertEqual(program.end(), 0, program.log())
        self.assertEqual(self.site.left_over(), [])
