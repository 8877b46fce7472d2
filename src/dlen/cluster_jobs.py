"""Jobs of Slurm, or of another cluster that submitit supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dlen.errors import UserError, one_line

_DAY = 1440  # minutes
_LONGEST = 600  # characters of an error or of a log


class Jobs:
    """Starts jobs that call a function. Needs ``pip install 'dlen[submitit]'``.

    Args:
        key: the config key of the settings, for errors.
        folder: folder of the jobs' logs, which every machine must see.
        name: name of the jobs.
        cluster: cluster type of submitit, such as ``slurm``, or ``local`` for jobs on this machine.
        parameters: parameters of submitit's executor, such as ``slurm_partition``; ``timeout_min`` is a day if it is
            not among them.

    Raises:
        UserError: submitit is not installed, or rejects the parameters.
    """

    def __init__(self, key: str, folder: Path, name: str, cluster: str, parameters: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(f"config {key}: submitit is not installed; pip install 'dlen[submitit]'") from None
        self.key = key
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**{"name": name, "timeout_min": _DAY, **parameters})
        except (RuntimeError, TypeError, ValueError, NameError, OSError) as error:
            raise self._refusal(error) from None

    def start(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Start a job, and return submitit's handle of it; UserError if the cluster refuses it."""
        try:
            return self._executor.submit(work, *arguments)
        except (RuntimeError, TypeError, ValueError, NameError, OSError) as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> UserError:
        return UserError(f"config {self.key}: {one_line(error)[:_LONGEST]}")


def log_end(job: Any) -> str:
    """The end of what a job has written, in one line."""
    for text in (job.stderr(), job.stdout()):
        if text and text.strip():
            return one_line(text)[-_LONGEST:]
    return f"job {job.job_id}, state {job.state}"
