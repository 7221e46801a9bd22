"""What there is to know of jobs and to do with them, by the API's methods; what bad requests get comes first."""

import signal

import api_testing
import jobworker_testing as testing
from api_testing import Code

UINT64_MAX = 2 ** 64 - 1
DAY_MS = 24 * 3600 * 1000
NOBODYS = '18446744073709551615'


class RefusedTest(api_testing.ApiTest):
    """Requests that are out of bounds fail by themselves, and say where the bound is."""

    def tearDown(self):
        self.assertEqual(self.client().begin(command=b'true').finish().exit_code, 0)

    def assert_start_refused(self, field, *bounds, **fields):
        self.assert_invalid(field, lambda: self.client().begin(command=b'true', **fields), *bounds)

    def assert_starts(self, **fields):
        job = self.client().begin(command=b'true', **fields)
        self.assertEqual(job.finish().exit_code, 0)
        return job.first.status

    def test_a_timeout_is_from_1_ms_to_a_year(self):
        year = 365 * DAY_MS
        for wrong in (0, year + 1, UINT64_MAX):
            self.assert_start_refused('timeout_ms', year, timeout_ms=wrong)
        self.assertEqual(self.assert_starts(timeout_ms=year).timeout_ms, year)
        self.assertEqual(self.assert_starts().timeout_ms, 0)

    def test_a_lease_is_from_a_second_to_a_day_and_needs_on_disconnect(self):
        stop = self.client().messages.ON_DISCONNECT_STOP
        for wrong in (0, 999, DAY_MS + 1, UINT64_MAX):
            self.assert_start_refused('lease_ms', 1000, DAY_MS, on_disconnect=stop, lease_ms=wrong)
        for right in (1000, DAY_MS):
            status = self.assert_starts(on_disconnect=stop, lease_ms=right)
            self.assertEqual((status.on_disconnect, status.lease_ms), (stop, right))
        self.assertEqual(self.assert_starts(on_disconnect=stop).lease_ms, 10_000)
        self.assertEqual(self.assert_starts().lease_ms, 0)
        self.assert_start_refused('on_disconnect', lease_ms=5000)
        self.assert_start_refused('on_disconnect', on_disconnect=2)

    def test_labels_are_few_and_short(self):
        most = {f'k{number}': 'v' for number in range(16)}
        self.assertEqual(dict(self.assert_starts(labels=most).labels), most)
        self.assert_start_refused('labels', 17, 16, labels={**most, 'more': 'v'})
        longest = {'k' * 63: 'v' * 255}
        self.assertEqual(dict(self.assert_starts(labels=longest).labels), longest)
        self.assert_start_refused('labels', 63, labels={'k' * 64: 'v'})
        self.assert_start_refused('labels', 255, labels={'k': 'v' * 256})
        all_bytes = {f'{number:02}' + 'k' * 61: 'v' * 243 for number in range(10)}
        all_bytes['rest'] = 'r' * (3072 - 10 * 306 - 4)
        self.assertEqual(dict(self.assert_starts(labels=all_bytes).labels), all_bytes)
        all_bytes['rest'] += 'r'
        self.assert_start_refused('labels', 3073, 3072, labels=all_bytes)

    def test_a_label_of_1_mib_is_refused(self):
        self.assert_start_refused('labels', 2 ** 20, 255, labels={'k': 'v' * 2 ** 20})
        self.assert_start_refused('labels', 63, labels={'k' * 2 ** 20: 'v'})

    def test_a_message_of_2_mib_is_refused_unread(self):
        self.assert_code(Code.RESOURCE_EXHAUSTED, lambda: self.client().begin(command=b'true', labels={'k': 'v' * 2 ** 21}))

    def test_label_keys_have_no_other_characters(self):
        every = 'AZaz09._/-'
        self.assertEqual(dict(self.assert_starts(labels={every: 'any \x1b[31m\n'}).labels), {every: 'any \x1b[31m\n'})
        for key in ('', 'a b', 'a=b', 'a\n', 'ä', 'a\x1b', 'a\0'):
            self.assert_start_refused('labels', 'A-Z', labels={key: 'v'})

    def test_a_request_key_has_at_most_64_bytes(self):
        self.assert_starts(request_key=b'k' * 64)
        self.assert_start_refused('request_key', 65, 64, request_key=b'k' * 65)

    def test_a_directory_is_absolute_and_short(self):
        for wrong in (b'tmp', b'.', b'../x', b'~'):
            self.assert_start_refused('directory', 'absolute', directory=wrong)
        self.assert_start_refused('directory', 'NUL', directory=b'/tmp\0')
        longest = b'/' * 1020 + b'/tmp'
        self.assertEqual(self.assert_starts(directory=longest).directory, longest)
        self.assert_start_refused('directory', 1024, directory=b'/' + longest)

    def test_a_stop_takes_signals_and_graces_that_there_are(self):
        api = self.client()
        for wrong in (-1, 65, 2 ** 31 - 1, -2 ** 31):
            self.assert_invalid('signal', lambda: api.end('1', signal=wrong), 64)
        for wrong in (3_600_001, UINT64_MAX):
            self.assert_invalid('grace_ms', lambda: api.end('1', grace_ms=wrong), 3_600_000)

    def test_a_signal_is_from_1_to_64(self):
        for wrong in (0, -1, 65, 2 ** 31 - 1):
            self.assert_invalid('signal', lambda: self.client().signal('1', wrong), 64)

    def test_what_is_not_a_job_id_is_refused_by_every_method_that_takes_one(self):
        api = self.client()
        for job_id in ('', '0', '01', '-1', ' 1', 'x', '18446744073709551616', '1\x1b'):
            for call in (api.status, api.remove, api.end, lambda job: api.signal(job, 15), lambda job: next(api.wait(job)),
                         lambda job: api.input(job).put_and_read()):
                self.assert_invalid('pid', lambda: call(job_id))

    def test_another_users_job_is_not_found_word_for_word_as_one_that_never_was(self):
        api, bob = self.client(), self.client('bob')
        # An id that is not alice's too.
        newest = int(api.begin(command=b'true').id)
        job = bob.begin(command=b'true')
        while int(job.id) <= newest:
            job.finish()
            job = bob.begin(command=b'true')
        job.finish()
        for call in (api.status, api.remove, api.end, lambda each: api.signal(each, 15),
                     lambda each: api.input(each).put_and_read()):
            theirs = self.assert_code(Code.NOT_FOUND, lambda: call(job.id))
            self.assertEqual(theirs, self.assert_code(Code.NOT_FOUND, lambda: call(NOBODYS)))
        theirs = self.assert_code(Code.NOT_FOUND, lambda: next(api.wait(job.id)))
        nobodys = self.assert_code(Code.NOT_FOUND, lambda: next(api.wait(NOBODYS)))
        self.assertEqual(theirs.replace(job.id, NOBODYS), nobodys)

    def test_one_waits_for_1_to_100_jobs_each_once(self):
        api = self.client()
        self.assert_invalid('pids', lambda: next(api.wait()), 100)
        self.assert_invalid('pids', lambda: next(api.wait(*map(str, range(1, 102)))), 101, 100)
        self.assert_invalid('pids', lambda: next(api.wait(*map(str, range(1, 1001)))), 1000, 100)
        self.assert_invalid('pids', lambda: next(api.wait('7', '8', '7')), 'twice')

    def test_a_wait_for_a_job_that_is_not_there_names_it_before_any_answer(self):
        api = self.client()
        job = api.begin(command=b'true')
        job.finish()
        self.assertIn(NOBODYS, self.assert_code(Code.NOT_FOUND, lambda: next(api.wait(job.id, NOBODYS))))

    def test_a_list_takes_pages_states_and_labels_that_there_are(self):
        api = self.client()
        self.assert_invalid('page_size', lambda: api.list(page_size=1001), 1000)
        api.list(page_size=1000)
        for token in ('x', '0', '-1', '1 ', 'a' * 10_000):
            self.assert_invalid('page_token', lambda: api.list(page_token=token))
        self.assert_invalid('states', lambda: api.list(states=[17]))
        self.assert_invalid('labels', lambda: api.list(labels={str(number): '' for number in range(17)}), 16)

    def test_what_a_user_has_no_right_to_is_denied_by_name(self):
        carl = self.client('carl')
        rights = {'allow_start': [lambda: carl.begin(command=b'true'), lambda: carl.input('1').put_and_read()],
                  'allow_stop': [lambda: carl.end('1'), lambda: carl.signal('1', 15), lambda: carl.remove('1')],
                  'allow_query': [lambda: carl.follow('1'), lambda: carl.status('1'), carl.list,
                                  lambda: next(carl.wait('1'))]}
        for right, calls in rights.items():
            for call in calls:
                self.assertIn(right, self.assert_code(Code.PERMISSION_DENIED, call))


class StatusTest(api_testing.ApiTest):

    def test_a_job_is_told_as_it_was_asked_for(self):
        api = self.client()
        job = api.begin_shell('echo out; exec sleep 1000', labels={'a': 'b'}, directory=b'/tmp', timeout_ms=DAY_MS)
        job.read_until(b'out\n')
        status = api.status(job.id)
        self.assertEqual(status.pid, job.id)
        self.assertEqual(status.state, status.RUNNING)
        self.assertEqual(list(status.argv), [b'/bin/sh', b'-c', b'echo out; exec sleep 1000', b'sh'])
        self.assertEqual((dict(status.labels), status.directory, status.timeout_ms), ({'a': 'b'}, b'/tmp', DAY_MS))
        self.assertEqual((status.output.first, status.output.end, status.output.followers), (0, 4, 1))
        self.assertFalse(status.HasField('end') or status.HasField('input'))
        self.assertTrue(status.HasField('usage'))
        end = api.end(job.id)
        status = api.status(job.id)
        self.assertEqual((status.state, status.end), (status.ENDED, end))
        self.assertEqual(status.usage.cpu_user_us, end.cpu_user_us)
        self.assertLessEqual(status.started_us, end.ended_us)

    def test_a_job_that_is_being_stopped_is_ending(self):
        api = self.client()
        job = api.begin_shell('trap "echo stopping" TERM; echo ready; while :; do read word <"$1"; done', self.fifo().path)
        job.read_until(b'ready\n')
        call = api._worker.JobStop.future(api.messages.WorkerPIDRequest(pid=job.id, grace_ms=3_600_000))
        job.read_until(b'stopping\n')
        self.assertEqual(api.status(job.id).state, api.messages.JobStatus.ENDING)
        end = api.end(job.id, now=True)
        self.assertEqual(call.result(testing.HANG).end, end)
        self.assertEqual((end.reason, end.stop_signal, end.stop_killed), (end.STOPPED, signal.SIGTERM, True))

    def test_a_list_has_the_newest_first_and_turns_pages(self):
        api = self.client()
        ids = []
        for _ in range(7):
            job = api.begin(command=b'true', labels={'test': 'pages'})
            job.finish()
            ids.append(job.id)
        found, token = [], ''
        while True:
            page = api.list(page_size=3, page_token=token, labels={'test': 'pages'})
            self.assertLessEqual(len(page.jobs), 3)
            found += [job.pid for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(found, ids[::-1])

    def test_a_list_has_only_what_matches_all_filters(self):
        api = self.client()
        running = api.begin(command=b'sleep', args=[b'1000'], labels={'set': 'filters', 'n': '1'})
        ended = api.begin(command=b'true', labels={'set': 'filters', 'n': '2'})
        ended.finish()
        states = api.messages.JobStatus
        ids = lambda **fields: [job.pid for job in api.list(**fields).jobs]
        both = {'set': 'filters'}
        self.assertEqual(ids(labels=both), [ended.id, running.id])
        self.assertEqual(ids(labels=both, states=[states.RUNNING]), [running.id])
        self.assertEqual(ids(labels=both, states=[states.ENDED]), [ended.id])
        self.assertEqual(ids(labels=both, states=[states.ENDED, states.RUNNING]), [ended.id, running.id])
        self.assertEqual(ids(labels={**both, 'n': '1'}), [running.id])
        self.assertEqual(ids(labels={**both, 'n': '3'}), [])
        self.assertEqual(ids(labels={**both, 'm': ''}), [])
        self.assertNotIn(running.id, [job.pid for job in self.client('bob').list(labels=both).jobs])
        api.end(running.id)

    def test_a_page_of_long_commands_ends_at_1_mib(self):
        api = self.client()
        ids = []
        for _ in range(40):
            job = api.begin(command=b'true', args=[b'x' * 32 * 1024], labels={'test': 'long'})
            job.finish()
            ids.append(job.id)
        found, token, pages = [], '', 0
        while True:
            page = api.list(page_size=1000, page_token=token, labels={'test': 'long'})
            self.assertLessEqual(page.ByteSize(), 2 ** 20)
            found += [job.pid for job in page.jobs]
            token, pages = page.next_page_token, pages + 1
            if not token:
                break
        self.assertEqual((found, pages), (ids[::-1], 2))


class WaitTest(api_testing.ApiTest):

    def test_each_job_is_told_as_it_ends(self):
        api = self.client()
        fifos = [self.fifo() for _ in range(3)]
        jobs = [api.begin_shell('read code <"$1"; exit $code', fifo.path) for fifo in fifos]
        ended = api.begin(command=b'true')
        ended.finish()
        answers = api.wait(*(job.id for job in jobs), ended.id)
        self.assertEqual(next(answers).pid, ended.id)
        for number in (1, 0, 2):
            fifos[number].write_line(b'%d' % number)
            status = next(answers)
            self.assertEqual((status.pid, status.end.exit_code), (jobs[number].id, number))
        self.assertEqual(list(answers), [])

    def test_any_ends_with_the_first(self):
        api = self.client()
        fifos = [self.fifo() for _ in range(2)]
        jobs = [api.begin_shell('read code <"$1"; exit $code', fifo.path) for fifo in fifos]
        answers = api.wait(*(job.id for job in jobs), any=True)
        fifos[1].write_line(b'5')
        self.assertEqual([(status.pid, status.end.exit_code) for status in answers], [(jobs[1].id, 5)])
        fifos[0].write_line(b'0')

    def test_a_client_that_leaves_is_forgotten(self):
        api = self.client()
        fifo = self.fifo()
        job = api.begin_shell('read word <"$1"', fifo.path)
        for _ in range(20):
            api.wait(job.id).cancel()
        answers = api.wait(job.id)
        fifo.write_line()
        self.assertEqual(len(list(answers)), 1)


class SignalTest(api_testing.ApiTest):

    def test_a_signal_reaches_the_main_process_alone(self):
        api = self.client()
        job = api.begin_shell('trap "echo got" USR1; echo ready; while :; do read word <"$1"; done', self.fifo().path)
        job.read_until(b'ready\n')
        answer = api.signal(job.id, signal.SIGUSR1)
        self.assertEqual(answer.pid, job.id)
        self.assertIn(str(int(signal.SIGUSR1)), answer.log.decode())
        job.read_until(b'got\n')
        api.signal(job.id, signal.SIGKILL)
        end = job.finish()
        self.assertEqual((end.reason, end.signal, end.stopped, end.actor),
                         (end.SIGNALLED_BY_OTHERS, signal.SIGKILL, False, ''))
        for number in (signal.SIGTERM, 64):
            self.assertIn('ended', self.assert_code(Code.FAILED_PRECONDITION, lambda: api.signal(job.id, number)))

    def test_a_stopped_process_is_running_and_can_be_stopped(self):
        api = self.client()
        job = api.begin_shell('echo ready; exec sleep 1000')
        job.read_until(b'ready\n')
        api.signal(job.id, signal.SIGSTOP)
        self.assertEqual(api.status(job.id).state, api.messages.JobStatus.RUNNING)
        end = api.end(job.id, grace_ms=3_600_000)
        self.assertEqual((end.reason, end.signal, end.actor), (end.STOPPED, signal.SIGTERM, 'alice'))

    def test_a_job_is_removed_once_it_has_ended(self):
        api = self.client()
        fifo = self.fifo()
        job = api.begin_shell('echo kept; read word <"$1"', fifo.path)
        follower = api.follow(job.id)
        self.assert_code(Code.FAILED_PRECONDITION, lambda: api.remove(job.id))
        fifo.write_line()
        job.finish()
        self.assertEqual(api.remove(job.id).pid, job.id)
        for call in (api.remove, api.status, api.follow, api.end):
            self.assert_code(Code.NOT_FOUND, lambda: call(job.id))
        follower.finish()
        self.assertEqual(follower.stdout, b'kept\n')
        later = api.begin(command=b'true')
        self.assertGreater(int(later.id), int(job.id))
        later.finish()


class EndTest(api_testing.ApiTest):
    """The reason of an end is the first that was decided before the main process ended."""

    config = 'stop-grace = 3600\n'

    def assert_end(self, end, reason, **fields):
        self.assertEqual(end.Reason.Name(end.reason), reason)
        for name, value in fields.items():
            self.assertEqual((name, getattr(end, name)), (name, value))
        self.assertLessEqual(end.started_us, end.ended_us)

    def test_by_itself(self):
        end = self.client().begin_shell('exit 137').finish()
        self.assert_end(end, 'EXITED_BY_ITSELF', cause=end.EXITED, exit_code=137, stopped=False, actor='', stop_signal=0)

    def test_by_a_signal_of_its_own(self):
        end = self.client().begin_shell('kill -KILL $$').finish()
        self.assert_end(end, 'SIGNALLED_BY_OTHERS', cause=end.SIGNALLED, signal=signal.SIGKILL, stopped=False, actor='')

    def test_at_its_timeout(self):
        end = self.client().begin_shell('exec sleep 1000', timeout_ms=1).finish()
        self.assert_end(end, 'TIMED_OUT', signal=signal.SIGTERM, stopped=True, actor='', stop_signal=signal.SIGTERM,
                        stop_killed=False)

    def test_a_timeout_that_the_job_answers_with_an_exit_code_is_still_one(self):
        end = self.client().begin_shell('trap "exit 4" TERM; while :; do read word <"$1"; done', self.fifo().path,
                                        timeout_ms=1000).finish()
        self.assert_end(end, 'TIMED_OUT', cause=end.EXITED, exit_code=4, stopped=True)

    def test_a_job_that_ends_before_its_timeout_did_not_time_out(self):
        end = self.client().begin_shell('exit 0', timeout_ms=DAY_MS).finish()
        self.assert_end(end, 'EXITED_BY_ITSELF', stopped=False)

    def test_stopped_by_its_user_with_a_signal_of_choice(self):
        api = self.client()
        job = api.begin_shell('trap "exit 9" HUP; echo ready; while :; do read word <"$1"; done', self.fifo().path)
        job.read_until(b'ready\n')
        end = api.end(job.id, signal=signal.SIGHUP)
        self.assert_end(end, 'STOPPED', exit_code=9, actor='alice', stop_signal=signal.SIGHUP, stop_killed=False)
        self.assertEqual(job.finish(), end)

    def test_stopped_at_once(self):
        api = self.client()
        job = api.begin_shell('trap "" TERM; echo ready; exec sleep 1000')
        job.read_until(b'ready\n')
        end = api.end(job.id, now=True)
        self.assert_end(end, 'STOPPED', signal=signal.SIGKILL, actor='alice', stop_signal=0, stop_killed=True)

    def test_stopped_without_grace(self):
        api = self.client()
        job = api.begin_shell('trap "" TERM; echo ready; exec sleep 1000')
        job.read_until(b'ready\n')
        self.assert_end(api.end(job.id, grace_ms=0), 'STOPPED', signal=signal.SIGKILL, stop_signal=signal.SIGTERM,
                        stop_killed=True)

    def test_a_job_that_was_stopped_first_and_then_timed_out_was_stopped(self):
        api = self.client()
        job = api.begin_shell('trap "echo stopping" TERM; echo ready; while :; do read word <"$1"; done',
                              self.fifo().path, timeout_ms=2000)
        job.read_until(b'ready\n')
        call = api._worker.JobStop.future(api.messages.WorkerPIDRequest(pid=job.id))
        job.read_until(b'stopping\n')
        api.end(job.id, now=True)
        self.assert_end(call.result(testing.HANG).end, 'STOPPED', actor='alice', stop_signal=signal.SIGTERM)

    def test_a_job_that_had_ended_before_the_stop_keeps_its_end(self):
        api = self.client()
        end = api.begin_shell('exit 3')
        job_id, end = end.id, end.finish()
        self.assertEqual(api.end(job_id), end)
        self.assert_end(end, 'EXITED_BY_ITSELF', exit_code=3, stopped=False)

    def test_processes_that_were_left_are_counted(self):
        end = self.client().begin_shell('sleep 1000 & sleep 1000 & exit 0').finish()
        self.assert_end(end, 'EXITED_BY_ITSELF', leftovers=2)


class LeaseTest(api_testing.ApiTest):

    def test_a_job_that_nobody_follows_is_stopped(self):
        api = self.client()
        fields = {'on_disconnect': api.messages.ON_DISCONNECT_STOP, 'lease_ms': 1000}
        job = api.begin_shell('exec sleep 1000', **fields)
        waiting = api.wait(job.id)
        job.cancel()
        end = next(waiting).end
        self.assertEqual((end.reason, end.signal, end.actor), (end.LEASE_LOST, signal.SIGTERM, ''))
        self.assertEqual(api.status(job.id).end, end)

    def test_a_job_that_somebody_follows_goes_on(self):
        api = self.client()
        fifo = self.fifo()
        fields = {'on_disconnect': api.messages.ON_DISCONNECT_STOP, 'lease_ms': 1000}
        followed = api.begin_shell('echo ready; read word <"$1"; exit 3', fifo.path, **fields)
        follower = api.follow(followed.id)
        followed.cancel()
        # Its lease began later than that of the job above, so it would have been lost by the time this one's is.
        left = api.begin_shell('exec sleep 1000', **fields)
        waiting = api.wait(left.id)
        left.cancel()
        self.assertEqual(next(waiting).end.reason, api.messages.JobEnd.LEASE_LOST)
        fifo.write_line()
        end = follower.finish()
        self.assertEqual((end.reason, end.exit_code), (end.EXITED_BY_ITSELF, 3))


class ServerTest(api_testing.ApiTest):

    def test_who_am_i(self):
        api = self.client()
        job = api.begin(command=b'sleep', args=[b'1000'])
        api.begin(command=b'true').finish()
        me = api.who_am_i()
        self.assertEqual((me.user, list(me.rights)), ('alice', ['allow_start', 'allow_stop', 'allow_query']))
        self.assertEqual((me.jobs_live, me.jobs_ended), (1, 1))
        self.assertGreater(me.output_held, 0)
        self.assertEqual(me.output_limit, 192 * 2 ** 20)
        self.assertGreater(me.certificate_ends_us, api.status(job.id).started_us)
        api.end(job.id)
        carl = self.client('carl').who_am_i()
        self.assertEqual((carl.user, list(carl.rights), carl.jobs_live), ('carl', [], 0))
        self.assertEqual(self.client('stranger').who_am_i().user, 'stranger')

    def test_version(self):
        version = self.client('carl').version()
        self.assertRegex(version.version, r'^\d+\.\d+\.\d+$')
        self.assertEqual((version.api, version.broker_connected), (2, True))
        self.assertGreaterEqual(version.broker_protocol, 2)
        self.assertGreater(version.started_us, 0)

    def test_health_is_serving_for_each_service(self):
        messages, health = self.client('carl').stub('health.proto', 'Health')
        for service in ('', 'Worker', 'grpc.health.v1.Health'):
            answer = health.Check(messages.HealthCheckRequest(service=service), timeout=testing.HANG)
            self.assertEqual(answer.status, answer.SERVING)
        unknown = messages.HealthCheckRequest(service='Nobody')
        self.assert_code(Code.NOT_FOUND, lambda: health.Check(unknown, timeout=testing.HANG))
        watch = health.Watch(unknown, timeout=testing.HANG)
        self.assertEqual(next(watch).status, messages.HealthCheckResponse.SERVICE_UNKNOWN)
        watch.cancel()

    def test_health_needs_a_certificate(self):
        messages, health = api_testing.Api(self.site.channel(None)).stub('health.proto', 'Health')
        self.assert_code(Code.UNAVAILABLE, lambda: health.Check(messages.HealthCheckRequest(), timeout=testing.HANG))

    def test_reflection_is_off(self):
        messages, reflection = self.client().stub('reflection.proto', 'ServerReflection')
        asked = iter([messages.ServerReflectionRequest(list_services='')])
        self.assert_code(Code.UNIMPLEMENTED, lambda: next(reflection.ServerReflectionInfo(asked, timeout=testing.HANG)))

    def test_those_who_wait_are_told_when_the_server_ends(self):
        with testing.Site() as site:
            server = site.start_server()
            with api_testing.Api(site.channel('alice')) as api:
                job = api.begin_shell('exec sleep 1000', want_stdin=True)
                messages, health = api.stub('health.proto', 'Health')
                watch = health.Watch(messages.HealthCheckRequest(), timeout=testing.HANG)
                self.assertEqual(next(watch).status, messages.HealthCheckResponse.SERVING)
                source = api.input(job.id)
                source.put_and_read(data=b'line\n')
                ended = api.begin(command=b'true')
                ended.finish()
                waiting = api.wait(ended.id, job.id)
                self.assertEqual(next(waiting).pid, ended.id)
                server.send(signal.SIGTERM)
                for stream in (waiting, source.answers):
                    self.assert_code(Code.UNAVAILABLE, lambda: next(stream))
                self.assert_code(Code.UNAVAILABLE, lambda: list(watch))
                source.half_close()
            self.assertEqual(server.wait(), 0)
            self.assertEqual(site.left_over(), [])


class RestartTest(api_testing.DeployedApiTest):
    """What a start asked for is carried on by the next front end."""

    def test_labels_timeouts_and_leases_are_known_again(self):
        api = self.start_front_end()
        fields = {'labels': {'a': 'b'}, 'timeout_ms': DAY_MS, 'on_disconnect': api.messages.ON_DISCONNECT_STOP,
                  'lease_ms': DAY_MS, 'directory': b'/tmp', 'want_stdin': True}
        job = api.begin(command=b'sleep', args=[b'1000'], **fields)
        before = api.status(job.id)
        api = self.restart_front_end()
        after = api.status(job.id)
        for status in (before, after):
            status.ClearField('usage')
            status.ClearField('output')
            status.ClearField('input')
        self.assertEqual(before, after)
        self.assertEqual([listed.pid for listed in api.list(labels={'a': 'b'}).jobs], [job.id])
        api.end(job.id)

    def test_a_timeout_that_passed_meanwhile_is_one(self):
        api = self.start_front_end()
        job = api.begin(command=b'sleep', args=[b'1000'], timeout_ms=1500)
        self.server.end(signal.SIGKILL)
        api = self.start_front_end()
        end = next(api.wait(job.id)).end
        self.assertEqual((end.reason, end.signal), (end.TIMED_OUT, signal.SIGTERM))
        self.assertGreaterEqual(end.ended_us - end.started_us, 1_500_000)

    def test_a_lease_that_nobody_takes_up_again_is_lost(self):
        api = self.start_front_end()
        fields = {'on_disconnect': api.messages.ON_DISCONNECT_STOP, 'lease_ms': 1000}
        job = api.begin(command=b'sleep', args=[b'1000'], **fields)
        api = self.restart_front_end(signal.SIGTERM)
        self.assertEqual(next(api.wait(job.id)).end.reason, api.messages.JobEnd.LEASE_LOST)

    def test_a_job_that_was_removed_stays_so(self):
        api = self.start_front_end()
        jobs = [api.begin(command=b'true') for _ in range(3)]
        for job in jobs:
            job.finish()
        for job in (jobs[0], jobs[2]):
            api.remove(job.id)
        api = self.restart_front_end()
        self.assertEqual([job.pid for job in api.list().jobs], [jobs[1].id])
        self.assertEqual(api.begin(command=b'true').id, '4')

    def test_the_end_that_was_decided_is_told_by_the_next_front_end(self):
        api = self.start_front_end()
        job = api.begin_shell('trap "echo stopping" TERM; echo ready; while :; do sleep 1000 & wait; done')
        job.read_until(b'ready\n')
        stop = api.messages.WorkerPIDRequest(pid=job.id, grace_ms=3_600_000)
        call = api._worker.JobStop.future(stop, timeout=testing.HANG)
        job.read_until(b'stopping\n')
        api = self.restart_front_end()
        self.assertEqual(testing.outcome(call.result)[0], Code.UNAVAILABLE)
        self.assertEqual(api.status(job.id).state, api.messages.JobStatus.ENDING)
        end = api.end(job.id, now=True)
        self.assertEqual((end.reason, end.actor, end.stop_signal, end.stop_killed),
                         (end.STOPPED, 'alice', signal.SIGTERM, True))

    def test_without_a_broker_the_server_says_so_and_what_it_knows_is_told(self):
        api = self.start_front_end()
        messages, health = api.stub('health.proto', 'Health')
        status = messages.HealthCheckResponse
        watch = health.Watch(messages.HealthCheckRequest(service='Worker'), timeout=testing.HANG)
        self.assertEqual(next(watch).status, status.SERVING)
        ended = api.begin(command=b'true')
        ended.finish()
        lost = api.begin(command=b'sleep', args=[b'1000'])
        waiting = api.wait(lost.id)
        self.broker.end()
        self.assertEqual(next(watch).status, status.NOT_SERVING)
        check = health.Check(messages.HealthCheckRequest(), timeout=testing.HANG)
        self.assertEqual(check.status, status.NOT_SERVING)
        self.assertFalse(api.version().broker_connected)
        self.assertEqual(api.status(ended.id).state, api.messages.JobStatus.ENDED)
        self.assertEqual(len(api.list().jobs), 2)
        self.assertEqual(api.who_am_i().user, 'alice')
        for call in (lambda: api.signal(lost.id, 15), lambda: api.begin(command=b'true'), lambda: api.end(lost.id),
                     lambda: api.status(lost.id)):
            self.assert_code(Code.UNAVAILABLE, call)
        self.start_broker()
        self.assertEqual(next(watch).status, status.SERVING)
        end = next(waiting).end
        self.assertEqual((end.reason, end.cause), (end.LOST, end.UNKNOWN))
        self.assertNotEqual(end.detail, '')
        watch.cancel()

    def assert_code(self, expected, call):
        self.assertEqual(testing.outcome(call)[0], expected)


class ReflectionTest(api_testing.ApiTest):
    server_flags = ('--reflection',)

    def ask(self, user='carl', **request):
        messages, reflection = self.client(user).stub('reflection.proto', 'ServerReflection')
        asked = iter([messages.ServerReflectionRequest(**request)])
        answer, = reflection.ServerReflectionInfo(asked, timeout=testing.HANG)
        self.assertEqual(answer.original_request, messages.ServerReflectionRequest(**request))
        return answer

    def test_it_lists_the_services(self):
        services = [service.name for service in self.ask(list_services='*').list_services_response.service]
        self.assertEqual(services, ['Worker', 'grpc.health.v1.Health', 'grpc.reflection.v1alpha.ServerReflection'])

    def test_it_gives_the_files(self):
        by_symbol = self.ask(file_containing_symbol='Worker.JobStart').file_descriptor_response
        by_name = self.ask(file_by_filename='jobworker.proto').file_descriptor_response
        self.assertEqual(by_symbol, by_name)
        self.assertIn(b'WorkerStartRequest', by_symbol.file_descriptor_proto[0])

    def test_what_is_not_there_is_an_error_of_that_request(self):
        for request in ({'file_by_filename': '/etc/passwd'}, {'file_containing_symbol': 'Nothing'}):
            self.assertEqual(self.ask(**request).error_response.error_code, Code.NOT_FOUND.value[0])
        for request in ({'all_extension_numbers_of_type': 'JobEnd'}, {}):
            self.assertEqual(self.ask(**request).error_response.error_code, Code.UNIMPLEMENTED.value[0])


if __name__ == '__main__':
    testing.main()
