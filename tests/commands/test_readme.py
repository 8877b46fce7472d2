"""The documentation's commands as written, run in order with settings appended to make them small."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from dlen.data.sources.aliccp_demo import AliCCPDemo
from tests.conftest import ROOT, run_command, run_here

PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("index", "commands", "reports", "sweeps", "multi_gpu", "datasets", "models")),
]
DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
]
TEXT = {name: (ROOT / name).read_text() for name in PAGES}
MODEL = ["model.embedding.dim=4", "model.backbone.expert=[16,8]"]
RUN = "first"
TASKS = ("click", "like", "share", "follow", "comment")


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], re.DOTALL)


def commands() -> list[str]:
    """Commands of all pages, without duplicates."""
    lines = [line for page in PAGES for block in blocks("bash", page) for line in block.splitlines()]
    return [line for line in dict.fromkeys(lines) if line.startswith("python ")]


def smaller(arguments: list[str]) -> list[str]:
    """Settings that make a command fast without changing what it shows."""
    script, rest = arguments[0], arguments[1:]
    extra = [f"data.rows={20000 if 'aliccp_demo' in ' '.join(rest) else 8000}"]
    if any(a in ("data=aliccp", "data=table") for a in rest) or script in (
        "evaluate.py",
        "report.py",
        "predict.py",
        "export.py",
    ):
        extra = []
    if script == "compare.py":
        extra += ["seeds=1", "models=[MMoE,DLEN]"]
    if script == "sweep.py":
        extra += ["sweep.trials=1", "sweep.confirm=0", "sweep.workers=1"]
    if script == "benchmark.py":
        extra += ["seeds=1", "models=[single task,MMoE]", "benchmark.trials=1"]
    if script in ("train.py", "compare.py", "sweep.py", "benchmark.py"):
        extra += [*MODEL, "trainer.limit_train_batches=8"]
        extra += [] if "trainer.max_epochs" in " ".join(rest) else ["trainer.max_epochs=1"]
    return extra


def test_the_documentation_shows_every_command() -> None:
    scripts = {line.split()[1] for line in commands()}
    scripts |= set(re.findall(r"^python (\S+)", (ROOT / "docs/days.md").read_text(), re.MULTILINE))
    assert scripts == {p.name for p in ROOT.glob("*.py")} - {"setup.py"}
    assert len(commands()) >= 10


@pytest.mark.slow
def test_documented_commands(tmp_path: Path) -> None:
    AliCCPDemo(str(tmp_path / "raw"), rows=20_000).files()
    (tmp_path / "my_log.yaml").write_text(blocks("yaml", "docs/datasets.md")[0])
    write_log(tmp_path / "log.tsv")
    fields = ("item", "category", "author", "hour", "user", "age", "gender", "city")
    pl.DataFrame({name: range(20) for name in fields}).write_parquet(tmp_path / "new.parquet")
    shown = {**{name: range(20) for name in fields}, **{task: [0, 1] * 10 for task in TASKS}}
    pl.DataFrame(shown).write_csv(tmp_path / "log_random_4_22_to_5_08_pure.csv")
    first = run_here(
        "train.py", ["data.rows=8000", *MODEL, "trainer.limit_train_batches=8", f"run_dir={RUN}"], tmp_path
    )
    assert first.returncode == 0, first.stderr
    for line in commands():
        arguments = shlex.split(line)[1:]
        small = smaller(arguments)
        place = str(tmp_path / "raw") if "aliccp" in line else RUN
        several = "trainer.devices=2" in arguments  # starts a process
        run = run_command if several else run_here
        ran = run(arguments[0], [a.replace("DIR", place) for a in arguments[1:]] + small, tmp_path)
        assert ran.returncode == 0, f"{line}\n{ran.stderr}"
        assert "Traceback" not in ran.stderr
        if arguments[0] == "sweep.py":
            assert "best: trial 0" in ran.stdout
        elif arguments[0] == "report.py":
            assert "Report: " in ran.stdout
        elif arguments[0] == "export.py":
            assert "Export: " in ran.stdout
        elif arguments[0] == "predict.py":
            assert "20 rows: scores.parquet" in ran.stdout
        elif "off_policy" in line:
            assert "effective rows" in ran.stdout
        elif arguments[0] != "prepare.py":
            assert "AUC" in ran.stdout


@pytest.mark.slow
def test_the_models_page_in_python(tmp_path: Path) -> None:
    (code,) = blocks("python", "docs/models.md")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("torch.Size([256, 5])")


@pytest.mark.slow
def test_a_sweep_of_ones_own(tmp_path: Path) -> None:
    """A custom study from a separate folder of configs."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(blocks("yaml", "docs/sweeps.md")[0])
    small = ["data.rows=8000", *MODEL, "trainer.limit_train_batches=8", "sweep.trials=2", "sweep.confirm=0"]
    ran = run_here("sweep.py", ["--config-dir", str(tmp_path), "sweep=mine", *small], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "best: trial" in ran.stdout


def anchors(page: Path) -> set[str]:
    """Of the headings of a Markdown page, as GitHub and mkdocs make them, and of the objects that the API has."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    objects = re.findall(r"^::: (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings} | {*objects}


def test_every_link_and_anchor_is_there() -> None:
    for page in DOCUMENTS:
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
            if target in ("config.md", "python.md"):  # made by mkdocs, see test_site.py
                continue
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(path), f"{page}: {target}#{anchor}"


def test_paths_in_the_documentation_are_there() -> None:
    """Of source files, tests and configs; a test named as path::name has to be there too."""
    for page in ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]:
        if page == "docs/log.md":  # names files as they were
            continue
        for path in re.findall(
            r"`((?:src|tests|conf|sweeps|bench|examples|docs)/[\w./]+\.\w+)`", (ROOT / page).read_text()
        ):
            made_up = "NAME" in path or "my_model" in path or "two_roads" in path
            assert made_up or (ROOT / path).exists(), f"{page}: {path}"


def prose(text: str) -> list[tuple[int, str]]:
    """Numbered lines outside of tables and code."""
    found, fenced, before = [], False, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        indented = line.startswith("    ") and (not before or before.startswith("    "))
        if not (fence or fenced or indented or line.startswith("|")):
            found.append((number, line))
        before = line
    return found


def test_prose_is_what_is_outside_of_tables_and_code() -> None:
    text = "a\n```\nb\n```\n| c |\n\n    d\n    e\n- f\n    g\n"
    assert [line for _, line in prose(text)] == ["a", "", "- f", "    g"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_of_prose_end_before_column_120(name: str) -> None:
    long = [number for number, line in prose((ROOT / name).read_text()) if len(line) >= 120]
    assert not long, f"{name}: lines {long}"


def write_log(path: Path) -> None:
    """Write a log with the columns of the README's YAML."""
    lines = ["user_id\tvideo_id\ttags\tduration\tprice\ttime_ms\tis_click\tlabel\tis_buy\tplay_time_ms"]
    for i in range(3000):
        click = (i * 7919) % 3 == 0
        buy = click and (i * 31) % 4 == 0
        cells = [i % 40, i % 60, f"sport:0.9|news:0.{i % 9}", i % 100, (i * 13) % 97, 1_650_000_000_000 + i * 60_000]
        lines.append("\t".join(map(str, [*cells, int(click), int((i * 17) % 5 > 0), int(buy), i])))
    path.write_text("\n".join(lines) + "\n")
