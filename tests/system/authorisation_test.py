"""Who may do what: rights come from the certificate's name and the policy, and from nothing that a client sends."""

import os

import jobworker_testing as testing
from jobworker_testing import grpc

CLAIMS = ('allow_start', 'allow_stop', 'allow_query')


def calls_of(client, job_id='1', **options):
    return {
        'start': lambda: client.start(b'true', **options),
        'stop': lambda: client.stop(job_id, **options),
        'query': lambda: client.query(job_id, **options),
    }


class AuthorisationTest(testing.SiteTest):

    def test_carl_may_do_nothing(self):
        for name, call in calls_of(self.client('carl')).items():
            message = self.assert_code(grpc.StatusCode.PERMISSION_DENIED, call)
            self.assertIn('carl', message)
            self.assertIn(f'allow_{name}', message)

    def test_a_user_whom_the_policy_does_not_know_may_do_nothing(self):
        for call in calls_of(self.client('mallory')).values():
            self.assert_code(grpc.StatusCode.PERMISSION_DENIED, call)

    def test_metadata_that_claims_a_right_is_refused_and_logged_whoever_sends_it(self):
        for user in ('carl', 'alice'):
            for claim in CLAIMS:
                for call in calls_of(self.client(user), metadata=[(claim, 'true')]).values():
                    message = self.assert_code(grpc.StatusCode.PERMISSION_DENIED, call)
                    self.assertIn('metadata', message)
            self.server.wait_for_line(f'denied .*user={user} .*metadata')

    def test_other_metadata_gives_nothing(self):
        pretence = [('user', 'alice'), ('x-user', 'alice'), ('username', 'alice'), ('x-forwarded-user', 'alice')]
        for call in calls_of(self.client('carl'), metadata=pretence).values():
            self.assert_code(grpc.StatusCode.PERMISSION_DENIED, call)

    def test_another_users_job_and_one_that_never_was_look_the_same(self):
        alice, bob = self.client('alice'), self.client('bob')
        calls = [calls_of(alice)[name] for name in ('stop', 'query')]
        before = [self.assert_code(grpc.StatusCode.NOT_FOUND, call) for call in calls]
        job = bob.start(b'sleep', b'1000')
        self.assertEqual(job.id, '1')
        self.assertEqual([self.assert_code(grpc.StatusCode.NOT_FOUND, call) for call in calls], before)
        self.assertEqual(bob.stop(job.id).pid, job.id)
        self.assertEqual([self.assert_code(grpc.StatusCode.NOT_FOUND, call) for call in calls], before)


class PolicyTest(testing.unittest.TestCase):

    def setUp(self):
        self.site = self.enterContext(testing.Site())

    def test_each_right_is_given_by_its_own_word(self):
        policy = self.site.write('policy', '# who may what\n\nbob allow_query # no more\n'
                                 'carl\tallow_start  allow_stop\n')
        server = self.site.start_server(f'--policy={policy}')
        denied = {'alice': {'start', 'stop', 'query'}, 'bob': {'start', 'stop'}, 'carl': {'query'}}
        for user, expected in denied.items():
            with self.site.client(user) as client:
                codes = {name: testing.outcome(call)[0] for name, call in calls_of(client, '77').items()}
            refused = {name for name, code in codes.items() if code == grpc.StatusCode.PERMISSION_DENIED}
            self.assertEqual(refused, expected)
        self.assertEqual(server.end(), 0)

    def test_a_right_for_a_user_whom_the_broker_does_not_know_starts_nothing(self):
        policy = self.site.write('policy', 'mallory allow_start\n')
        server = self.site.start_server(f'--policy={policy}')
        with self.site.client('mallory') as client:
            code, message = testing.outcome(lambda: client.start(b'true'))
        self.assertEqual(code, grpc.StatusCode.PERMISSION_DENIED)
        self.assertIn('mallory', message)
        self.assertEqual(server.end(), 0)

    def assert_refused(self, path, *words):
        status, log = self.site.refused_server(*self.site.standalone_flags(), f'--policy={path}')
        self.assertNotEqual(status, 0)
        for word in (path, *words):
            self.assertIn(word, log)
        self.assertEqual(self.site.left_over(), [])

    def test_a_policy_with_a_mistake_in_it_is_refused_with_its_line(self):
        mistakes = {
            'alice allow_start\nbob allow_everything\n': 'allow_everything',
            'alice\n\nAlice allow_start\n': 'Alice',
            'bob allow_stop\nbob allow_start\n': 'bob',
            'bob allow_stop allow_start=true\n': 'allow_start=true',
        }
        for text, word in mistakes.items():
            with self.subTest(text):
                line = str(text.count('\n'))
                self.assert_refused(self.site.write('policy', text), f'line {line}', word)

    def test_a_policy_that_others_can_write_is_refused(self):
        for mode in (0o664, 0o646):
            self.assert_refused(self.site.write('policy', 'alice allow_start\n', mode), 'chmod')

    def test_a_policy_that_somebody_else_owns_is_refused(self):
        path = self.site.write('policy', 'alice allow_start\n')
        os.chown(path, self.site.uids['alice'], -1)
        self.assert_refused(path, 'chown')

    def test_a_policy_that_is_missing_or_no_file_is_refused(self):
        self.assert_refused(self.site.path('nothing'))
        self.assert_refused(self.site.directory)


if __name__ == '__main__':
    testing.main()
