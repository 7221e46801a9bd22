"""Runs as root in a booted Debian whose /mnt has the packages: installs, uses and removes Job Worker as README.md has it.
Says "ok NAME" or "not ok NAME: why" for each check. Ends with 100 when it wants a reboot in between."""
import itertools
import json
import os
import re
import ssl
import subprocess
import sys
import time
import traceback
import urllib.request

sys.stdout.reconfigure(line_buffering=True)
UNITS = ["jobworker.service", "jobworker-broker.service", "jobworker-jobs.service"]
SLICE = "/sys/fs/cgroup/jobworker.slice"
JOBS = SLICE + "/jobworker-jobs.service/jobs"
SERVER, USERS = "10.9.0.1", {"alice": 70001, "bob": 70002, "carl": 70003}
checks = []


def check(name):
    return lambda function: checks.append((name, function)) or function


def run(*words, ok=True, **options):
    done = subprocess.run(words, text=True, capture_output=True, timeout=120, **options)
    if ok and done.returncode != 0:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-1500:]}")
    return done


def systemctl(*words, **options):
    return run("systemctl", *words, **options)


def words_of(user):
    """The client, as on another machine: in a network namespace of its own."""
    return ["ip", "netns", "exec", "client", "jobworker", "-u", user, "-h", SERVER, "--certs", f"/root/{user}"]


def worker(user, *words, **options):
    return run(*words_of(user), *words, **options)


def start(user, *words):
    return worker(user, "start", "-d", *words).stdout.strip()


def read(path):
    with open(path) as file:
        return file.read()


def show(unit, what):
    return systemctl("show", "--value", "-p", what, unit).stdout.strip()


def job_processes():
    """Pids of processes of users in the list, and of those whose cgroup is a job's."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            uid = int(re.search(r"^Uid:\s+(\d+)", read(f"/proc/{pid}/status"), re.M)[1])
            if uid in USERS.values() or "/jobs/" in read(f"/proc/{pid}/cgroup"):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def pids_of(job):
    return read(f"{JOBS}/{job}/cgroup.procs").split()


def wait_for(what, condition, within=60):
    """For what another process does without telling us: bounded, and never the thing that is judged."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"it never came to this: {what}")


def wait_active(unit, *, other_than="0"):
    wait_for(f"{unit} is active again", lambda: show(unit, "ActiveState") == "active" and
             show(unit, "MainPID") not in ("0", other_than))
    return show(unit, "MainPID")


def wait_serving():
    wait_for("alice can run a job", lambda: worker("alice", "start", "true", ok=False).returncode == 0)


def start_all():
    systemctl("start", *UNITS[:2])
    wait_serving()


def contains(text, *parts):
    for part in parts:
        assert part in text, f"no {part!r} in {text!r}"


# --- What README.md says to do.


@check("install")
def _():
    run("apt-get", "install", "-y", "--no-install-recommends", "/mnt/client.deb", "/mnt/server.deb")
    for unit in UNITS[:2]:
        assert systemctl("is-enabled", unit, ok=False).stdout.strip() == "disabled", unit
    for unit in UNITS:
        assert show(unit, "ActiveState") == "inactive", unit


@check("no-start-without-certificates")
def _():
    done = systemctl("start", "jobworker", ok=False)
    assert done.returncode != 0
    contains(done.stderr, "Assert")
    systemctl("stop", *UNITS)


@check("units-verify")
def _():
    done = run("systemd-analyze", "verify", "--man=no", *UNITS)
    assert done.stderr == "", done.stderr


@check("certificates")
def _():
    run("jobworker-certs", "/etc/jobworker/ca", "--host", SERVER, "--user", "alice", "--user", "bob", "--user", "carl",
        "--install")
    for user in USERS:
        os.mkdir(f"/root/{user}", 0o700)
        run("cp", *(f"/etc/jobworker/ca/{name}.pem" for name in ("ca", user, user + "-key")), f"/root/{user}")


@check("enable-and-start")
def _():
    systemctl("enable", "--now", "jobworker-broker", "jobworker")
    for unit in UNITS:
        assert show(unit, "ActiveState") == "active", unit


@check("alice-from-another-machine")
def _():
    done = worker("alice", "start", "id", "-u")
    assert done.stdout == "70001\n", done
    assert worker("alice", "start", "sh", "-c", "exit 7", ok=False).returncode == 7


@check("carl-denied")
def _():
    done = worker("carl", "start", "id", ok=False)
    assert (done.returncode, done.stdout) == (125, ""), done
    contains(done.stderr, "not allowed", "carl")


@check("journal-has-fields")
def _():
    found = run("journalctl", "-o", "json", "--no-pager", "JOBWORKER_EVENT=denied", "JOBWORKER_USER=carl").stdout
    entry = json.loads(found.splitlines()[-1])
    assert (entry["JOBWORKER_METHOD"], entry["JOBWORKER_REASON"]) == ("JobStart", "not in the policy"), entry
    assert (entry["PRIORITY"], entry["_SYSTEMD_UNIT"]) == ("4", "jobworker.service"), entry
    contains(entry["MESSAGE"], "denied method=JobStart user=carl")


@check("metrics")
def _():
    with open("/etc/default/jobworker", "w") as options:
        options.write('OPTIONS="--metrics 127.0.0.1:9757"\n')
    systemctl("restart", "jobworker")
    assert worker("alice", "start", "echo", "hi").stdout == "hi\n"
    with urllib.request.urlopen("http://127.0.0.1:9757/metrics", timeout=60) as page:
        contains(page.read().decode(), 'jobserver_calls_total{method="JobStart",verdict="allowed"} 1\n', "jobserver_has_broker 1\n")
    os.unlink("/etc/default/jobworker")
    systemctl("restart", "jobworker")
    wait_serving()


def logged(unit, words):
    return words in run("journalctl", "-u", unit, "-o", "cat", "--no-pager").stdout


@check("reload-takes-a-good-policy-and-refuses-a-bad-one")
def _():
    pid, before = show("jobworker.service", "MainPID"), read("/etc/jobworker/policy")
    with open("/etc/jobworker/policy", "a") as policy:
        policy.write("carl allow_everything\n")
    systemctl("reload", "jobworker")
    wait_for("the bad policy is refused", lambda: logged("jobworker", "reload refused"))
    assert worker("alice", "start", "echo", "hi").stdout == "hi\n"
    with open("/etc/jobworker/policy", "w") as policy:
        policy.write(before.replace("carl\n", "carl allow_start\n"))
    systemctl("reload", "jobworker")
    wait_for("carl may start", lambda: worker("carl", "start", "true", ok=False).returncode == 0)
    with open("/etc/jobworker/policy", "w") as policy:
        policy.write(before)
    systemctl("reload", "jobworker")
    wait_for("carl may not any more", lambda: worker("carl", "start", "true", ok=False).returncode == 125)
    assert show("jobworker.service", "MainPID") == pid
    assert show("jobworker.service", "ActiveState") == "active"


@check("wrong-uid-cannot-reach-the-broker")
def _():
    attempt = ("import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(20); "
               "s.connect('/run/jobworker/broker.sock'); print('connected', s.recvmsg(100, 1000)[:2])")
    python = ["/usr/bin/python3", "-c", attempt]
    for uid in ("65534", "70001"):
        done = run("setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", *python, ok=False)
        contains(done.stderr, "PermissionError")
    done = run("setpriv", "--reuid", "65534", "--regid", "jobworker", "--clear-groups", *python, ok=False)
    assert "PermissionError" in done.stderr or done.stdout == "connected (b'', [])\n" or "reset" in done.stderr, done
    job = worker("alice", "start", *python, ok=False)
    contains(job.stderr, "PermissionError")


# --- What the programs and the jobs have.


@check("security-figures")
def _():
    for unit, most in zip(UNITS, (10, 32, 10)):
        done = run("systemd-analyze", "security", "--no-pager", f"--threshold={most}", unit, ok=False)
        print("#", done.stdout.strip().splitlines()[-1])
        assert done.returncode == 0, f"{unit} is above {most / 10}"


def status(pid):
    return dict(line.split(":\t", 1) for line in read(f"/proc/{pid}/status").splitlines() if ":\t" in line)


@check("front-end-has-nothing")
def _():
    facts = status(show("jobworker.service", "MainPID"))
    uid = run("id", "-u", "jobworker").stdout.strip()
    assert facts["Uid"].split() == [uid] * 4, facts
    assert {facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}, facts
    assert set(facts["Groups"].split()) <= {facts["Gid"].split()[0]}, facts
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2"), facts


@check("broker-has-three-capabilities")
def _():
    # Under systemd it has no guardian.
    broker, = read(SLICE + "/jobworker-broker.service/cgroup.procs").split()
    facts = status(broker)
    # KILL 5, SETGID 6, SETUID 7.
    assert [facts[name] for name in ("CapPrm", "CapEff", "CapBnd")] == [f"{0xe0:016x}"] * 2 + ["0" * 16], facts
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["CapAmb"]) == ("1", "2", "0" * 16), facts


@check("holder-sleeps-in-a-leaf")
def _():
    assert read(SLICE + "/jobworker-jobs.service/cgroup.procs") == ""
    pid = show("jobworker-jobs.service", "MainPID")
    assert read(SLICE + "/jobworker-jobs.service/hold/cgroup.procs").split() == [pid]
    assert os.path.realpath(f"/proc/{pid}/exe") == "/usr/bin/sleep"
    assert status(pid)["CapBnd"] == "0" * 16


WHAT_A_JOB_SEES = r"""
import os, resource, subprocess
def attempt(name, function):
    try:
        print(name, 'can', function())
    except OSError as error:
        print(name, os.strerror(error.errno))
facts = dict(line.split(':\t', 1) for line in open('/proc/self/status') if ':\t' in line)
print('caps', {facts[n].strip() for n in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')})
print('ids', facts['Uid'].split(), facts['Gid'].split(), facts['Groups'].split())
print('nnp', facts['NoNewPrivs'].strip(), 'seccomp', facts['Seccomp'].strip())
print('fds', sorted(int(f) for f in os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))
print('oom', open('/proc/self/oom_score_adj').read().strip())
print('umask', oct(os.umask(0)))
print('nofile', resource.getrlimit(resource.RLIMIT_NOFILE)[0], 'core', resource.getrlimit(resource.RLIMIT_CORE))
print('environment', sorted(os.environ))
print('cgroup', open('/proc/self/cgroup').read().strip())
print('cwd', os.getcwd())
print('processes of others', any(os.stat('/proc/' + p).st_uid != os.getuid() for p in os.listdir('/proc') if p.isdigit()))
print('home', os.access('/root', os.X_OK), 'ca', os.access('/etc/jobworker/ca', os.R_OK))
print('disk node', os.path.exists('/dev/ubda'))
attempt('oom -1', lambda: os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1'))
for path in ('/etc/x', '/usr/x', '/run/x', '/sys/fs/cgroup/cgroup.procs', '/proc/sys/kernel/hostname'):
    attempt('write ' + path, lambda: open(path, 'w'))
for path in ('/tmp/x', 'x'):
    attempt('write ' + path, lambda: open(path, 'w').close())
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), '')
attempt('unshare user', lambda: call(272, 0x10000000))
attempt('mount', lambda: call(165, 0, b'/tmp', b'tmpfs', 0, 0))
attempt('keyctl', lambda: call(250, 0, -3, 0))
attempt('chmod u+s', lambda: os.chmod('x', 0o4755))
import socket
attempt('packet socket', lambda: socket.socket(17, socket.SOCK_RAW))
attempt('internet socket', lambda: socket.socket().close())
"""


@check("what-a-job-sees")
def _():
    seen = worker("alice", "start", "python3", "-c", WHAT_A_JOB_SEES).stdout
    contains(seen, "caps {'0000000000000000'}", "ids ['70001', '70001', '70001', '70001'] ['70001', '70001', '70001', '70001'] []",
             "nnp 1 seccomp 2", "oom 0\n", "oom -1 Permission denied", "umask 0o77\n", "nofile 1024 core (0, 0)", "cwd /var/lib/jobworker/alice\n",
             "processes of others False", "home False ca False", "disk node False", "write /etc/x Read-only file system",
             "write /usr/x Read-only file system", "write /run/x Permission denied",
             "write /sys/fs/cgroup/cgroup.procs Permission denied", "write /tmp/x can None",
             "write x can None", "unshare user Operation not permitted", "mount Operation not permitted",
             "keyctl Operation not permitted", "chmod u+s Operation not permitted",
             "packet socket Address family not supported by protocol", "internet socket can None")
    assert re.search(r"cgroup 0::/jobworker.slice/jobworker-jobs.service/jobs/alice/\d+\n", seen), seen
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM"):
        assert name not in seen, seen
    assert not os.path.exists("/tmp/x"), "the jobs' /tmp is the system's"


@check("limits-in-the-delegated-subtree")
def _():
    alice = JOBS + "/alice/"
    assert read(alice + "cpu.max") == "100000 200000\n"
    assert read(alice + "memory.max") == "134217728\n"
    contains(read(alice + "io.max"), "98:0", "wbps=1048576", "wiops=120")
    assert read(alice + "pids.max") == "2048\n"
    hog = worker("alice", "start", "python3", "-c", "x = b'x' * 300_000_000; print(len(x))", ok=False)
    assert (hog.returncode, hog.stdout) == (137, ""), hog
    contains(hog.stderr, "memory")
    bombs = worker("alice", "start", "sh", "-c", "for i in $(seq 200); do sleep 1000 & done", ok=False)
    assert "fork" in bombs.stderr, bombs


# --- What may end, and what must not notice.


class Rush:
    """A job of alice's that writes numbers as fast as its half a CPU lets it, and a client that follows it."""
    SCRIPT = 'n=0; while [ ! -e enough ]; do seq $((n+1)) $((n+2000)); n=$((n+2000)); done; rm -f enough; exit 7'

    def __init__(self):
        self.output = "/root/followed"
        self.job = start("alice", "sh", "-c", self.SCRIPT)
        with open(self.output, "wb") as output:
            self.follower = subprocess.Popen([*words_of("alice"), "query", self.job], stdout=output, stderr=subprocess.PIPE,
                                             text=True)
        self.goes_on()

    def goes_on(self):
        before = os.path.getsize(self.output)
        wait_for("more is followed", lambda: os.path.getsize(self.output) > before)

    def end(self, with_its_broker=True):
        """Every number came once, in order, and the job's end after them: exact, or, when its broker has been replaced,
        exact or unknown. What the client said on the way."""
        with open("/var/lib/jobworker/alice/enough", "w"):
            pass
        said = self.follower.communicate(timeout=300)[1]
        unknown = self.follower.returncode == 125 and f"job {self.job} was lost" in said and not with_its_broker
        assert self.follower.returncode == 7 or unknown, said
        with open(self.output, "rb") as output:
            lines = sum(block.count(b"\n") for block in iter(lambda: output.read(1 << 20), b""))
        assert lines > 0 and lines % 2000 == 0, lines
        run("sh", "-c", f"seq {lines} | cmp - {self.output}")
        print(f"# {lines} lines; the client said: {said.strip()!r}")
        return said


@check("front-end-killed")
def _():
    job, rush = start("alice", "sleep", "1000"), Rush()
    before, pid = pids_of(f"alice/{job}"), show("jobworker.service", "MainPID")
    assert len(before) == 1
    os.kill(int(pid), 9)
    wait_active("jobworker.service", other_than=pid)
    wait_serving()
    assert pids_of(f"alice/{job}") == before
    worker("alice", "stop", job)
    assert not os.path.exists(f"{JOBS}/alice/{job}")
    rush.goes_on()
    contains(rush.end(), "trying again")


@check("front-end-restarted")
def _():
    job, rush = start("alice", "sleep", "1000"), Rush()
    before = pids_of(f"alice/{job}")
    systemctl("restart", "jobworker")
    wait_serving()
    assert pids_of(f"alice/{job}") == before
    worker("alice", "stop", job)
    rush.goes_on()
    contains(rush.end(), "trying again")


@check("certificates-are-swapped-under-load")
def _():
    pid, rush, shown = show("jobworker.service", "MainPID"), Rush(), ssl.get_server_certificate((SERVER, 57533))
    run("jobworker-certs", "/etc/jobworker/ca", "--renew", "worker", "--install")
    wait_for("the new one is shown", lambda: ssl.get_server_certificate((SERVER, 57533)) != shown)
    assert worker("alice", "start", "echo", "hi").stdout == "hi\n"
    rush.goes_on()
    assert "again" not in rush.end(), "its stream was lost"
    assert show("jobworker.service", "MainPID") == pid


COUNTER = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"


def begin(user):
    """Starts a counter; its name, its process and its limits."""
    job = f"{user}/{start(user, 'sh', '-c', COUNTER)}"
    return job, facts_of(job)


def facts_of(job):
    # The first is the shell: a sleep's pid is higher until pids wrap, which 32768 of them take.
    return int(pids_of(job)[0]), [read(f"{JOBS}/{job}/{name}") for name in ("cpu.max", "memory.max", "io.max", "pids.max")]


def end_counter(job):
    """It can be stopped, and nothing of what it wrote is missing, there twice, or cut."""
    user, number = job.split("/")
    worker(user, "stop", number)
    assert not os.path.exists(f"{JOBS}/{job}")
    numbers = [int(line) for line in worker(user, "query", number, ok=False).stdout.split()]
    assert len(numbers) > 0 and numbers == list(range(1, len(numbers) + 1)), (numbers[:20], numbers[-20:])


def kill_broker():
    pid = show("jobworker-broker.service", "MainPID")
    os.kill(int(pid), 9)
    wait_active("jobworker-broker.service", other_than=pid)


@check("broker-killed-a-hundred-times")
def _():
    jobs = [begin(user) for user in ("alice", "bob")]
    for _ in range(100):
        kill_broker()
        for job, facts in jobs:
            assert facts_of(job) == facts
    wait_serving()
    for job, _ in jobs:
        end_counter(job)


@check("broker-restarted")
def _():
    job, facts = begin("alice")
    holder = show("jobworker-jobs.service", "MainPID")
    systemctl("restart", "jobworker-broker")
    wait_serving()
    assert facts_of(job) == facts and show("jobworker-jobs.service", "MainPID") == holder
    end_counter(job)


@check("both-halves-killed")
def _():
    for halves in itertools.permutations(UNITS[:2]):
        job, facts = begin("alice")
        for unit in halves:
            os.kill(int(show(unit, "MainPID")), 9)
        wait_serving()
        assert facts_of(job) == facts
        end_counter(job)


@check("end-without-a-broker-is-exact-or-unknown")
def _():
    job = start("alice", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 1; done")
    told = start("alice", "sh", "-c", "exit 9")
    assert worker("alice", "query", told, ok=False).returncode == 9
    broker = show("jobworker-broker.service", "MainPID")
    os.kill(int(broker), 19)
    os.kill(int(pids_of(f"alice/{job}")[0]), 15)
    wait_for("its end", lambda: pids_of(f"alice/{job}") == [])
    os.kill(int(broker), 9)
    wait_active("jobworker-broker.service", other_than=broker)
    wait_serving()
    done = worker("alice", "query", job, ok=False)
    assert done.returncode == 7 or (done.returncode == 125 and "lost" in done.stderr), done
    assert not os.path.exists(f"{JOBS}/alice/{job}")
    for _ in range(2):
        assert worker("alice", "query", told, ok=False).returncode == 9
        systemctl("restart", "jobworker")  # the next one has it from the broker
        wait_serving()


@check("watchdog-catches-a-stopped-half")
def _():
    for stopped, other in (UNITS[:2], UNITS[1::-1]):
        job, facts = begin("alice")
        pid, others = show(stopped, "MainPID"), show(other, "MainPID")
        os.kill(int(pid), 19)
        wait_active(stopped, other_than=pid)
        wait_serving()
        assert facts_of(job) == facts and show(other, "MainPID") == others
        end_counter(job)


@check("watchdog-leaves-a-front-end-without-a-broker")
def _():
    pid = show("jobworker.service", "MainPID")
    systemctl("stop", "jobworker-broker")
    stopped = time.monotonic()
    patience = int(show("jobworker.service", "WatchdogUSec").removesuffix("s"))
    wait_for("it is well when it would have been killed otherwise", lambda: stopped + patience <
             int(show("jobworker.service", "WatchdogTimestampMonotonic")) / 1e6, within=10 * patience)
    assert show("jobworker.service", "MainPID") == pid
    contains(worker("alice", "--no-reconnect", "start", "true", ok=False).stderr, "broker")
    systemctl("start", "jobworker-broker")
    wait_serving()
    assert show("jobworker.service", "MainPID") == pid


def nothing_left():
    assert job_processes() == [], [read(f"/proc/{pid}/cmdline") for pid in job_processes()]
    assert not os.path.exists(JOBS), JOBS


@check("holder-stopped")
def _():
    start("alice", "sh", "-c", "sleep 1000 & setsid sleep 1000 & exec sleep 1000")
    wait_for("three processes", lambda: len(job_processes()) == 3)
    systemctl("stop", "jobworker-jobs")
    nothing_left()
    assert show("jobworker-broker.service", "ActiveState") == "inactive"
    start_all()


@check("holder-killed")
def _():
    start("alice", "sleep", "1000")
    pid, broker = show("jobworker-jobs.service", "MainPID"), show("jobworker-broker.service", "MainPID")
    os.kill(int(pid), 9)
    wait_active("jobworker-jobs.service", other_than=pid)
    wait_active("jobworker-broker.service", other_than=broker)
    assert job_processes() == []
    wait_serving()


@check("broker-stopped")
def _():
    start("alice", "sleep", "1000")
    systemctl("stop", "jobworker-broker")
    nothing_left()
    assert show("jobworker-jobs.service", "ActiveState") == "active"
    start_all()


@check("stopped-in-any-order")
def _():
    for order in itertools.permutations(UNITS):
        start("alice", "sleep", "1000")
        wait_for("one process", lambda: len(job_processes()) == 1)
        for unit in order:
            systemctl("stop", unit)
        nothing_left()
        left = run("find", "/sys/fs/cgroup", "-name", "jobworker*.service").stdout
        assert left == "", left
        start_all()
    start("alice", "sleep", "1000")
    systemctl("stop", *UNITS)
    nothing_left()
    start_all()


@check("a-revoked-client-is-refused-and-its-streams-end")
def _():
    pid, rush = show("jobworker.service", "MainPID"), Rush()
    following = subprocess.Popen([*words_of("bob"), "start", "sh", "-c", "echo begun; exec sleep 1000"], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)
    assert following.stdout.readline() == "begun\n"
    run("jobworker-certs", "/etc/jobworker/ca", "--revoke", "bob", "--install")
    _, err = following.communicate(timeout=120)
    assert following.returncode == 125, err
    contains(err, "revoked")
    contains(worker("bob", "start", "true", ok=False).stderr, "revoked")
    assert worker("alice", "start", "echo", "hi").stdout == "hi\n"
    rush.goes_on()
    assert "again" not in rush.end(), "another's stream was lost"
    assert show("jobworker.service", "MainPID") == pid


@check("before-reboot")
def _():
    start("alice", "sh", "-c", "trap '' TERM; while :; do sleep 1000; done")


# --- After a reboot.


@check("reboot")
def _():
    assert job_processes() == []
    for unit in UNITS:
        assert show(unit, "ActiveState") == "active", unit
    wait_serving()
    failed = systemctl("--failed", "--plain", "--no-legend").stdout
    assert failed == "", failed
    jobs = [name for name in os.listdir(JOBS + "/alice") if name.isdigit()]
    assert jobs == [], jobs


@check("upgrade-keeps-jobs-and-configuration")
def _():
    job, facts = begin("alice")
    rush, halves = Rush(), [show(unit, "MainPID") for unit in UNITS[:2]]
    with open("/etc/jobworker/policy", "a") as policy:
        policy.write("# the operator's own line\n")
    holder = show("jobworker-jobs.service", "MainPID")
    run("apt-get", "install", "-y", "-o", "DPkg::Options::=--force-confold", "/mnt/next-server.deb", "/mnt/next-client.deb")
    rush.goes_on()
    assert not set(halves) & {show(unit, "MainPID") for unit in UNITS[:2]}
    contains(read("/etc/jobworker/policy"), "the operator's own line")
    assert show("jobworker-jobs.service", "MainPID") == holder
    wait_serving()
    assert facts_of(job) == facts
    end_counter(job)
    contains(rush.end(with_its_broker=False), "trying again")


@check("remove")
def _():
    start("alice", "sleep", "1000")
    run("apt-get", "remove", "-y", "jobworker-server", "jobworker-client")
    nothing_left()
    for unit in UNITS:
        assert not os.path.exists(f"{SLICE}/{unit}"), unit
    assert os.path.exists("/etc/jobworker/ca/ca-key.pem")
    assert not run("pgrep", "-x", "jobserver|jobbroker", ok=False).stdout


@check("purge")
def _():
    run("apt-get", "purge", "-y", "jobworker-server", "jobworker-client")
    left = run("find", "/", "-xdev", "-path", "/proc", "-prune", "-o", "-path", "/mnt", "-prune", "-o", "-name", "*jobworker*",
               "-print").stdout.split()
    mine = [path for path in left if not path.startswith(("/var/log", "/var/lib/apt", "/var/cache"))]
    assert mine == [], mine
    assert "jobworker" not in read("/etc/passwd") + read("/etc/group")
    assert "jobworker" not in run("systemctl", "list-unit-files").stdout


def another_machine():
    for name in ("veth",):
        run("insmod", f"/mnt/{name}.ko")
    run("ip", "netns", "add", "client")
    run("ip", "link", "add", "server0", "type", "veth", "peer", "name", "client0", "netns", "client")
    run("ip", "address", "add", SERVER + "/24", "dev", "server0")
    run("ip", "link", "set", "server0", "up")
    run("ip", "-n", "client", "address", "add", "10.9.0.2/24", "dev", "client0")
    run("ip", "-n", "client", "link", "set", "client0", "up")


def main():
    another_machine()
    at = next(i for i, (name, _) in enumerate(checks) if name == "reboot")
    second = os.path.exists("/mnt/rebooted")
    for name, function in checks[at:] if second else checks[:at]:
        began = time.monotonic()
        try:
            function()
            print(f"ok {name}")
        except Exception as error:
            print(f"not ok {name}: {error}\n# " + traceback.format_exc().replace("\n", "\n# "))
            log = run("journalctl", "-n", "40", "--no-pager", "-o", "short-monotonic", ok=False).stdout
            print("# " + log.replace("\n", "\n# "))
        print(f"# {name} took {time.monotonic() - began:.1f} s")
    if second:
        return 0
    open("/mnt/rebooted", "w").close()
    return 100


sys.exit(main())
