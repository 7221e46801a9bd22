"""What jobserver --metrics tells Prometheus, while real jobs run."""

import re
import socket
import unittest
import urllib.error
import urllib.request

import jobworker_testing as testing


def denied(client):
    code, _ = testing.outcome(lambda: client.start(b'true'))
    return code.name


class MetricsTest(testing.SiteTest):
    server_flags = ('--metrics=127.0.0.1:0',)

    def setUp(self):
        line = self.server.wait_for_line('^jobserver: metrics ')
        self.url = re.search(r' address=(http://127\.0\.0\.1:\d+/metrics) ', line)[1]

    def page(self):
        with urllib.request.urlopen(self.url, timeout=testing.HANG) as answer:
            self.assertTrue(answer.headers['Content-Type'].startswith('text/plain'))
            return answer.read().decode()

    def values(self):
        """The series by name and labels, of a page that has nothing but what the format knows."""
        values = {}
        for line in self.page().splitlines():
            if line.startswith(('# HELP ', '# TYPE ')):
                continue
            series, value = re.fullmatch(r'([a-z_]+(?:\{[a-z_]+="[^"\n]*"(?:,[a-z_]+="[^"\n]*")*\})?) (\S+)', line).groups()
            self.assertNotIn(series, values)
            values[series] = float(value)
        return values

    def test_jobs_calls_and_output_are_counted(self):
        before = self.values()

        def more(series):
            return self.values().get(series, 0) - before.get(series, 0)

        client, fifo = self.site.client(), self.site.fifo()
        job = client.shell('echo hello; read line <"$1"; exit 3', fifo.path)
        job.read_until(b'hello\n')
        self.assertEqual(self.values()['jobserver_jobs{state="running"}'], 1)
        self.assertEqual(self.values()['jobserver_followers'], 1)
        self.assertEqual(self.values()['jobserver_has_broker'], 1)
        fifo.write_line()
        job.finish()
        fifo.close()
        self.assertEqual(self.values()['jobserver_jobs{state="running"}'], 0)
        self.assertEqual(more('jobserver_jobs{state="ended"}'), 1)
        self.assertEqual(more('jobserver_jobs_ended_total{reason="exited_by_itself"}'), 1)
        self.assertEqual(more('jobserver_output_bytes_total'), 6)
        self.assertEqual(more('jobserver_sent_bytes_total'), 6)
        self.assertEqual(more('jobserver_start_seconds_count'), 1)
        self.assertEqual(more('jobserver_calls_total{method="JobStart",verdict="allowed"}'), 1)
        testing.outcome(lambda: client.start(b'/nowhere'))
        self.assertEqual(more('jobserver_starts_failed_total{stage="exec"}'), 1)
        self.assertEqual(denied(self.site.client('carl')), 'PERMISSION_DENIED')
        self.assertEqual(more('jobserver_calls_total{method="JobStart",verdict="denied"}'), 1)

    def test_the_lag_is_that_of_the_slowest_follower(self):
        client, told, fifo = self.site.client(), self.site.fifo(), self.site.fifo()
        job = client.shell('head -c 8000000 /dev/zero; echo written >"$1"; read line <"$2"', told.path, fifo.path)
        self.assertEqual(told.read_line(), b'written')
        told.close()
        self.assertGreater(self.values()['jobserver_follower_lag_bytes'], 0)
        self.assertGreater(self.values()['jobserver_held_bytes'], 8000000)
        fifo.write_line()
        job.finish()
        fifo.close()
        self.assertEqual(len(job.stdout), 8000000)

    def test_nothing_of_a_users_is_on_the_page(self):
        client = self.site.client()
        client.start(b'/bin/echo', b'a-secret-argument', env=(b'SECRET=in-the-environment',)).finish()
        page = self.page()
        for text in ('alice', 'secret', 'SECRET', 'environment'):
            self.assertNotIn(text, page)

    def test_it_has_one_page_and_one_method(self):
        base = self.url.removesuffix('/metrics')
        for path in ('/', '/metrics/..', '/etc/passwd', '/%2e%2e/%2e%2e/etc/passwd'):
            with self.assertRaises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(base + path, timeout=testing.HANG)
            self.assertEqual(refused.exception.code, 404)

    def test_connections_that_say_nothing_hold_up_no_job(self):
        port = int(re.search(r':(\d+)/', self.url)[1])
        idle = [socket.create_connection(('127.0.0.1', port), timeout=testing.HANG) for _ in range(50)]
        self.assertEqual(self.site.client().start(b'true').finish().exit_code, 0)
        for connection in idle:
            connection.close()
        self.assertEqual(self.values()['jobserver_has_broker'], 1)


class RefusedTest(unittest.TestCase):
    def test_an_address_that_others_can_reach_is_refused(self):
        site = self.enterContext(testing.Site())
        for address in ('0.0.0.0:0', '[::]:0', '9100'):
            status, log = site.refused_server(*site.standalone_flags(), f'--metrics={address}')
            self.assertEqual(status, 1)
            self.assertIn(f"jobserver: --metrics: '{address}' is not", log)
            self.assertEqual(site.left_over(), [])


if __name__ == '__main__':
    testing.main()
