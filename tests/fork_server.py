"""The command line in processes of its own, without the seconds that importing torch takes each.

As a program: imports everything once, then forks a process for every line of JSON on standard input, which runs the
command in it and may be made to kill itself, stop or lose the right to write large files at a chosen moment. As a
module: :class:`Server` starts that program and talks to it.

A moment is ``{"call": "module:name", "number": 2, "then": ACTION}`` (before the second call of a function; with
``"after": true`` after it) or ``{"rename_to": "end of a path", "then": ACTION}`` (before a file gets its name).
Actions: ``kill``; ``tear``, which cuts the file that the call wrote in half and kills; ``interrupt`` (Ctrl-C);
``stop``, until the test kills it.
"""

import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class End(NamedTuple):
    """How a command ended: its exit code, negative for a signal; None while it is stopped."""

    code: int | None
    pid: int
    error: str

    @property
    def lines(self):
        """What it said as the command line's own lines."""
        return [line for line in self.error.splitlines() if line.startswith("contraprune: ")]


class Server:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, arguments, moment=None, *, largest_file=None):
        """Runs one command to its end, or until it is stopped."""
        request = {"arguments": [str(argument) for argument in arguments], "moment": moment, "largest": largest_file}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return End(**json.loads(self.process.stdout.readline()))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def act(action, arguments=()):
    if action == "tear":
        os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
    numbers = {"interrupt": signal.SIGINT, "stop": signal.SIGSTOP}
    os.kill(os.getpid(), numbers.get(action, signal.SIGKILL))


def arm(moment):
    if "rename_to" in moment:

        def hook(event, arguments):
            if event == "os.rename" and str(arguments[1]).endswith(moment["rename_to"]):
                act(moment["then"])

        sys.addaudithook(hook)
        return
    module, _, path = moment["call"].partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    count = 0

    def wrapped(*arguments, **options):
        nonlocal count
        count += 1
        now = count == moment.get("number", 1)
        late = moment.get("after", False) or moment["then"] == "tear"
        if now and not late:
            act(moment["then"])
        result = original(*arguments, **options)
        if now and late:
            act(moment["then"], arguments)
        return result

    setattr(owner, name, wrapped)


def child(request, errors):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    if request["moment"] is not None:
        arm(request["moment"])
    if request["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"], resource.RLIM_INFINITY))
    from contraprune.cli import main

    code = 1
    try:
        code = main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve():
    import torch

    torch.set_num_threads(1)
    import contraprune.export
    import contraprune.pipeline  # noqa: F401 - what the commands would import

    gc.freeze()  # so that no collection in a child goes through, and copies, what was imported
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if pid == 0:
                child(request, errors.fileno())
            _, status = os.waitpid(pid, os.WUNTRACED)
            code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
            errors.seek(0)
            found = End(code, pid, errors.read().decode(errors="replace"))
        print(json.dumps(found._asdict()), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve()
