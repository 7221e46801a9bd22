"""Limits as the API asks for them, refuses them, and tells them. What they do is tested where every controller is."""

import api_testing
import jobworker_testing as testing
from api_testing import Code

# The field, the least and the most that anybody may ask for, and alice's ceiling.
FIELDS = (('cpu_milli', 5, 2 ** 32 - 1, 4000),
          ('memory_bytes', 65536, 2 ** 60, 2 ** 28),
          ('pids', 1, 4_194_304, 500),
          ('read_bytes_per_second', 1, 2 ** 60, 2 ** 21),
          ('write_bytes_per_second', 1, 2 ** 60, 2 ** 22),
          ('read_ops_per_second', 1, 2 ** 60, 300),
          ('write_ops_per_second', 1, 2 ** 60, 200))
UINT64_MAX = 2 ** 64 - 1


class LimitsTest(api_testing.ApiTest):
    user_settings = ('cpu=4000 memory=268435456 pids=500 read-bytes=2097152 write-bytes=4194304 read-ops=300 write-ops=200 '
                     'job-cpu=max job-memory=1048576 job-pids=64 jobs=7')

    def start(self, **limits):
        api = self.client()
        return api.begin(command=b'true', limits=api.messages.ResourceLimits(**limits))

    def assert_refused(self, field, *bounds, **limits):
        self.assert_invalid(f'limits.{field}', lambda: self.start(**limits), *bounds)

    def test_what_no_kernel_takes_is_refused_by_field_and_bound(self):
        for field, least, most, _ in FIELDS:
            for wrong in {0, least - 1, most + 1, UINT64_MAX}:
                self.assert_refused(field, wrong, least, most, **{field: wrong})

    def test_a_limit_above_the_ceiling_is_refused_by_field_and_ceiling(self):
        for field, _, most, ceiling in FIELDS:
            for wrong in (ceiling + 1, most):
                self.assert_refused(field, wrong, ceiling, 'alice', **{field: wrong})

    def test_one_limit_above_is_enough_and_is_the_one_that_is_named(self):
        self.assert_refused('pids', 501, 500, cpu_milli=4000, pids=501, read_ops_per_second=1)

    def test_a_start_that_was_refused_leaves_nothing(self):
        self.assert_code(Code.INVALID_ARGUMENT, lambda: self.start(pids=501))
        self.assertEqual(self.client().who_am_i().jobs_live, 0)

    def test_a_limit_at_its_least_or_at_the_ceiling_is_taken(self):
        # A process that may have no more than 64 KiB does not get far where memory.max works.
        for field, least, _, ceiling in FIELDS:
            for right in {ceiling} if field == 'memory_bytes' else {least, ceiling}:
                self.assertEqual(self.start(**{field: right}).finish().exit_code, 0)

    def test_unset_is_the_default(self):
        self.assertEqual(self.start().finish().exit_code, 0)

    def test_what_applies_is_told(self):
        api = self.client()
        job = api.begin(command=b'sleep', args=[b'1000'], limits=api.messages.ResourceLimits(pids=10, cpu_milli=100))
        status = api.status(job.id)
        self.assertEqual(job.first.status.limits, status.limits)
        self.assertEqual(list(status.unenforced), list(api.version().unenforced))
        for controller, field, value in (('pids', 'pids', 10), ('cpu', 'cpu_milli', 100), ('memory', 'memory_bytes', 2 ** 20)):
            told = getattr(status.limits, field) if status.limits.HasField(field) else None
            self.assertEqual(told, None if controller in status.unenforced else value)
        api.end(job.id)

    def test_who_am_i_tells_ceilings_and_defaults(self):
        me = self.client().who_am_i()
        for field, _, _, ceiling in FIELDS:
            self.assertEqual((field, getattr(me.ceilings, field)), (field, ceiling))
        self.assertEqual((me.defaults.memory_bytes, me.defaults.pids, me.jobs_limit), (2 ** 20, 64, 7))
        self.assertFalse(me.defaults.HasField('cpu_milli'))
        stranger = self.client('stranger').who_am_i()
        self.assertFalse(stranger.HasField('ceilings') or stranger.HasField('defaults'))
        self.assertEqual(stranger.jobs_limit, 0)

    def test_a_directory_that_cannot_be_entered_is_refused(self):
        plain = self.site.write('home/alice/plain-file', '')
        for directory, why in (('/no/such/directory', 'No such file'), (plain, 'Not a directory'),
                               (self.site.home('bob'), 'Permission denied')):
            self.assert_invalid(f"directory: '{directory}'",
                                lambda: self.client().begin(command=b'true', directory=directory.encode()), why)
        self.assertEqual(self.client().begin(command=b'pwd', directory=b'/').finish().exit_code, 0)

    def test_a_directory_is_entered(self):
        job = self.client().begin(command=b'pwd', directory=b'/usr/bin')
        job.finish()
        self.assertEqual(job.stdout, b'/usr/bin\n')


if __name__ == '__main__':
    testing.main()
