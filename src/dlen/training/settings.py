"""Settings of ``train.py`` and ``evaluate.py``, whose keys conf/train.yaml and conf/evaluate.yaml describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from dlen.settings import Count, FromZero, Group, OpenSettings, Packages, Settings, Share, Switch
from dlen.valid import Matching, Range

DayLabel = int | Annotated[str, Matching(".*", "the label of a day, such as 2026-11-24")] | None
Steps = Annotated[int, Range(-1)] | None  # null or -1 for no limit


@dataclass
class DaySettings:
    """The group ``days``."""

    from_: DayLabel
    to: DayLabel
    validation: Annotated[float, Range(0, 1, below=True)]
    test: DayLabel


@dataclass
class LoaderSettings:
    """The group ``loader``."""

    batch_size: Count
    eval_batch_size: Count


@dataclass
class IdDropoutSettings:
    """The group ``id_dropout``."""

    k: Annotated[float, Range(0)]
    most: Annotated[float, Range(0, 1, below=True)]
    fields: dict[str, Annotated[float, Range(0)]] | None


@dataclass
class MetricsSettings:
    """The group ``metrics``."""

    auc: Literal["auto", "exact", "histogram"]
    by_user: Switch
    conflict_every: FromZero | Literal["auto"]
    scores: bool
    own: Group | None


@dataclass
class TrainerSettings:
    """The group ``trainer``, as far as its values are used before Lightning sees them, or explained badly there."""

    num_nodes: Count
    max_epochs: Steps
    max_steps: Steps
    accumulate_grad_batches: Count
    limit_train_batches: Share = 1.0
    limit_val_batches: Share = 1.0
    limit_test_batches: Share = 1.0
    val_check_interval: Share = 1.0


@dataclass(kw_only=True)
class TrainSettings(Settings):
    """Keys of ``conf/train.yaml``. Groups that are instantiated are checked by their classes."""

    data_name: str
    model_name: str
    seed: FromZero
    ckpt: Path | None
    rerun: Path | None
    trust: Packages
    run_dir: Path | None
    callbacks: Group | None
    logger: Group | None
    runs_dir: Path
    init_from: Path | None
    days: DaySettings
    base_run: Path | None
    sharding: Literal["rows", "tables"] | None
    monitor: str
    patience: FromZero
    loader: LoaderSettings
    embedding_lr: dict[str, Annotated[float, Range(0)]]
    id_dropout: IdDropoutSettings
    reset_embeddings: Switch
    cuda_graph: Switch
    compile: bool
    metrics: MetricsSettings
    model: Group
    balancing: Group
    optimizer: Group
    trainer: TrainerSettings
    data: Group
    scheduler: Group | None = None
    experiment: Any = None


@dataclass
class RunSettings:
    """Keys that the config of a run has, whichever version trained it."""

    data_dir: Path
    data_name: str
    model_name: str
    seed: FromZero
    loader: LoaderSettings
    base_run: Path | None


@dataclass
class EvaluateSettings(OpenSettings):
    """Keys of ``conf/evaluate.yaml``."""

    split: Literal["train", "validation", "test"]
    trainer: Group
    off_policy: Group
