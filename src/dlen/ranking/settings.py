"""Settings of feed sessions and of off-policy estimates, read before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf

from dlen.errors import UserError
from dlen.files import check_writable
from dlen.settings import Count, FromZero, Group
from dlen.training.run_folder import check_run
from dlen.valid import Range, check_group


@dataclass(kw_only=True)
class SessionSettings:
    """Simulated users and their sessions.

    Attributes:
        users: number of users who have sessions.
        sessions: sessions per user.
        hour: hour of the day.
        seed: seed of users, candidates and moods.
        behaviour: settings of :class:`~dlen.ranking.sessions.Behaviour`; None for its defaults.
    """

    users: Annotated[int, Range(2)]
    sessions: Count
    hour: Annotated[int, Range(0, 23)]
    seed: FromZero
    behaviour: Group | None = None


@dataclass(frozen=True, slots=True)
class OffPolicySettings:
    """Settings of ``off_policy``.

    Attributes:
        log: file of rows whose items were shown at random.
        candidates: number of items from which the ranking shows the best.
        draws: further items drawn for each row.
        seed: seed of the draws.
    """

    log: Path
    candidates: Annotated[int, Range(2)]
    draws: Count
    seed: FromZero


def read_off_policy(config: DictConfig) -> OffPolicySettings:
    """Read the group ``off_policy`` of ``evaluate.py``, and check that there is a run.

    Raises:
        UserError: a setting is wrong, or the folder is not a run.
    """
    check_group(config.off_policy, OffPolicySettings, "off_policy")
    values: Any = OmegaConf.to_container(config.off_policy, resolve=True)
    draws, least = values["draws"], values["candidates"] - 1
    if draws < least:
        raise UserError(f"config off_policy.draws: must be at least {least}, one less than candidates, got {draws}")
    values["log"] = Path(values["log"])
    if not values["log"].is_file():
        raise UserError(f"config off_policy.log: {values['log']}: no such file")
    folder = Path(config.run)
    check_writable(folder)
    check_run(folder)
    return OffPolicySettings(**values)
