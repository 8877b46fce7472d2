"""The text of ``--help``: a command's config with its comments, and the choices of each group."""

from __future__ import annotations

from pathlib import Path

from dlen.config_keys import choices, groups_of, includes

_FLAGS = """\
Flags
  --help               print this text
  --version            print the version
  --cfg job            print the composed config instead of running; with --resolve, its values
  --config-dir DIR     also look for configs in DIR, such as DIR/model/mine.yaml for model=mine
  -m, --multirun       run once for each combination of comma-separated values: seed=0,1,2 model=mmoe,ple
  --hydra-help         print Hydra's other flags
"""


def command_help(conf: Path, name: str) -> str:
    """The help of a command."""
    head, keys = _comment_and_keys((conf / f"{name}.yaml").read_text())
    for included in includes(conf, name):
        keys += _comment_and_keys((conf / f"{included}.yaml").read_text())[1]
    groups = [_group(conf, group, choice) for group, choice in groups_of(conf, name).items()]
    title = "Groups, chosen with GROUP=CHOICE (* marks the default); their settings are GROUP.KEY=VALUE"
    shown = f"\n{title}\n{''.join(groups)}" if groups else ""
    return f"{head}\n{shown}\nKeys, set with KEY=VALUE\n{keys}\n{_FLAGS}"


def _comment_and_keys(text: str) -> tuple[str, str]:
    """The leading comment of a config, and its keys with their comments, without Hydra's parts."""
    lines = text.splitlines()
    head = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    keys, kept = [], False
    for line in lines:
        if line and not line[0].isspace() and not line.startswith("#"):
            kept = not line.startswith(("defaults:", "hydra:"))
        if kept and line.strip() and not line.startswith("#"):
            keys.append(f"  {line}\n")
    return "\n".join(head), "".join(keys)


def _group(conf: Path, group: str, choice: str | None) -> str:
    names = choices(conf, group)
    marked = [f"{name}*" if name == choice else name for name in names]
    return f"  {group}: {', '.join(marked)}\n" if names else ""
