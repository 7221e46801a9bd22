"""The standard input of jobs, through JobInput."""

import hashlib
import random
import signal

import api_testing
import jobworker_testing as testing
from api_testing import Code

KIB, MIB = 2 ** 10, 2 ** 20
CHUNK = 64 * KIB


class InputTest(api_testing.ApiTest):

    def setUp(self):
        self.api = self.client()
        self.states = self.api.messages

    def begin(self, script, *arguments, **fields):
        return self.api.begin_shell(script, *arguments, want_stdin=True, **fields)

    def open(self, job):
        source = self.api.input(job.id)
        self.addCleanup(source.cancel)
        return source

    def assert_answer(self, answer, taken, state):
        self.assertEqual((answer.taken, self.states.InputState.Name(answer.state)), (taken, state))

    def assert_over(self, source):
        """The call ends with OK."""
        self.assertEqual(list(source.answers), [])
        self.assertEqual(source.answers.code(), Code.OK)

    # What is refused.

    def test_a_job_that_did_not_ask_for_input_has_none(self):
        job = self.api.begin_shell('cat; echo end')
        self.assertIn('want_stdin', self.assert_code(Code.FAILED_PRECONDITION, self.open(job).put_and_read))
        job.finish()
        self.assertEqual(job.stdout, b'end\n')
        self.assertFalse(self.api.status(job.id).HasField('input'))

    def test_a_call_that_says_nothing_is_refused(self):
        source = self.api.input()
        source.half_close()
        self.assert_invalid('pid', lambda: next(source.answers))

    def test_a_first_chunk_without_an_id_is_refused(self):
        source = self.api.input()
        self.assert_invalid('pid', lambda: source.put_and_read(data=b'x'))

    def test_a_chunk_has_at_most_64_kib(self):
        job = self.begin('wc -c')
        source = self.open(job)
        self.assert_answer(source.put_and_read(), 0, 'INPUT_OPEN')
        self.assert_answer(source.put_and_read(data=bytes(CHUNK)), CHUNK, 'INPUT_OPEN')
        self.assert_invalid('data', lambda: source.put_and_read(offset=CHUNK, data=bytes(CHUNK + 1)), CHUNK + 1, CHUNK)
        self.assert_answer(self.open(job).put_and_read(offset=CHUNK, eof=True), CHUNK, 'INPUT_CLOSED')
        job.finish()
        self.assertEqual(int(job.stdout), CHUNK)

    def test_a_gap_is_out_of_range_and_costs_nothing(self):
        job = self.begin('cat')
        source = self.open(job)
        source.put_and_read(data=b'abc')
        for offset in (4, 2 ** 64 - 1):
            gap = self.open(job)
            self.assertIn('3', self.assert_code(Code.OUT_OF_RANGE, lambda: gap.put_and_read(offset=offset, data=b'x')))
        self.assert_answer(self.open(job).put_and_read(offset=3, data=b'def', eof=True), 6, 'INPUT_CLOSED')
        job.finish()
        self.assertEqual(job.stdout, b'abcdef')

    def test_an_eof_before_what_was_taken_is_refused(self):
        job = self.begin('cat')
        self.open(job).put_and_read(data=b'abc')
        self.assert_invalid('eof', lambda: self.open(job).put_and_read(data=b'ab', eof=True), 2, 3)
        self.open(job).put_and_read(data=b'abc', eof=True)
        job.finish()
        self.assertEqual(job.stdout, b'abc')

    def test_a_later_chunk_that_names_another_job_is_refused(self):
        job = self.begin('cat')
        source = self.open(job)
        source.put_and_read()
        self.assert_invalid('pid', lambda: source.put_and_read(pid='77777', data=b'x'))
        self.open(job).put_and_read(eof=True)
        job.finish()
        self.assertEqual(job.stdout, b'')

    # What comes through.

    def test_bytes_come_through_bit_for_bit(self):
        noise = random.Random(2).randbytes(8 * MIB + 3)
        job = self.begin('sha256sum')
        source = self.open(job)
        taken = 0
        while taken < len(noise):
            answer = source.put_and_read(offset=taken, data=noise[taken:taken + CHUNK])
            while answer.taken < min(taken + CHUNK, len(noise)):
                answer = next(source.answers)
            taken = answer.taken
        self.assert_answer(source.put_and_read(offset=taken, eof=True), len(noise), 'INPUT_CLOSED')
        self.assert_over(source)
        job.finish()
        self.assertEqual(job.stdout.split()[0].decode(), hashlib.sha256(noise).hexdigest())
        self.assert_answer(self.api.status(job.id).input, len(noise), 'INPUT_CLOSED')

    def test_bytes_that_were_taken_are_skipped(self):
        job = self.begin('cat')
        source = self.open(job)
        self.assert_answer(source.put_and_read(data=b'abc'), 3, 'INPUT_OPEN')
        self.assert_answer(source.put_and_read(data=b'abc'), 3, 'INPUT_OPEN')
        self.assert_answer(source.put_and_read(offset=1, data=b'bcde'), 5, 'INPUT_OPEN')
        self.assert_answer(source.put_and_read(offset=4, data=b'e', eof=True), 5, 'INPUT_CLOSED')
        job.finish()
        self.assertEqual(job.stdout, b'abcde')

    def test_the_first_answer_comes_while_the_job_does_not_read_and_the_next_chunk_waits(self):
        fifo = self.fifo()
        job = self.begin('read word <"$1"; wc -c', fifo.path)
        source = self.open(job)
        taken = source.put_and_read(data=bytes(CHUNK)).taken
        while taken < CHUNK:
            taken = next(source.answers).taken
        # The pipe is full now, whatever it holds.
        source.put(offset=CHUNK, data=bytes(CHUNK))
        source.put(offset=2 * CHUNK, data=bytes(CHUNK), eof=True)
        again = self.open(job)
        first = again.put_and_read(offset=CHUNK, data=bytes(CHUNK))
        self.assertEqual((first.taken, first.state), (CHUNK, self.states.INPUT_OPEN))
        self.assert_code(Code.ABORTED, lambda: list(source.answers))
        fifo.write_line()
        self.assert_answer(next(again.answers), 2 * CHUNK, 'INPUT_OPEN')
        self.assert_answer(again.put_and_read(offset=2 * CHUNK, eof=True), 2 * CHUNK, 'INPUT_CLOSED')
        self.assert_over(again)
        job.finish()
        self.assertEqual(int(job.stdout), 2 * CHUNK)

    def test_another_call_takes_over(self):
        job = self.begin('cat')
        first, second = self.open(job), self.open(job)
        first.put_and_read(data=b'abc')
        self.assert_answer(second.put_and_read(data=b'abcd'), 4, 'INPUT_OPEN')
        self.assert_code(Code.ABORTED, lambda: next(first.answers))
        self.assert_answer(second.put_and_read(offset=4, eof=True), 4, 'INPUT_CLOSED')
        job.finish()
        self.assertEqual(job.stdout, b'abcd')

    def test_a_call_that_breaks_off_leaves_the_input_open(self):
        job = self.begin('cat')
        for number in range(10):
            source = self.open(job)
            source.put_and_read(offset=number, data=b'%d' % number)
            source.cancel()
        source = self.open(job)
        self.assert_answer(source.put_and_read(offset=10), 10, 'INPUT_OPEN')
        source.half_close()
        self.assert_over(source)
        self.assert_answer(self.api.status(job.id).input, 10, 'INPUT_OPEN')
        self.assert_answer(self.open(job).put_and_read(offset=10, eof=True), 10, 'INPUT_CLOSED')
        job.finish()
        self.assertEqual(job.stdout, b'0123456789')

    def test_an_eof_at_once_is_an_empty_input(self):
        job = self.begin('wc -c')
        source = self.open(job)
        self.assert_answer(source.put_and_read(eof=True), 0, 'INPUT_CLOSED')
        self.assert_over(source)
        job.finish()
        self.assertEqual(int(job.stdout), 0)

    # Jobs that do not want it.

    def test_a_job_that_closes_its_input_is_told_at_once(self):
        fifo = self.fifo()
        job = self.begin('exec <&-; echo closed; read word <"$1"', fifo.path)
        source = self.open(job)
        source.put(data=b'')
        job.read_until(b'closed\n')
        answers = list(source.answers)
        self.assert_answer(answers[-1], 0, 'INPUT_REFUSED')
        self.assertEqual(source.answers.code(), Code.OK)
        self.assert_answer(self.open(job).put_and_read(data=b'x'), 0, 'INPUT_REFUSED')
        fifo.write_line()
        self.assertEqual(job.finish().exit_code, 0)

    def test_a_job_that_ends_without_reading_refuses_the_rest(self):
        job = self.begin('read line; exit 3')
        source = self.open(job)
        self.assert_answer(source.put_and_read(), 0, 'INPUT_OPEN')
        answer = source.put_and_read(data=b'line\n' + bytes(CHUNK - 5))
        self.assertEqual(job.finish().exit_code, 3)
        last = [answer, *source.answers][-1]
        self.assertEqual(last.state, self.states.INPUT_REFUSED)
        self.assertEqual(source.answers.code(), Code.OK)
        self.assert_answer(self.open(job).put_and_read(), last.taken, 'INPUT_REFUSED')

    def test_the_input_of_an_ended_job_stays_what_it_was(self):
        job = self.begin('cat >/dev/null')
        self.open(job).put_and_read(data=b'abc', eof=True)
        job.finish()
        source = self.open(job)
        self.assert_answer(source.put_and_read(data=b'more'), 3, 'INPUT_CLOSED')
        self.assert_over(source)

    def test_a_job_that_is_stopped_while_bytes_wait(self):
        job = self.begin('exec sleep 1000')
        source = self.open(job)
        source.put(data=bytes(CHUNK))
        source.put(offset=CHUNK, data=bytes(CHUNK))
        next(source.answers)
        end = self.api.end(job.id)
        self.assertEqual(end.reason, end.STOPPED)
        self.assertEqual(list(source.answers)[-1].state, self.states.INPUT_REFUSED)

    def test_many_inputs_at_once(self):
        jobs = [self.begin('sha256sum') for _ in range(16)]
        sources = [self.open(job) for job in jobs]
        blocks = [random.Random(number).randbytes(CHUNK) for number in range(16)]
        for source, block in zip(sources, blocks):
            source.put(data=block)
            source.put(offset=CHUNK, data=block, eof=True)
        for job, source, block in zip(jobs, sources, blocks):
            self.assert_answer(list(source.answers)[-1], 2 * CHUNK, 'INPUT_CLOSED')
            job.finish()
            self.assertEqual(job.stdout.split()[0].decode(), hashlib.sha256(2 * block).hexdigest())


class RestartTest(api_testing.DeployedApiTest):

    def test_input_is_lost_with_the_front_end_and_the_next_one_says_so(self):
        api = self.start_front_end()
        states = api.messages
        cut, closed = (api.begin_shell('cat; echo end', want_stdin=True) for _ in range(2))
        source = api.input(cut.id)
        source.put_and_read(data=b'abc')
        api.input(closed.id).put_and_read(data=b'all', eof=True)
        cut.read_until(b'abc')
        api = self.restart_front_end()
        source.half_close()
        job = api.follow(cut.id)
        end = job.finish()
        self.assertEqual((job.stdout, end.reason), (b'abcend\n', end.EXITED_BY_ITSELF))
        late = api.input(cut.id)
        answer = late.put_and_read(offset=3, data=b'more')
        self.assertEqual((answer.taken, answer.state), (3, states.INPUT_LOST))
        self.assertEqual((list(late.answers), late.answers.code()), ([], Code.OK))
        self.assertEqual(api.status(cut.id).input, answer)
        answer = api.status(closed.id).input
        self.assertEqual((answer.taken, answer.state), (3, states.INPUT_CLOSED))
        late.half_close()

    def test_input_goes_on_while_the_broker_is_away(self):
        api = self.start_front_end()
        job = api.begin_shell('read one; echo "$one"; exec sleep 1000', want_stdin=True)
        self.broker.send(signal.SIGSTOP)
        source = api.input(job.id)
        source.put_and_read(data=b'line\n')
        job.read_until(b'line\n')
        self.broker.send(signal.SIGCONT)
        api.end(job.id)
        source.half_close()


if __name__ == '__main__':
    testing.main()
