"""The shared frame of all commands: compose a config with Hydra, run, and print every expected error as one line."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from dlen import __version__
from dlen.config_keys import check_keys, choices, warn_of_hidden_files
from dlen.errors import UserError
from dlen.files import read_yaml
from dlen.help import command_help
from dlen.overrides import leaves, register_resolvers, user_search_path, written
from dlen.renamed import present_overrides
from dlen.settings import Settings
from dlen.trust import check_config, packages
from dlen.valid import check_group, did_you_mean

_NOT_OF_BEST = ("hydra", "trust", "run_dir", "ckpt", "rerun")
_OPTIONAL = ("logger", "callbacks", "scheduler", "experiment", "debug")  # groups that may have no choice
_WITH_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--cfg", "-c", "--package", "-p")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def conf_folder() -> Path:
    """The folder of the package's configs; in a clone, next to its sources."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def entry(run: Callable[[DictConfig], Any], config_name: str, settings: type[Settings]) -> Callable[..., None]:
    """Make a command's entry point; it takes the folder of the configs, by default the package's own.

    Args:
        run: does the work, once the settings are valid.
        config_name: name of the primary config.
        settings: declares its valid values.
    """

    def main(conf: Path | None = None) -> None:
        command(run, config_name, settings, conf or conf_folder())

    return main


@contextmanager
def importing() -> Iterator[None]:
    """Import torch, Lightning and others without garbage collection, which would take a fifth of their seconds.

    They create half a million objects that stay: collections would look at them again and again, and free none. No
    later collection looks at them either.
    """
    first = "lightning" not in sys.modules  # elsewhere, as in a test, there is other garbage to collect
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            gc.enable()


def command(run: Callable[[DictConfig], Any], config_name: str, settings: type[Settings], conf: Path) -> None:
    """Run a command and exit: code 0 on success, code 2 and one line if the input or the config is invalid."""
    _answer_flags(sys.argv[1:], config_name, conf)
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise, so that errors reach _one_line below

    def guarded(config: DictConfig) -> Any:
        try:
            if HydraConfig.get().job.config_name == config_name:  # not a primary config of the user's
                check_keys(config, conf, config_name)
            check_group(config, settings)
            warn_of_hidden_files(user_search_path(), conf)
            return run(config)
        except UserError as error:
            _fail(str(error))  # here, because Hydra adds its own lines when a job raises
        except Exception as error:
            line = _of_the_machine(error)
            if line is None and isinstance(error, HydraException | OmegaConfBaseException):
                line = _one_line(error)
            if line is None:
                raise
            _fail(line)

    try:
        sys.argv[1:] = present_overrides(_flags_first(_with_best([_without_null(a) for a in sys.argv[1:]])))
    except UserError as error:
        _fail(str(error))
    except HydraException as error:
        _fail(_one_line(error))
    hydrated = hydra.main(version_base="1.3", config_path=str(conf.absolute()), config_name=config_name)(guarded)
    try:
        hydrated()
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_one_line(error))
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        where = f"{place.name}, line {place.line + 1}: " if place else ""
        _fail(f"{where}not valid YAML ({error.problem})")
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # Hydra's error for model=null
            raise
        _fail(f"config: a group such as model or data cannot be null ({error})")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _answer_flags(arguments: Sequence[str], config_name: str, conf: Path) -> None:
    """Print the version or our own help and exit, if asked to."""
    if "--version" in arguments:
        print(f"dlen {__version__}")
    elif "--help" in arguments or "-h" in arguments:
        print(command_help(conf, config_name))
    else:
        return
    raise SystemExit(0)


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Put flags before overrides: Hydra's parser refuses overrides on both sides of a flag."""
    flags: list[str] = []
    overrides: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in _WITH_VALUE:
            flags += [argument, *[value for value in [next(remaining, None)] if value is not None]]
        else:
            (flags if argument.startswith("-") else overrides).append(argument)
    return flags + overrides


def _without_null(argument: str) -> str:
    """Write ``logger=null`` as ``logger=[]``, which is how Hydra says that a group has no choice."""
    return re.sub(rf"^({'|'.join(_OPTIONAL)})=null$", r"\1=[]", argument)


def _with_best(arguments: Sequence[str]) -> list[str]:
    """Expand ``+best=FILE``, the result of a study, to ordinary overrides. All other overrides follow and win.

    Raises:
        UserError: the file is not a best.yaml, or sets more than a study can search.
    """
    overrides: list[str] = []
    others = [a for a in arguments if not a.startswith("+best=")]
    for argument in arguments:
        if argument.startswith("+best="):
            path = Path(argument.removeprefix("+best=").strip("'\""))
            path = path / "best.yaml" if path.is_dir() else path
            try:
                content = read_yaml(path)
                check_config(content, _trusted(others), path)
                overrides += _overrides_of(content)
            except UserError as error:
                raise UserError(f"config +best: {error}") from None
            except (ValueError, LookupError, AttributeError, TypeError):
                raise UserError(f"config +best: {path}: is not a best.yaml of a study that trains models") from None
    return [*overrides, *others]


def _trusted(arguments: Sequence[str]) -> tuple[str, ...]:
    """The value of ``trust`` on the command line."""
    settings = [argument for argument in arguments if argument.lstrip("+").startswith("trust=")]
    return packages(OverridesParser.create().parse_override(settings[-1]).value()) if settings else ()


def _overrides_of(content: dict[str, Any]) -> list[str]:
    """Overrides for the groups and values of a best.yaml; ValueError for other content."""
    choices = content.pop("defaults")
    overrides = []
    for choice in choices:
        if choice != "_self_":
            ((key, value),) = choice.items()
            _check_key(key)
            if not re.fullmatch(r"\w[\w.-]*", str(value)):  # no paths to other files
                raise UserError(f"{key}={value} is not a choice of a group")
            group = key.removeprefix("override ").lstrip("/")
            overrides.append(f"{'' if key.startswith('override ') else '+'}{group}={value}")
    for path, value in leaves(content, "\0"):
        if not all(re.fullmatch(r"[\w-]+", part) for part in path.split("\0")):  # a dot would bypass the checks
            raise UserError(f"{path}: is not the name of a setting; nest mappings instead of joining keys")
        key = path.replace("\0", ".")
        _check_key(key)
        override = f"++{key}={written(value, quote=True)}"
        if OverridesParser.create().parse_override(override).value() != value:
            # Such as a mapping key with a comma.
            raise UserError(f"{key}: cannot be written as an override; use a simpler value")
        overrides.append(override)
    return overrides


def _check_key(key: str) -> None:
    """Raise UserError for keys that no study searches: Hydra's settings, ``trust``, and the choice of the run."""
    name = key.removeprefix("override ").lstrip("/")
    if not re.fullmatch(r"\w+([./-]\w+)*", name) or re.split(r"\W", name)[0] in _NOT_OF_BEST:
        raise UserError(f"{key}: cannot be set in a best.yaml; delete it there and set it on the command line")


def _fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def _of_the_machine(error: BaseException) -> str | None:
    """One line for a full disk, missing permissions or too little memory; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        code, path, text = getattr(cause, "errno", None), getattr(cause, "filename", None), str(cause)
        if code in _NO_SPACE or "No space left on device" in text or "Disk quota exceeded" in text:
            hint = "free some space, or set data_dir or runs_dir to another disk"
            return f"{f'{path}: ' if path else ''}no space left on the disk; {hint}"
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{path or 'a file'}: {os.strerror(code)}; set data_dir or runs_dir to a writable folder"
        if isinstance(cause, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            amount = re.search(r"allocate ([\d.]+ ?\w+)", text)
            requested = f" ({amount[1]} requested at once)" if amount else ""
            return (
                f"out of memory{requested}; lower loader.batch_size, loader.eval_batch_size or model.embedding.dim, or "
                "raise the data's min_count, which makes the embedding table smaller"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _one_line(error: Exception) -> str:
    """Reduce an error of Hydra or OmegaConf to one line, with the closest matching name if there is one."""
    while isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"config override {error.override!r}: {str(error.message).splitlines()[0]}"
    missing = error.missing_cfg_file if isinstance(error, MissingConfigException) and error.options else None
    in_list = re.search(r"Could not (?:load|find) '([\w/]+/[\w.-]+)'", text)  # such as callbacks=[ema,lr_monitor]
    if missing or in_list:
        group, _, wanted = str(missing or (in_list and in_list[1])).rpartition("/")
        options = getattr(error, "options", None) or choices(conf_folder(), group)
        hint = did_you_mean(wanted, options)
        return f"config {group}={wanted}: there is no such choice{hint} (choices: {', '.join(options)})"
    key = getattr(error, "full_key", None)
    if isinstance(error, InterpolationToMissingValueError):  # another key refers to it
        key = text.splitlines()[0].rpartition(" ")[2]
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        return f"config {key}: must be set"
    if key and isinstance(error, ConfigKeyError | ConfigAttributeError):
        known = [str(name) for name in error.parent_node] if isinstance(error.parent_node, DictConfig) else []
        return f"config {key}: there is no such key{did_you_mean(str(key).split('.')[-1], known)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"(full_key|object_type|reference_type)\b", line)]
    text = " ".join(lines)
    return f"config {key}: {text}" if key and key not in text else text
