"""The coordinator of a study on one machine: starts workers, requeues trials of dead workers, shows progress."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from dlen.cluster_jobs import Jobs
from dlen.devices import worker_environment
from dlen.errors import UserError, last_line
from dlen.sweeping.live import StudyTable
from dlen.sweeping.spec import Spec
from dlen.sweeping.study import STORAGE, fail, host, repair
from dlen.sweeping.trial_records import ended, own_trials, used
from dlen.sweeping.worker import BEAT_SECONDS

STALE_SECONDS = 6 * BEAT_SECONDS  # a trial of another machine without a heartbeat for this long counts as dead
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 30.0  # time for a worker to finish its current batch
_EARLY_DEATHS = 3  # of workers without a trial, or of trials before one succeeds


class Worker(Protocol):
    """A started worker."""

    name: str

    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""

    def stop(self) -> None:
        """Ask the worker to requeue its trial and exit."""

    def kill(self) -> None:
        """Kill the worker."""

    def log(self) -> str:
        """Output of the worker."""


class LocalWorker:
    """A process in its own session, so that Ctrl-C reaches only the coordinator, which then asks the worker to stop.

    The worker exits when its standard input is closed, so it never outlives the coordinator.

    Args:
        number: number of the worker, from 0.
        spec: file of the study's spec.
    """

    def __init__(self, name: str, number: int, workers: int, devices: int, spec: Path, storage: str) -> None:
        self.name = name
        self.path = spec.with_name(f"{name}.log")
        environment = worker_environment(number, workers, devices)
        command = [sys.executable, "-m", "dlen.sweeping", str(spec), name, str(number)]
        with self.path.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment, STORAGE: storage},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """Exit code of the process."""
        return self.process.poll()

    def stop(self) -> None:
        """Close its standard input."""
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()

    def kill(self) -> None:
        """Send SIGKILL to the process and its children."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()

    def log(self) -> str:
        """Output so far."""
        return self.path.read_text(errors="replace")


class SubmititWorker:
    """A job on Slurm, or on another cluster supported by submitit.

    Args:
        number: number of the worker, from 0.
        spec: file of the study's spec, which the job must be able to read.
        cluster: cluster type of submitit, such as ``slurm`` or ``local``.
        parameters: parameters of submitit's executor, such as ``timeout_min`` and ``gpus_per_node``.

    Raises:
        UserError: submitit is not installed, or rejects the parameters.
    """

    def __init__(self, name: str, number: int, spec: Path, cluster: str, parameters: dict[str, Any]) -> None:
        from dlen.sweeping.worker import work_from

        self.name = name
        jobs = Jobs("sweep.submitit", spec.with_name("submitit"), name, cluster, parameters)
        self.job = jobs.start(work_from, str(spec), name, number)

    def exit_code(self) -> int | None:
        """0 for a job that succeeded, 1 for a job that failed or was cancelled."""
        if not self.job.done():
            return None
        return int(self.job.exception() is not None)

    def stop(self) -> None:
        """Cancel the job; its trial is requeued."""
        self.job.cancel()

    kill = stop

    def log(self) -> str:
        """Output so far."""
        return "\n".join(text for text in (self.job.stdout(), self.job.stderr()) if text)


class Coordinator:
    """Keeps the workers of this machine busy until the study has the wanted number of trials.

    Args:
        study: study, shared with other coordinators.
        start: starts a worker from its name and number.
        table: progress table.
    """

    def __init__(
        self, study: optuna.Study, spec: Spec, start: Callable[[str, int], Worker], workers: int, table: StudyTable
    ) -> None:
        self.study, self.spec, self.table = study, spec, table
        self._start = start
        self._slots: list[Worker | None] = [None] * workers
        self._names: set[str] = set()  # of all workers started here
        self._heartbeats: dict[int, tuple[int, float]] = {}  # of each trial, the last one and when it came
        self._early_deaths = 0
        self._signals = 0
        self._before = {t.number for t in own_trials(study) if t.state.is_finished()}

    def run(self) -> bool:
        """Run the study.

        Returns:
            False if it was interrupted.

        Raises:
            UserError: no worker can be started, or every trial fails.
        """
        previous_handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self.table:
                while self._step():
                    time.sleep(_POLL_SECONDS)
        finally:
            self._end()
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
        return self._signals == 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask the workers to stop; a second signal kills them. An exception here could break a storage's lock."""
        self._signals += 1
        if self._signals > 1:
            for worker in self._living():
                worker.kill()

    def _living(self) -> list[Worker]:
        return [w for w in self._slots if w is not None and w.exit_code() is None]

    def _step(self) -> bool:
        """Poll workers and trials once, and return whether there is more to do."""
        if self._signals:
            return False
        exited = [
            (s, w, code) for s, w in enumerate(self._slots) if w is not None and (code := w.exit_code()) is not None
        ]
        trials = own_trials(self.study)  # read after the exit codes, so that they include all trials of a dead worker
        for slot, dead, code in exited:
            self._slots[slot] = None
            self._requeue_trials_of(dead, code, trials)
        self._requeue_stale(trials)
        repair(self.study, trials)
        trials = own_trials(self.study)
        self.table.show(trials)
        self._give_up_if_all_fail(trials)
        missing = self.spec.trials - len(used(trials))
        in_time = self.spec.until is None or time.time() < self.spec.until
        if missing > 0 and in_time:
            for slot, worker in enumerate(self._slots):
                if worker is None and missing > 0:
                    self._slots[slot] = self._begin(slot)
                    missing -= 1
        return bool(self._living()) or any(t.state == TrialState.RUNNING for t in trials)

    def _begin(self, slot: int) -> Worker:
        name = f"{host()}-{slot}-{uuid.uuid4().hex[:6]}"
        self._names.add(name)
        return self._start(name, slot)

    def _requeue_trials_of(self, worker: Worker, code: int, trials: list[FrozenTrial]) -> None:
        """Requeue the trials of a dead worker; a worker that exited normally has none."""
        cause = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        hint = ", which the system sends when memory runs out" if code == -signal.SIGKILL else ""
        running = [t for t in trials if t.state == TrialState.RUNNING and t.user_attrs.get("worker") == worker.name]
        for trial in running:
            fail(self.study, trial, f"its worker died with {cause}{hint}", self.spec.retries)
        if any(t.user_attrs.get("worker") == worker.name for t in trials):
            self._early_deaths = 0
            return
        self._early_deaths += 1 if code else 0
        if self._early_deaths >= _EARLY_DEATHS:
            raise UserError(f"workers cannot be started ({cause}): {last_line(worker.log())}")

    def _requeue_stale(self, trials: list[FrozenTrial]) -> None:
        """Requeue the trials of other machines whose heartbeat stopped."""
        now, living_names = time.monotonic(), {worker.name for worker in self._living()}
        for trial in trials:
            if trial.state != TrialState.RUNNING or trial.user_attrs.get("worker") in living_names:
                continue
            beat = int(trial.user_attrs.get("beat", 0))
            last, seen = self._heartbeats.setdefault(trial.number, (beat, now))
            if last != beat:
                self._heartbeats[trial.number] = (beat, now)
            elif now - seen > STALE_SECONDS:
                fail(self.study, trial, f"no heartbeat for {STALE_SECONDS:.0f} s", self.spec.retries)

    def _give_up_if_all_fail(self, trials: list[FrozenTrial]) -> None:
        if any(t.state == TrialState.RUNNING for t in trials):
            return
        new = [t for t in ended(trials) if t.number not in self._before]
        if len(new) >= _EARLY_DEATHS and all(t.state == TrialState.FAIL for t in new):
            reason = new[-1].user_attrs.get("reason", "no recorded reason")
            raise UserError(f"every trial of the study {self.spec.name} failed, the last one with: {reason}")

    def _end(self) -> None:
        """Stop the workers and requeue the trials that they could not requeue themselves."""
        for worker in self._living():
            worker.stop()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._living() and time.monotonic() < deadline:
            time.sleep(0.1)
        for worker in self._living():
            worker.kill()
        for trial in own_trials(self.study):
            if trial.state == TrialState.RUNNING and trial.user_attrs.get("worker") in self._names:
                fail(self.study, trial, "interrupted", None)
