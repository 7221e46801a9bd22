"""A jobserver without Prometheus's library, as the tar.gz has it, says what it has not, why, and what to do."""

import unittest

import jobworker_testing as testing


class NoMetricsTest(unittest.TestCase):
    def test_who_asks_for_them_is_refused_and_told_what_to_do(self):
        site = self.enterContext(testing.Site())
        status, log = site.refused_server(*site.standalone_flags(), '--metrics=127.0.0.1:0')
        self.assertEqual(status, 1)
        self.assertRegex(log, '(?m)^jobserver: --metrics: this jobserver has none: .* linked in.*; leave --metrics out, or '
                              'install the package jobworker-server, whose jobserver has them$')
        self.assertEqual(site.left_over(), [])


if __name__ == '__main__':
    testing.main()
