"""The queue of a study: Optuna hands each trial to one worker, of this process or another, and takes it back from
workers that died. What a trial is, and whether it is finished, is not Optuna's: finished is a run directory with
``results.json``.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from contraprune.errors import UserError

HEARTBEAT = 10  # seconds between two signs of life of a running trial
GRACE = 60  # seconds without one after which its worker is taken for dead
POLL = 2.0  # seconds between two looks at what other workers do
_TIMEOUT = 120  # seconds to wait for the database file while others write to it


class TrialError(Exception):
    """A run of the study ended with an error; the others go on."""


class _Storage(RDBStorage):
    """Gives a trial its first sign of life before it is running, so that no moment to die in is unnoticed."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)


class Queue:
    """The trials of one study that are waiting or running, in a database that workers share.

    Args:
        url: of the database (SQLAlchemy).
        study: names the study there.

    Raises:
        UserError: the database cannot be used.
    """

    def __init__(self, url: str, study: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sqlite = url.startswith("sqlite")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                storage = _Storage(
                    url,
                    engine_kwargs={"connect_args": {"timeout": _TIMEOUT}} if sqlite else None,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                )
            if sqlite:
                # SQLite has no "select for update", by which only one worker gets a trial; this locks as much.
                event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            self._study = optuna.create_study(storage=storage, study_name=study, load_if_exists=True)
        except (SQLAlchemyError, ImportError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--storage: expected a database that can be written to ({reason})") from error
        self._stopping = False
        self._processes: set[subprocess.Popen[bytes]] = set()

    def add(self, trials: Mapping[str, Mapping[str, Any]]) -> None:
        """Queues trials, options by name, except those that wait or run already."""
        there = {trial.user_attrs["name"] for trial in self._trials(TrialState.WAITING, TrialState.RUNNING)}
        for name, options in trials.items():
            if name not in there:
                self._study.enqueue_trial({}, user_attrs={"name": name, "options": dict(options)})

    def ends(self) -> dict[str, str | None]:
        """The trials whose last attempt is over, by name, and its error where one is known."""
        last = {trial.user_attrs["name"]: trial for trial in self._trials()}
        return {name: trial.user_attrs.get("error") for name, trial in last.items() if trial.state.is_finished()}

    def work(
        self,
        start: Callable[[str, Mapping[str, Any], str | None], subprocess.Popen[bytes]],
        explain: Callable[[str, int], str],
        done: Callable[[str], None],
        *,
        devices: Sequence[str | None],
    ) -> None:
        """Runs trials until none is waiting or running, here or elsewhere.

        Args:
            start: starts the process of a trial, given its name and options, on a device.
            explain: the error, in one line, of a trial's process that ended with an exit code other than 0.
            done: called after every trial, with its name.
            devices: as many trials run at once, each on one of these.
        """
        free: queue.Queue[str | None] = queue.Queue()
        for device in devices:
            free.put(device)

        def run(trial: optuna.Trial) -> float:
            name = trial.user_attrs.get("name")
            if name is None:  # another worker was quicker, and Optuna made up a trial instead
                trial.study.stop()
                raise optuna.TrialPruned
            device = free.get()
            try:
                code = self._wait(start(name, trial.user_attrs["options"], device))
            finally:
                free.put(device)
            if code:
                error = explain(name, code)
                trial.set_user_attr("error", error)
                raise TrialError(error)
            return 0.0

        def report(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            if "name" in trial.user_attrs:
                done(trial.user_attrs["name"])

        with self._stopped_by_signals():
            while self._trials(TrialState.WAITING, TrialState.RUNNING):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    optuna.storages.fail_stale_trials(self._study)
                waiting = len(self._trials(TrialState.WAITING))
                if not waiting:
                    time.sleep(POLL)
                    continue
                jobs = min(len(devices), waiting)
                try:
                    self._study.optimize(run, n_trials=waiting, n_jobs=jobs, catch=(TrialError,), callbacks=[report])
                except (UpdateFinishedTrialError, ValueError):
                    # This machine slept, and another worker has taken over what this one did, and finished it.
                    continue

    def _trials(self, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        found = self._study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in found if "name" in trial.user_attrs]

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        self._processes.add(process)
        try:
            code = process.wait()
        finally:
            process.kill()
            assert process.stdin is not None
            process.stdin.close()
            self._processes.discard(process)
        if self._stopping:
            raise KeyboardInterrupt
        return code

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the processes of all trials, for whose end Optuna's threads would wait."""

        def stop(number: int, frame: Any) -> None:
            self._stopping = True
            for process in list(self._processes):
                process.terminate()
            raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def start_process(options: Mapping[str, Any], lock: Path, log: Path, device: str | None) -> subprocess.Popen[bytes]:
    """Starts a run in a process of its own, which ends when this one does (see ``contraprune.study.worker``)."""
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "contraprune.study.worker"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # an interrupt at the terminal is this process's to pass on
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"options": options, "lock": str(lock)}).encode() + b"\n")
    process.stdin.flush()
    return process


def describe_end(log: Path, code: int) -> str:
    """The error of a run, in one line: the last line of its log, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        advice = " (out of memory?)" if name == "SIGKILL" else ""
        return f"ended by {name}{advice}; see {log}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with code {code}; see {log}"
