"""Progress of a study: one live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dlen.sweeping.trial_records import best_trial, ended, last_value, retried

_PLAIN_SECONDS = 30.0
_ENDED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class StudyTable:
    """Shows running trials with their step and value, how many are done, the best so far, and the time left.

    Args:
        objectives: direction of each metric, by key.
        first: trials of an earlier run; those that have ended are not reported again.
    """

    def __init__(self, name: str, wanted: int, objectives: Mapping[str, str], first: Sequence[FrozenTrial]) -> None:
        self.name, self.wanted, self.objectives = name, wanted, dict(objectives)
        self._reported = {t.number for t in first if t.state.is_finished()}
        self._before = len(self._reported)
        self._started = self._printed = time.monotonic()
        console = Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> StudyTable:
        self._started = self._printed = time.monotonic()
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, trials: Sequence[FrozenTrial]) -> None:
        """Show what has changed."""
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._reported:
                self._reported.add(trial.number)
                self._report(trial)
        summary = self._summary(trials)
        if self._live:
            self._live.update(Group(self._running(trials), Text(summary)))
        elif time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._print(summary)

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        if self._live:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _report(self, trial: FrozenTrial) -> None:
        seconds = trial.user_attrs.get("seconds")
        parts = [f"trial {trial.number} {_ENDED[trial.state]}"]
        if trial.state == TrialState.FAIL:
            again = ", is retried" if retried(trial) else ""
            parts.append(f"({trial.user_attrs.get('reason', 'no recorded reason')}{again})")
        else:
            parts.append(_value(trial))
            parts.append(f"in {seconds:.0f} s" if seconds is not None else "")
        self._print(" ".join(p for p in [*parts, f"[{describe(trial.params)}]"] if p))

    def _summary(self, trials: Sequence[FrozenTrial]) -> str:
        counted = {state: sum(t.state == state for t in trials) for state in TrialState}
        again, done = sum(map(retried, trials)), len(ended(trials))
        line = f"{self.name}: {done} of {self.wanted} trials done ({counted[TrialState.PRUNED]} pruned, "
        line += f"{counted[TrialState.FAIL] - again} failed), {counted[TrialState.RUNNING]} running"
        top = best_trial(trials, self.objectives)
        if top is not None:
            line += f"; best {_value(top)} (trial {top.number})"
        now = len(self._reported) - self._before
        if now and done < self.wanted:
            left = (self.wanted - done) * (time.monotonic() - self._started) / now
            line += f"; about {left / 60:.0f} min left" if left >= 90 else f"; about {left:.0f} s left"
        return line

    def _running(self, trials: Sequence[FrozenTrial]) -> Table:
        table = Table()
        for header in ("trial", "worker", "seconds", "step", "value", "parameters"):
            table.add_column(header, justify="left" if header in ("worker", "parameters") else "right")
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            step, last = trial.last_step, last_value(trial)
            value = "" if last is None else f"{last:.4f}"
            ran = (datetime.now() - trial.datetime_start).total_seconds() if trial.datetime_start else 0
            worker = str(trial.user_attrs.get("worker", ""))
            cells = [str(trial.number), worker, f"{ran:.0f}", "" if step is None else str(step), value]
            table.add_row(*(Text(cell) for cell in [*cells, describe(trial.params)]))  # brackets are not markup
        return table


def describe(params: Mapping[str, object]) -> str:
    """Format parameters on one line."""
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())


def _value(trial: FrozenTrial) -> str:
    if trial.values:
        return ", ".join(f"{v:.4f}" for v in trial.values)
    last = last_value(trial)
    return "" if last is None else f"{last:.4f} at step {trial.last_step}"
