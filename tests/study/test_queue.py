"""Trials go to one worker each, and those of a worker that died to another. Workers are processes of their own."""

import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from filelock import FileLock

from contraprune.errors import UserError
from contraprune.study import queue
from contraprune.study.queue import Queue, describe_end, start_process

# Takes trials of the queue argv[1]: writes a line to argv[2] for each it starts, and works on it for argv[3] seconds.
_WORKER = """
import subprocess, sys
from contraprune.study import queue
queue.HEARTBEAT, queue.POLL = 1, 0.1
url, log, seconds = sys.argv[1:]
def start(name, options, device):
    with open(log, "a") as file:
        file.write(f"{name} {options['number']}\\n")
    return subprocess.Popen([sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"], stdin=subprocess.PIPE)
queue.Queue(url, "study").work(start, lambda name, code: "failed", lambda name: None, devices=[None, None])
"""


def worker(url, log, seconds):
    return subprocess.Popen([sys.executable, "-c", _WORKER, url, str(log), str(seconds)])


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in {"HEARTBEAT": 1, "POLL": 0.1}.items():
        monkeypatch.setattr(queue, name, value)


def fake(code=0):
    return subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({code})"], stdin=subprocess.PIPE)


def test_two_workers_share_a_grid_and_do_nothing_twice(url, tmp_path):
    wanted = {f"trial{number}": {"number": number} for number in range(12)}
    Queue(url, "study").add(wanted)
    workers = [worker(url, tmp_path / "log", 0.05) for _ in range(2)]
    assert [process.wait(timeout=500) for process in workers] == [0, 0]
    done = Counter((tmp_path / "log").read_text().splitlines())
    assert done == Counter(f"{name} {options['number']}" for name, options in wanted.items())
    assert Queue(url, "study").ends() == dict.fromkeys(wanted)


def test_the_trial_of_a_killed_worker_is_taken_up_again(url, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "GRACE", 2)
    trials = Queue(url, "study")
    trials.add({"trial": {"number": 1}})
    first = worker(url, tmp_path / "log", 1000)
    while not (tmp_path / "log").exists():
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = []
    trials.work(lambda name, options, device: fake(), lambda name, code: "failed", done.append, devices=[None])
    assert done == ["trial"]
    assert trials.ends() == {"trial": None}


def test_failed_trials_are_told_and_the_others_go_on(url):
    trials = Queue(url, "study")
    trials.add({"good": {}, "bad": {}, "better": {}})
    codes = {"good": 0, "bad": 3, "better": 0}

    def start(name, options, device):
        return fake(codes[name])

    trials.work(start, lambda name, code: f"{name} ended with {code}", lambda name: None, devices=[None])
    assert trials.ends() == {"good": None, "bad": "bad ended with 3", "better": None}
    trials.add({"bad": {}})  # once more
    assert trials.ends() == {"good": None, "better": None}
    codes["bad"] = 0
    trials.work(start, lambda name, code: "", lambda name: None, devices=[None])
    assert trials.ends() == dict.fromkeys(codes)


def test_trials_that_wait_are_not_added_twice(url):
    trials = Queue(url, "study")
    for _ in range(2):
        trials.add({"a": {}, "b": {}})
    started = []

    def start(name, options, device):
        started.append(name)
        return fake()

    trials.work(start, lambda name, code: "", lambda name: None, devices=[None])
    assert started == ["a", "b"]


def test_trials_that_run_at_once_have_different_devices(url):
    trials = Queue(url, "study")
    trials.add({str(number): {} for number in range(8)})
    busy, seen = set(), set()

    class Process:
        stdin = subprocess.DEVNULL

        def __init__(self, device):
            assert device not in busy
            busy.add(device)
            seen.add(device)
            self.device = device
            self.stdin = open("/dev/null", "wb")  # noqa: SIM115 - the queue closes it

        def wait(self):
            time.sleep(0.05)
            busy.remove(self.device)
            return 0

        def kill(self):
            pass

    trials.work(lambda n, o, device: Process(device), lambda n, c: "", lambda n: None, devices=["0", "2", "5"])
    assert seen == {"0", "2", "5"}
    assert trials.ends() == dict.fromkeys(map(str, range(8)))


def test_an_interrupted_trial_is_open_and_its_process_ended(url):
    trials = Queue(url, "study")
    trials.add({"trial": {}})
    processes = []

    def start(name, options, device):
        processes.append(
            subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"], stdin=subprocess.PIPE)
        )
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        return processes[0]

    def interrupt(number, frame):
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            trials.work(start, lambda name, code: "failed", lambda name: None, devices=[None])
        assert processes[0].wait(timeout=10) < 0
    finally:
        signal.signal(signal.SIGALRM, before)
        for process in processes:
            process.kill()
    assert trials.ends() == {"trial": None}  # no error to tell: it did not fail


def test_a_database_that_cannot_be_used_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--storage: expected a database that can be written to \(.*unable to open"):
        Queue(f"sqlite:///{tmp_path}/nowhere/study.db", "study")
    with pytest.raises(UserError, match=r"--storage: expected a database"):
        Queue("not a url", "study")


def test_the_process_of_a_run_tells_its_error_in_the_last_line_of_its_log(tmp_path):
    log = tmp_path / "log"
    process = start_process({"density": 2}, tmp_path / "lock", log, "7")
    code = process.wait(timeout=500)
    process.stdin.close()
    assert code == 1
    assert describe_end(log, code).startswith("a required option is missing")


def test_the_process_of_a_run_ends_with_its_worker(tmp_path):
    with FileLock(tmp_path / "lock"):  # so that it waits
        process = start_process({"density": 2}, tmp_path / "lock", tmp_path / "log", None)
        process.stdin.close()  # which the end of a worker does, whatever ended it
        assert process.wait(timeout=500) == 1
    assert (tmp_path / "log").read_text() == ""


def test_signals_are_named(tmp_path):
    assert describe_end(tmp_path / "log", -9) == f"ended by SIGKILL (out of memory?); see {tmp_path / 'log'}"
