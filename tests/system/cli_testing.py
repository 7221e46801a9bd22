"""Runs the command line client at a pipe or a terminal, and compares what tests have given it and seen of it with what
the manual pages name."""

import ast
import collections
import contextlib
import fcntl
import glob
import json
import os
import re
import select
import shutil
import signal
import subprocess
import termios
import unittest

import jobworker_testing as testing

UNENFORCED = re.compile('jobworker: the server does not enforce these limits on job [^\n]*\n')

GIVEN = []  # the words of every run of the client that was not a refusal
MEMBERS = set()  # of the JSON that was seen
CONFIGURED = set()  # keys of the client's configuration

Outcome = collections.namedtuple('Outcome', 'status out err')


class Terminal:
    """A client whose standard input, output and error are a terminal."""

    def __init__(self, command, environment, columns=100):
        self._fd, other = os.openpty()
        termios.tcsetwinsize(other, (24, columns))
        take = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True,
                                        preexec_fn=take, env={**environment, 'TERM': 'xterm'})
        os.close(other)
        self.text = ''

    def read_until(self, pattern):
        """What has come until then is in `text`; a hang-up is the end of it."""
        while not re.search(pattern, self.text):
            if not select.select([self._fd], [], [], testing.HANG)[0]:
                raise AssertionError(f'no {pattern!r} in {self.text!r}')
            try:
                self.text += os.read(self._fd, 4096).decode()
            except OSError:
                raise AssertionError(f'ended without {pattern!r}: {self.text!r}') from None
        return re.search(pattern, self.text)

    def type(self, text):
        os.write(self._fd, text.encode())

    def hang_up(self):
        os.close(self._fd)

    def finish(self):
        with contextlib.suppress(OSError):
            while select.select([self._fd], [], [], testing.HANG)[0]:
                self.text += os.read(self._fd, 4096).decode()
        return self.process.wait(testing.HANG)


class Lines:
    """What a client writes into a pipe, as it comes."""

    def __init__(self, file):
        self._fd = file.fileno()
        self.text = b''

    def read_until(self, pattern):
        while not re.search(pattern, self.text):
            if not select.select([self._fd], [], [], testing.HANG)[0]:
                raise AssertionError(f'no {pattern!r} in {self.text!r}')
            more = os.read(self._fd, 65536)
            if not more:
                raise AssertionError(f'ended without {pattern!r}: {self.text!r}')
            self.text += more
        return re.search(pattern, self.text)


class Clients:
    """Runs the client; in tests that have a `site`."""

    def outcome_of(self, process, status, words, stdin=None):
        """Ends well with this status."""
        try:
            out, err = process.communicate(stdin, timeout=testing.HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            self.fail(f'{words} does not end: {process.communicate()}')
        self.assertEqual(process.returncode, status, (words, out[-1000:], err))
        return Outcome(status, out, UNENFORCED.sub('', err.decode()))

    @staticmethod
    def note_members(value):
        MEMBERS.add(value['type'])
        inside = [value]
        while inside:
            each = inside.pop()
            for name, member in each.items():
                MEMBERS.add(name)
                if isinstance(member, dict) and name != 'labels':
                    inside.append(member)

    def launch(self, *words, user='alice', bare=False, environment=(), **options):
        """Bare: with no words but these."""
        GIVEN.append(words)
        command = [shutil.which('jobworker'), *words] if bare else self.site.cli_command(*words, user=user)
        options = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options}
        process = subprocess.Popen(command, env={**self.site.cli_environment(), **dict(environment)}, **options)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        process.wait(testing.HANG)
        for file in (process.stdin, process.stdout, process.stderr):
            if file:
                with contextlib.suppress(BrokenPipeError):
                    file.close()

    def cli(self, *words, status=0, stdin=b'', **options):
        return self.outcome_of(self.launch(*words, stdin=subprocess.PIPE, **options), status, words, stdin)

    def text(self, *words, **options):
        """Its standard output."""
        return self.cli(*words, **options).out.decode()

    def json(self, *words, **options):
        found = [json.loads(line) for line in self.cli('--json', *words, **options).out.splitlines()]
        for each in found:
            self.note_members(each)
        return found

    def assert_refused(self, words, *parts, **options):
        """The client, or the server, does not do that; the client gives 125, and says why in these words."""
        process = self.launch(*words, **options)
        GIVEN.pop()
        refused = self.outcome_of(process, 125, words)
        self.assertEqual(refused.out, b'', words)
        self.assertRegex(refused.err, r'\Ajobworker: [^\n]*\n\Z')
        self.assertNotRegex(refused.err, r'(?i)grpc|rpc error|StatusCode|_ARGUMENT|NOT_FOUND|PRECONDITION')
        for part in parts:
            self.assertIn(str(part), refused.err, words)
        return refused.err

    def terminal(self, *words, environment=(), columns=100):
        GIVEN.append(words)
        environment = {**self.site.cli_environment(), **dict(environment)}
        terminal = Terminal(self.site.cli_command(*words), environment, columns)
        self.addCleanup(self.end, terminal.process)
        return terminal

    def detach(self, *words, **options):
        """Starts a job; returns its id."""
        return self.text('start', '-d', *words, **options).strip()

    def ended(self, *words, status=0):
        """The id of a job that has ended."""
        job = self.detach(*words)
        self.cli('wait', job, status=status)
        return job

    def fifo(self, user='alice'):
        return self.enterContext(contextlib.closing(self.site.fifo(user)))


Page = collections.namedtuple('Page', 'flags verbs')


def lines_of(name):
    with open(os.path.join(testing.SOURCE, 'man', name + '.in'), encoding='utf-8') as file:
        return file.read().splitlines()


def flags_of(lines):
    """The flags of the .It lines, each with whether a value follows it."""
    found = {}
    for line in lines:
        if not line.startswith('.It Fl '):
            continue
        takes_value = False
        for part in reversed(line.removeprefix('.It ').split(' , ')):
            _, name, *value = part.split()
            # A short spelling has the value of the long one behind it.
            takes_value = bool(value) or takes_value and len(name) == 1
            found['-' + name] = takes_value
    return found


def pages():
    found = {}
    for name in ('jobworker.1', 'jobserver.8', 'jobbroker.8'):
        sections = re.split(r'(?m)^\.S[sh] ', '\n'.join(lines_of(name)))
        verbs = {}
        for section in sections[1:] if name == 'jobworker.1' else ():
            title, *lines = section.splitlines()
            if title[0].islower():
                verbs[title] = flags_of(lines)
        common = [line for section in sections if not section[0].islower() for line in section.splitlines()]
        found[name] = Page(flags_of(common), verbs)
    return found


def given_to_the_client():
    """(verb, flag) of all runs; a flag that the page does not give to that verb has a None in front."""
    page = pages()['jobworker.1']
    found = set()
    for words in GIVEN:
        verb, rest = None, list(words)
        while rest:
            word = rest.pop(0)
            if word.startswith('-') and word != '--':
                name, equals, _ = word.partition('=')
                if name in page.flags:
                    owner, takes_value = None, page.flags[name]
                elif name in page.verbs.get(verb, {}):
                    owner, takes_value = verb, page.verbs[verb][name]
                else:
                    raise AssertionError(f'{words}: jobworker(1) names no {name} of {verb}')
                found.add((owner, name))
                if takes_value and not equals:
                    rest.pop(0)
            elif verb is None:
                verb = word
                found.add((verb, None))
            elif verb == 'start':
                break
    return found


def strings_in(pattern):
    """Every string of the tests."""
    found = []
    for path in glob.glob(os.path.join(testing.SOURCE, 'tests', pattern)):
        with open(path, encoding='utf-8') as file:
            nodes = list(ast.walk(ast.parse(file.read())))
        found += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return found


def words_after(macro, lines):
    """What stands in lines that begin with this macro: ".It Ic uid , gid" names two."""
    found = [word for line in lines if line.startswith(macro) for word in line.removeprefix(macro).split(' ,')]
    return {word.strip() for word in found if word.strip()[:1].islower()}


class Agreement(unittest.TestCase):
    """Runs when all others have."""

    def test_the_pages_and_the_tests_name_the_same(self):
        self.check_the_clients_flags()
        self.check_json()
        self.check_settings()
        self.check_the_servers()

    def check_the_clients_flags(self):
        page = pages()['jobworker.1']
        named = {(None, flag) for flag in page.flags} | {(verb, None) for verb in page.verbs}
        named |= {(verb, flag) for verb, flags in page.verbs.items() for flag in flags}
        self.assertEqual(given_to_the_client(), named)
        # What these do is looked at where every controller is.
        limits = {'--cpu', '--memory', '--pids', '--io-read', '--io-write'}
        self.assertEqual(limits - set(strings_in('limits/guest.py')), set())

    def check_json(self):
        text = '\n'.join(lines_of('jobworker.1'))
        section = re.search(r'(?s)^\.Sh JSON\n(.*?)^\.Sh ', text, re.M)[1]
        named = set(re.findall(r'\bCm ([a-z][a-z_0-9]+|v\b)', section)) | words_after('.It ', section.splitlines())
        verbs = set(pages()['jobworker.1'].verbs)
        self.assertEqual(MEMBERS, named - (verbs - MEMBERS))

    def check_settings(self):
        page = lines_of('jobworker-config.5')
        self.assertEqual(CONFIGURED, words_after('.It Ic ', page) | words_after('.Ic ', page))

    def check_the_servers(self):
        strings = strings_in('system/*.py')
        flags = {match for text in strings for match in re.findall(r'^(--[a-z-]+)(?:=|$)', text)}
        for name in ('jobserver.8', 'jobbroker.8'):
            self.assertEqual(set(pages()[name].flags) - flags, set(), name)
        text = '\n'.join(strings)
        config = re.search(r'(?s)\.It Fl -config Ar file\n(.*?)\n\.It ', '\n'.join(lines_of('jobserver.8')))[1]
        keys = set(re.findall(r'(?m)^([a-z-]+) = ', text))
        named = {word.removesuffix(' :') for word in words_after('.Cm ', config.splitlines())}
        self.assertEqual(named - keys, set())
        keys = set(re.findall(r'(?m)(?:^| )([a-z-]+)=', text))
        self.assertEqual(words_after('.It Ic ', lines_of('jobbroker.8')) - keys, set())
