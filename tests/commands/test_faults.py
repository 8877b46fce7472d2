"""The promises of docs/reliability.md for kills and for full, read-only, small or damaged disks: one line, no loss."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, tzinfo
from itertools import count
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from dlen.data.prepare import prepare
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.store import Store
from dlen.errors import UserError
from dlen.training import run_folder
from tests.conftest import ROOT, Command, run_here, run_program

FEED = ["data.rows=20000", "data.users=200", "data.items=100"]
SMALL = [
    "model=mmoe",
    "model.embedding.dim=4",
    "model.head.tower=[8]",
    "model.backbone.expert=[8]",
    "loader.batch_size=512",
]


def script(text: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in its own process."""
    return run_program([sys.executable, "-c", textwrap.dedent(text), *arguments], folder)


# Kills itself at the n-th step of writing a store: a chunk appended, the tables closed, the folder renamed.
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from dlen.data import writer
    from dlen.data.prepare import prepare
    from dlen.data.sources.aliccp_demo import AliCCPDemo

    seen, wanted = 0, int(sys.argv[1])

    def step(function):
        def wrapped(*args, **kwargs):
            global seen
            seen += 1
            if seen == wanted:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapped

    writer.TableWriter.append = step(writer.TableWriter.append)
    writer.StoreWriter.vocabulary = step(writer.StoreWriter.vocabulary)
    writer.StoreWriter.finish = step(writer.StoreWriter.finish)
    Path.rename = step(Path.rename)
    prepare(AliCCPDemo(raw_dir="raw", rows=3000, min_count=1), Path("data"))
    print(seen)
"""


@pytest.mark.slow
def test_prepare_killed_at_every_stage_is_made_up_for(tmp_path: Path) -> None:
    demo, data = AliCCPDemo(raw_dir=str(tmp_path / "raw"), rows=3000, min_count=1), tmp_path / "data"
    demo.files()  # the first call draws the files
    whole = script(KILLED, tmp_path, "0")
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    assert steps > 10
    data.rename(tmp_path / "clean")
    wanted = prepare(demo, tmp_path / "clean")
    for step in (1, steps // 2, steps - 2, steps - 1, steps):  # scratch, splits, vocabularies, store.json, the name
        killed = script(KILLED, tmp_path, str(step))
        assert killed.returncode == -signal.SIGKILL
        assert [p for p in data.rglob("store.json") if not p.parent.name.startswith(".")] == []
    found = prepare(demo, data)
    same(found, wanted)
    assert [p.name for p in found.folder.parent.iterdir() if p.is_dir()] == [found.folder.name]


def same(found: Store, wanted: Store) -> None:
    """Whether every array and vocabulary of two stores has the same bytes."""
    files = sorted(p.relative_to(wanted.folder) for p in wanted.folder.rglob("*.*") if p.name != "store.json")
    assert files == sorted(p.relative_to(found.folder) for p in found.folder.rglob("*.*") if p.name != "store.json")
    for name in files:
        assert (found.folder / name).read_bytes() == (wanted.folder / name).read_bytes()


def filled(arguments: list[str], folder: Path, limit: int) -> subprocess.CompletedProcess[str]:
    """Run a command that cannot write a file above the limit in bytes, as on a full disk."""
    code = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    return run_program([sys.executable, "-c", code, str(ROOT / arguments[0]), *arguments[1:]], folder)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    ran = filled(["prepare.py", "data=feed", *FEED], tmp_path, 100_000)
    assert ran.returncode == 2, ran.stderr
    assert "no space left on the disk" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert [p.name for p in (tmp_path / "data" / "feed").iterdir()] == [".lock"]
    assert run_here("prepare.py", ["data=feed", *FEED], tmp_path).returncode == 0
    ran = filled(["train.py", *SMALL, *FEED, "run_dir=run", "trainer.max_epochs=1"], tmp_path, 30_000)
    assert ran.returncode == 2, ran.stderr
    assert "no space left on the disk" in ran.stderr.splitlines()[-1]
    assert not [p for p in (tmp_path / "run").rglob("*") if "ckpt" in p.name or p.name == "metrics.json"]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "expected"), [("size=300k", "no space left on the disk"), ("ro", "set data_dir")])
def test_a_small_or_read_only_file_system(options: str, expected: str, tmp_path: Path) -> None:
    """Uses a real file system in a namespace where this user may mount one."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a file system in a namespace")
    mount = f"mkdir -p data && mount -t tmpfs -o {options} none data"
    asked = f"{sys.executable} {ROOT / 'prepare.py'} data=feed {' '.join(FEED)}"
    within = f"{mount} && {{ {asked}; code=$?; ls -A data/feed >&3; exit $code; }} 3>left"
    ran = run_program(["unshare", "-Urm", "sh", "-c", within], tmp_path)
    assert ran.returncode == 2, ran.stderr
    lines = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in ran.stderr
    assert (tmp_path / "left").read_text().split() in ([], [".lock"])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.embedding.dim=100000000000", "the embedding table of 741 ids takes 296,400.00 GB"),
        ("model.backbone.expert=[100000000000]", "out of memory (12800000000000 bytes requested at once)"),
    ],
)
def test_too_little_memory_is_explained(refused: Command, tmp_path: Path, setting: str, said: str) -> None:
    ran = refused("train.py", *SMALL, *FEED, setting, "run_dir=run")
    assert ran.returncode == 2
    assert said in ran.stderr.splitlines()[-1]
    assert "model.embedding.dim" in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_damaged_vocabulary_and_checkpoint_are_named(tmp_path: Path) -> None:
    ran = run_here("train.py", [*SMALL, *FEED, "run_dir=run", "trainer.max_epochs=1"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    (vocabulary,) = (tmp_path / "data" / "feed").rglob("vocabulary/item.parquet")
    for path, asked in (
        (tmp_path / "run" / "checkpoints" / "best.ckpt", ["evaluate.py", "run=run"]),
        (tmp_path / "run" / "checkpoints" / "last.ckpt", ["train.py", "run_dir=run", "ckpt=last"]),
        (vocabulary, ["evaluate.py", "run=run"]),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
        ran = run_here(asked[0], asked[1:], tmp_path)
        assert ran.returncode == 2, ran.stdout
        (line,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
        assert path.name in line
        assert "damaged" in line
        path.write_bytes(whole)
    assert run_here("evaluate.py", ["run=run"], tmp_path).returncode == 0


class Stopped(datetime):
    """A clock that always shows the same second."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Stopped:
        return cls(2026, 11, 25, 12, 0, 0, tzinfo=tz)


@pytest.mark.slow
def test_a_clock_that_goes_back_changes_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of the same second have two folders; durations stay durations, and all else is equal to the bit."""
    settings = [*FEED, *SMALL, "trainer.accelerator=cpu", "trainer.max_epochs=1", "data.rows=3000"]
    assert run_here("train.py", settings, tmp_path).returncode == 0
    hours = count(step=-3600)
    started = time.time()
    monkeypatch.setattr(time, "time", lambda: started + next(hours))
    monkeypatch.setattr(run_folder, "datetime", Stopped)
    for _ in range(2):
        ran = run_here("train.py", settings, tmp_path)
        assert ran.returncode == 0, ran.stderr
    folders = sorted((tmp_path / "runs" / "feed" / "mmoe").iterdir())
    assert [f.name for f in folders if "120000" in f.name] == ["20261125-120000-seed0", "20261125-120000-seed0-2"]
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    timed = [k for k in figures[0] if k.startswith("fit/") and isinstance(figures[0][k], float)]
    assert {"fit/seconds", "fit/samples_per_second"} <= set(timed)
    for found in figures:
        assert all(found[key] is None or found[key] >= 0 for key in timed)
    kept = [{k: v for k, v in f.items() if not k.startswith("fit/") or k == "fit/steps"} for f in figures]
    assert kept[0] == kept[1] == kept[2]


def naming(runs_dir: Path) -> DictConfig:
    """Settings that determine the name of a run's folder."""
    named = {"data_name": "feed", "model_name": "mmoe", "seed": 0}
    return OmegaConf.create({"runs_dir": str(runs_dir), "run_dir": None, **named})


def test_a_name_is_taken_at_once_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a run refused after it has its folder; a parallel run of the same second has another folder."""
    monkeypatch.setattr(run_folder, "datetime", Stopped)
    config = naming(tmp_path / "runs")
    with run_folder.run_folder(config) as first:
        (first / "config.yaml").write_text("a run\n")
        with run_folder.run_folder(config) as second:
            assert (first.name, second.name) == ("20261125-120000-seed0", "20261125-120000-seed0-2")
            assert second.is_dir()
    assert first.is_dir()
    assert not second.exists()
    refused = run_here("train.py", [*FEED, "balancing=surgery", "model=dlen", "runs_dir=others"], tmp_path)
    assert refused.returncode == 2
    assert not (tmp_path / "others").exists()


def test_only_folders_that_were_made_are_taken_back(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for runs_dir in ("mine", "a/b/c"):
        ran = run_here("train.py", [*FEED, "balancing=surgery", "model=dlen", f"runs_dir={runs_dir}"], tmp_path)
        assert ran.returncode == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "mine"]


def test_a_runs_dir_that_leads_nowhere(tmp_path: Path) -> None:
    """A symbolic link to a missing disk."""
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted" / "disk")
    ran = run_here("train.py", [*FEED, *SMALL], tmp_path)
    assert ran.returncode == 2
    assert "cannot be written" in ran.stderr.splitlines()[-1]
    assert "set runs_dir or run_dir" in ran.stderr.splitlines()[-1]


def test_runs_that_begin_and_are_refused_at_once(tmp_path: Path) -> None:
    """Four at a time in one runs_dir: each has its own folder, and nothing is left."""
    config = naming(tmp_path / "a" / "runs")
    held: set[Path] = set()

    def begin(_: int) -> None:
        with suppress(UserError), run_folder.run_folder(config) as folder:
            assert folder.is_dir()
            assert folder not in held
            held.add(folder)
            held.remove(folder)
            raise UserError("refused")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(begin, range(400)))
    assert list(tmp_path.rglob("*-seed0*")) == []


@pytest.mark.slow
def test_a_checkpoint_of_another_optimizer_leaves_nothing(tmp_path: Path) -> None:
    settings = [*FEED, *SMALL, "trainer.accelerator=cpu", "trainer.max_epochs=1", "data.rows=3000"]
    assert run_here("train.py", [*settings, "run_dir=adam"], tmp_path).returncode == 0
    begin = [*settings, "run_dir=other", "ckpt=adam/checkpoints/last.ckpt", "trainer.max_epochs=2"]
    ran = run_here("train.py", [*begin, "optimizer=adagrad"], tmp_path)
    assert ran.returncode == 2
    assert "the checkpoint's optimiser keeps step, first, second of a table" in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "other").exists()
