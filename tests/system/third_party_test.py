"""A client that knows nothing but the first design's proto text: its generated code starts, queries and stops jobs."""

import os

import jobworker_testing as testing


class ThirdPartyTest(testing.SiteTest):

    def setUp(self):
        text = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'first_design.proto')
        self.messages, services = testing.generate(text)
        channel = self.site.channel('alice')
        self.addCleanup(channel.close)
        self.worker = services.WorkerStub(channel)

    def start(self, command):
        return self.worker.JobStart(self.messages.WorkerStartRequest(command=command), timeout=testing.HANG)

    def job(self, job_id):
        return self.messages.WorkerPIDRequest(pid=job_id)

    def test_start_gives_the_id_first_and_then_the_output(self):
        responses = list(self.start('printf %s "grüße, world"'))
        self.assertGreaterEqual(int(responses[0].pid), 1)
        self.assertEqual(responses[0].log, '')
        self.assertEqual(''.join(response.log for response in responses), 'grüße, world')

    def test_query_gives_all_the_output_again_from_the_beginning(self):
        started = list(self.start("sh -c 'seq 1000; seq 1000 >&2'"))
        queried = list(self.worker.JobQuery(self.job(started[0].pid), timeout=testing.HANG))
        written = ''.join(f'{number}\n' for number in range(1, 1001))
        self.assertEqual(sorted(''.join(response.log for response in queried)), sorted(written * 2))

    def test_stop_ends_a_running_job_and_its_streams_and_confirms_it(self):
        stream = self.start('sleep 1000')
        job_id = next(stream).pid
        confirmation = self.worker.JobStop(self.job(job_id), timeout=testing.HANG)
        self.assertEqual(confirmation.pid, job_id)
        self.assertTrue(confirmation.log)
        self.assertEqual(''.join(response.log for response in stream), '')


if __name__ == '__main__':
    testing.main()
