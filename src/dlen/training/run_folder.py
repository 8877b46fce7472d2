"""Run folders: how they are named, created, resumed and read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dlen.errors import UserError
from dlen.files import check_links, check_plain_name, locked, read_figures, read_mapping, write_json, write_text
from dlen.overrides import leaves
from dlen.training.configs import plain_values, read_config

if TYPE_CHECKING:  # a folder is found missing before torch and Lightning, which take seconds, are imported
    from dlen.data.store import Store
    from dlen.training.measures import Figures

BEST = "checkpoints/best.ckpt"
_MOST_TRIES = 1000  # to find a free folder name
RUN_DIR = "DLEN_RUN_DIR"  # environment variable with the run folder, for the processes of one run
_LASTING = (  # settings that a resumed run cannot change
    *("model", "balancing", "optimizer", "id_dropout", "days"),  # groups
    *("loader.batch_size", "monitor", "reset_embeddings", "seed"),
)
_TRAINING_ONLY = ("callbacks", "scheduler")  # groups that evaluation and prediction do not build
_LASTING_OR_NONE = ("scheduler", "callbacks.ema")  # settings that a resumed run cannot add either
DIAGNOSTICS = "diagnostics_{}.json"  # by split: curves, hidden state, gates
SCORES = "scores_test.npy"  # (rows, targets) log-odds of the test split, in stored order


def read_identity(folder: Path) -> dict[str, str]:
    """The data that a run was trained on: their ``fingerprint``, and the path of their ``store``.

    Raises:
        UserError: the run's schema.json does not contain them.
    """
    path = folder / "schema.json"
    content = read_mapping(path)
    identity = {key: content.get(key) for key in ("fingerprint", "store")}
    for key, value in identity.items():
        if not isinstance(value, str) or "\0" in value:
            raise UserError(f"{path}: {key} is {value!r}, not text")
    return {key: str(value) for key, value in identity.items()}


def load_run_config(folder: Path, trust: Sequence[str] = (), *, to_train: bool = True) -> DictConfig:
    """Read the resolved config of a run folder.

    Args:
        trust: packages, besides dlen, whose classes the config may name.
        to_train: read all of it; otherwise without what only training needs, so that a run can be used without it.

    Raises:
        UserError: the folder is not a run, or its config names other code.
    """
    check_run(folder)
    return read_config(folder / "config.yaml", trust, () if to_train else _TRAINING_ONLY)


def check_run(folder: Path) -> None:
    """Raise UserError unless a folder is a run's."""
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: not a run folder (no config.yaml); set run=DIR")


def base_metrics(run: str) -> dict[str, Any]:
    """Read the metrics of a base run; UserError if there are none."""
    path = Path(run) / "metrics.json"
    try:
        content = read_figures(path)
        if not {"model", "seed", "data_fingerprint"} <= content.keys():
            raise UserError("not the metrics of a run")
    except UserError as error:
        raise UserError(f"config base_run: {path} cannot be read ({error})") from None
    return content


def read_base(run: str | None, store: Store) -> dict[str, Any] | None:
    """Read the metrics of the base run for gains; UserError unless it was tested on the same rows."""
    if run is None:
        return None
    content = base_metrics(run)
    identity = {"data_test": store.labels_identity("test"), "data_fingerprint": store.fingerprint}
    key = "data_test" if "data_test" in content else "data_fingerprint"
    if content[key] != identity[key]:
        raise UserError(
            f"config base_run: {run} was tested on other rows ({content[key]}) than this run ({identity[key]}), so "
            "their metrics cannot be compared; train the base run on the same data"
        )
    if content.get("test/rows", len(store.split("test"))) != len(store.split("test")):
        raise UserError(f"config base_run: {run} was tested on only {content['test/rows']} rows of the test split")
    return content


def write_start(config: DictConfig, folder: Path, store: Store) -> None:
    """Write config and schema to the run folder, after all checks of config, data and trainer.

    :func:`only_training` has created the folder.
    """
    text = OmegaConf.to_yaml(config, resolve=True)
    config_file, schema_file = start_of(folder)
    try:
        if config.ckpt is not None:
            write_text(config_file, text)
        else:
            with config_file.open("x") as file:
                file.write(text)
    except FileExistsError:
        raise UserError(f"config run_dir: another run has just taken {folder}; choose another") from None
    identity = {"fingerprint": store.fingerprint, "store": str(store.folder.absolute())}
    write_json(schema_file, {**identity, **store.schema.to_dict()})


def start_of(folder: Path) -> tuple[Path, Path]:
    """Paths of the first files of a run folder: config and schema."""
    return folder / "config.yaml", folder / "schema.json"


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder. A second one would overwrite the checkpoints that metrics.json is of.

    Raises:
        UserError: another process is training in the folder, or it cannot be written.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(_lock_of(folder), "training this run", wait=False))
        except BlockingIOError:
            raise UserError(
                f"config run_dir: another process is training in {folder}; wait for its end, or end it first"
            ) from None
        except OSError as error:
            raise _unwritable(folder, error) from None
        yield


def _lock_of(folder: Path) -> Path:
    return folder / "checkpoints" / ".lock"


def unwrite_start(folder: Path) -> None:
    """Undo :func:`write_start`, unless the folder contains other files."""
    written = (*start_of(folder), _lock_of(folder))
    if {p for p in folder.rglob("*") if not p.is_dir()} <= set(written):
        for path in written:
            path.unlink(missing_ok=True)
        _remove_empty([folder / "checkpoints", folder / "logs", folder])


@contextmanager
def run_folder(config: DictConfig) -> Iterator[Path]:
    """Provide the run's folder. A generated folder is created at once, and removed if the run is refused."""
    if RUN_DIR in os.environ:  # set by the parent process under Lightning
        yield Path(os.environ[RUN_DIR])
    elif config.run_dir is not None:
        folder = Path(config.run_dir)
        if (folder / "config.yaml").exists() and config.ckpt is None and rank() == 0:
            raise UserError(
                f"config run_dir: {folder} already holds a run; choose another, or resume it with ckpt=last"
            )
        check_links(folder)
        yield folder
    elif rank() != 0 or one_of_many():
        raise UserError("config run_dir: must be set when torchrun or Slurm starts the processes")
    else:
        folder, created = _new_folder(config)
        try:
            yield folder
        finally:
            _remove_empty(created)


def one_of_many() -> bool:
    """Whether torchrun or Slurm started several processes, each of which would generate its own name."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment  # here: it takes seconds
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    torchrun, slurm = TorchElasticEnvironment.detect(), SLURMEnvironment.detect()
    counts = [os.environ.get("WORLD_SIZE", 1)] * torchrun + [os.environ.get("SLURM_NTASKS", 1)] * slurm
    return any(int(count) > 1 for count in counts)


def _new_folder(config: DictConfig) -> tuple[Path, list[Path]]:
    """Create a folder that no other run shares; also return all folders created for it, innermost first."""
    name = f"{config.data_name}/{config.model_name}/{datetime.now():%Y%m%d-%H%M%S}-seed{config.seed}"
    for key in ("data_name", "model_name"):
        check_plain_name(config[key], key)
    created: list[Path] = []
    for number in count(1):
        folder = Path(config.runs_dir) / (name if number == 1 else f"{name}-{number}")
        created = [p for p in folder.parents if not p.exists()] or created
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            break
        except OSError as error:
            # the name is taken, or a concurrent run was refused and removed its folders
            if not isinstance(error, FileExistsError | FileNotFoundError) or number > _MOST_TRIES:
                raise _unwritable(folder, error) from None
    return folder, [folder, *created]


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that exist and are empty, in the given order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({error.strerror}); set runs_dir or run_dir")


def rank() -> int:
    """Rank of this process, as set by its launcher."""
    from lightning.pytorch.utilities import rank_zero_only  # here: it takes seconds

    return getattr(rank_zero_only, "rank", None) or 0


def resume_from(config: DictConfig) -> Path | None:
    """The checkpoint to resume from; None to start from scratch.

    Raises:
        UserError: the checkpoint does not exist.
    """
    if config.ckpt is None:
        return None
    path = Path(config.run_dir) / "checkpoints" / "last.ckpt" if config.ckpt == "last" else Path(config.ckpt)
    if not path.exists():
        raise UserError(f"config ckpt: {path} does not exist, so there is nothing to resume")
    return path


def check_same_run(config: DictConfig) -> None:
    """Raise UserError if a resumed run changes a setting that must stay, such as model or optimiser."""
    if config.ckpt != "last":
        return
    before, today = plain_values(load_run_config(Path(config.run_dir), config.trust)), plain_values(config)
    for key in (*_LASTING, *_LASTING_OR_NONE):
        was, now = _settings_below(before, key), _settings_below(today, key)
        changed = [k for k in {**was, **now} if was.get(k) != now.get(k)]
        if changed and (was or key in _LASTING_OR_NONE):
            shown = ", ".join(f"{k} was {was.get(k)} and is {now.get(k)} now" for k in changed)
            raise UserError(f"cannot resume: {shown}; keep the settings of the run")


def _settings_below(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A setting, or all settings of a group, by key; empty if the run does not have it."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        return {f"{key}.{k}": v for k, v in leaves(node)}
    return {} if node is None else {key: node}


def check_same_data(resume: Path | None, store: Store) -> None:
    """Raise UserError if a resumed run changes its data, even if it resumes from another folder's checkpoint."""
    folder = None if resume is None else resume.parent.parent
    if folder is None or not (folder / "schema.json").exists():
        return
    was = read_identity(folder)["fingerprint"]
    if was != store.fingerprint:
        raise UserError(
            f"cannot resume: {folder} was trained on data {was}, and the data are {store.fingerprint} now; restore "
            "the original files and data settings, or start a new run"
        )


def flatten(figures: Figures, split: str) -> dict[str, Any]:
    """Flatten to keys of ``metrics.json``; an undefined metric is null, with its reason under ``undefined/``."""
    flat: dict[str, Any] = {f"{split}/{key}": value for key, value in figures.values.items()}
    for key, reason in figures.undefined.items():
        flat[f"{split}/{key}"] = None
        flat[f"undefined/{split}/{key}"] = reason
    return flat
