"""Workers: train the missing runs of a plan in parallel, each in its own process and on its own device."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from dlen.comparing.plan import PlannedRun
from dlen.devices import worker_environment
from dlen.errors import UserError, last_line
from dlen.files import locked
from dlen.overrides import conf_of_this_command, written
from dlen.progress import Stage
from dlen.training.run_folder import only_training


def train_missing(runs: Sequence[PlannedRun], workers: int, group: str, job_type: str) -> None:
    """Train every run that is not done. The first failure stops the others and is reported in one line.

    On CPU the workers share the cores. A worker's number of threads, and with it the last digits of a result, depends
    on the number of workers.

    Args:
        runs: runs of the plan; runs that are done cost nothing.
        workers: number of runs trained at a time.
        group: W&B group of the runs.
        job_type: W&B job type of the runs.

    Raises:
        UserError: a run failed; the message contains its last line of output.
    """
    missing = [run for run in runs if not run.done]
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are already done", file=sys.stderr)
    if not missing:
        return
    environments: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for number in range(workers):
        environments.put(worker_environment(number, workers))
    pool = _Pool(environments, {"WANDB_RUN_GROUP": group, "WANDB_JOB_TYPE": job_type})
    # SIGTERM must also end the runs, which would otherwise train on as orphans. The handler does not raise, because an
    # exception inside a lock would break the lock.
    previous_handler = signal.signal(signal.SIGTERM, lambda number, frame: pool.stop())
    label = f"training {len(missing)} runs, {workers} at a time"
    with Stage(label, len(missing), "runs") as stage, ThreadPoolExecutor(workers) as threads:
        try:
            for ended in as_completed([threads.submit(pool.train, run) for run in missing]):
                ended.result()
                if not pool.stopped:
                    stage.advance(1)
            if pool.stopped:
                raise SystemExit(128 + signal.SIGTERM)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            pool.stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous_handler)


class _Pool:
    """The processes that are training.

    Args:
        environments: environments of free workers.
        group_names: environment variables that group the runs in W&B; the user's own values win.
    """

    def __init__(self, environments: queue.SimpleQueue[dict[str, str]], group_names: dict[str, str]) -> None:
        self.environments, self.group_names, self.conf = environments, group_names, conf_of_this_command()
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.RLock()  # the handler of a signal may interrupt its own thread
        self.stopped = False

    def train(self, run: PlannedRun) -> None:
        """Train one run, or resume it if an earlier comparison was interrupted."""
        environment = self.environments.get()
        try:
            with locked(run.folder.with_name(f".{run.folder.name}.lock"), "training this run") as lock:
                if not run.done and not self.stopped:
                    self._run(run, environment, lock)
        finally:
            self.environments.put(environment)

    def _run(self, run: PlannedRun, environment: dict[str, str], lock: int) -> None:
        arguments = [
            sys.executable,
            "-m",
            "dlen.commands.train",
            f"--config-path={self.conf}",
            *run.overrides,
            f"run_dir={written(str(run.folder), quote=True)}",
        ]
        if (run.folder / "checkpoints" / "last.ckpt").exists() and not (run.folder / "metrics.json").exists():
            arguments.append("ckpt=last")
        else:
            with only_training(run.folder):
                shutil.rmtree(run.folder, ignore_errors=True)
        log = run.folder.with_name(f"{run.folder.name}.log")
        wandb_names = {**self.group_names, "WANDB_NAME": f"{run.model}-seed{run.seed}"}
        log.unlink(missing_ok=True)  # it may be a link
        with log.open("wb") as output:
            process = subprocess.Popen(
                arguments,
                env={**wandb_names, **os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),  # an orphan keeps the lock of its run
            )
            with self.lock:
                self.processes.add(process)
                if self.stopped:  # while it was being started
                    process.terminate()
            code = process.wait()
            with self.lock:
                self.processes.discard(process)
        if code and not self.stopped:
            reason = last_line(log.read_text(errors="replace"))
            raise UserError(f"{run.model}, seed {run.seed}: training failed ({reason}); the full output is in {log}")
        if not code:
            log.replace(run.folder / "train.log")

    def stop(self) -> None:
        """End the processes that are training; their runs are resumed next time."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.terminate()
