"""Every config key with its default and what it is, from the YAML files' comments and the classes' docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from dlen.benchmarking.settings import BenchmarkSettings
from dlen.commands.prepare import PrepareSettings
from dlen.commands.report import ReportSettings
from dlen.comparing.settings import CompareSettings
from dlen.serving.settings import ExportSettings, PredictSettings
from dlen.settings import Settings
from dlen.sweeping.settings import SweepSettings
from dlen.training.settings import EvaluateSettings, TrainSettings
from dlen.valid import described

# Heading and files, in the order of the page. Packages other than the file's group are said in its first line.
COMMANDS = (
    "train",
    "base",
    "prepare",
    "evaluate",
    "predict",
    "export",
    "compare",
    "benchmark",
    "progressive",
    "sweep",
    "report",
)
GROUPS = (
    "model",
    "model/backbone",
    "model/embedding",
    "model/sequence",
    "model/interaction",
    "model/head",
    "data",
    "optimizer",
    "scheduler",
    "trainer",
    "callbacks",
    "balancing",
    "logger",
    "debug",
    "experiment",
    "sweep",
    "fusion",
)
DECLARED: dict[str, type[Settings]] = {  # by file
    "train": TrainSettings,
    "base": Settings,
    "prepare": PrepareSettings,
    "evaluate": EvaluateSettings,
    "predict": PredictSettings,
    "export": ExportSettings,
    "compare": CompareSettings,
    "benchmark": BenchmarkSettings,
    "progressive": TrainSettings,
    "sweep": SweepSettings,
    "report": ReportSettings,
}
_HIDDEN = ("defaults", "hydra", "_target_", "_partial_")
_WHOLE = ("models", "grid", "paper", "space")  # mappings whose keys are names that a user chooses


@dataclass(frozen=True, slots=True)
class Key:
    """One setting.

    Attributes:
        name: dotted, as on the command line.
        default: as written.
        about: what it is; empty where nothing says so.
        valid: its valid values; empty where its class checks them.
    """

    name: str
    default: str
    about: str
    valid: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One file.

    Attributes:
        name: such as ``model=dlen``, or that of a command.
        about: the comment at its top.
        target: the class or function that it makes; empty if none.
        keys: of the file.
    """

    name: str
    about: str
    target: str
    keys: list[Key]


def read_choice(path: Path, group: str) -> Choice:
    """Read one file of a group; ``""`` for a command."""
    text = path.read_text()
    package = re.match(r"# @package (\S+)", text)
    prefix = (
        {"_global_": ""}.get(package[1], f"{package[1]}.")
        if package
        else f"{group.replace('/', '.')}."
        if group
        else ""
    )
    head = re.match(r"(?:#.*\n)*", text)
    lines = [line.lstrip("# ") for line in (head[0] if head else "").splitlines() if not line.startswith("# @package")]
    root = yaml.compose(text)
    keys = list(_keys(root, text.splitlines(), prefix, {})) if isinstance(root, yaml.MappingNode) else []
    target = re.search(r"^ *_target_: (\S+)", text, re.MULTILINE)
    return Choice(f"{group}={path.stem}" if group else path.stem, " ".join(lines), target[1] if target else "", keys)


def _keys(node: yaml.MappingNode, lines: list[str], prefix: str, documented: dict[str, str]) -> Iterator[Key]:
    """The settings of a mapping; its class says what the comments do not."""
    own = {key.value: value.value for key, value in node.value if key.value == "_target_"}
    documented = _arguments(own["_target_"]) if own else documented
    for key, value in node.value:
        name = str(key.value)
        if name in _HIDDEN or name.startswith("override "):
            continue
        block = not isinstance(value, yaml.ScalarNode) and not value.flow_style and bool(value.value)
        if block and isinstance(value, yaml.MappingNode) and not (name in _WHOLE and prefix):
            yield from _keys(value, lines, f"{prefix}{name}.", {})
            continue
        end = key.end_mark if block else value.end_mark
        rest = lines[end.line][end.column :].removeprefix(":") if end.line < len(lines) else ""
        comment = re.match(r"\s*#\s*(.+)", rest)
        default = "..." if block else lines[value.start_mark.line][value.start_mark.column : value.end_mark.column]
        yield Key(f"{prefix}{name}", default, comment[1] if comment else documented.get(name, ""))


def _arguments(target: str) -> dict[str, str]:
    """What a class's or function's docstring says of its arguments."""
    module, _, name = target.rpartition(".")
    text = inspect.getdoc(getattr(import_module(module), name)) or ""
    block = re.search(r"^Args:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    last = ""
    for line in (block[1] if block else "").splitlines():
        start = re.match(r"    (\w+)(?: \(.*?\))?: (.*)", line)
        if start:
            last = start[1]
            found[last] = start[2]
        elif last and line.strip():
            found[last] += " " + line.strip()
    return found


def choices(conf: Path) -> dict[str, list[Choice]]:
    """All files by their heading: commands, then groups."""
    found = {"Commands": [_checked(read_choice(conf / f"{name}.yaml", ""), DECLARED[name]) for name in COMMANDS]}
    for group in GROUPS:
        files = [read_choice(path, group) for path in sorted((conf / group).glob("*.yaml"))]
        found[f"{group}=..."] = [_checked(choice, SweepSettings) for choice in files]
    known = {key.name: key.about for files in found.values() for choice in files for key in choice.keys if key.about}
    return {heading: [_filled(choice, known) for choice in files] for heading, files in found.items()}


def _checked(choice: Choice, settings: type[Settings]) -> Choice:
    """The choice with the valid values that a command declares."""
    valid = dict(_valid(settings, ""))
    keys = [replace(key, valid=valid.get(key.name, "")) for key in choice.keys]
    return replace(choice, keys=keys)


def _valid(kind: type[Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Dotted keys of a dataclass with their valid values in words."""
    for field, hint in get_type_hints(kind, include_extras=True).items():
        name = f"{prefix}{field.rstrip('_')}"
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _valid(hint, f"{name}.")
        elif hint is not Any:
            yield name, described(hint)


def _filled(choice: Choice, known: dict[str, str]) -> Choice:
    """A choice that sets a key of another one need not say again what it is."""
    return replace(choice, keys=[replace(key, about=key.about or known.get(key.name, "")) for key in choice.keys])


def page(conf: Path) -> str:
    """The reference as Markdown."""
    parts = [
        "# Every config key",
        "Made from `conf/` and `sweeps/`. A key is set as it stands here: `python train.py model.head.alpha=0.3`.",
        "A group is exchanged by its name: `python train.py model=mmoe data=aliccp`.",
        "`python train.py --help` shows the whole config.",
    ]
    for heading, files in choices(conf).items():
        parts.append(f"## {heading if heading == 'Commands' else f'`{heading}`'}")
        for choice in files:
            title = f"`{choice.name}.py`" if heading == "Commands" and choice.name != "base" else f"`{choice.name}`"
            title = "All commands" if choice.name == "base" else title
            parts.append(f"### {title}\n\n{_plain(choice.about)}")
            if choice.target:
                parts.append(f"Makes `{choice.target}`.")
            if choice.keys:
                parts.append(_table(choice.keys))
    return "\n\n".join(parts) + "\n"


def _table(keys: list[Key]) -> str:
    """Keys as a table, with a column of valid values where some are declared."""
    columns = [("key", [f"`{key.name}`" for key in keys]), ("default", [f"`{_cell(key.default)}`" for key in keys])]
    if any(key.valid for key in keys):
        columns.append(("valid values", [_cell(key.valid) for key in keys]))
    columns.append(("", [_cell(_plain(key.about)) for key in keys]))
    rows = [[name for name, _ in columns], ["---"] * len(columns), *zip(*(cells for _, cells in columns), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plain(text: str) -> str:
    """Docstrings' markup as Markdown's."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return text.replace("<", "&lt;")


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or " "
