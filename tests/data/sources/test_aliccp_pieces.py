"""Ali-CCP prepared in pieces: the rows and messages of a single piece, and the same bytes from several processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dlen.data.parallel import Failed, Workers
from dlen.data.prepare import prepare
from dlen.data.sources import aliccp_passes
from dlen.data.sources.aliccp import AliCCP
from dlen.data.sources.aliccp_demo import AliCCPDemo
from dlen.data.sources.aliccp_passes import AliCCPPasses
from dlen.data.store import Store
from tests.data.helpers import refusal, tensors_of, whole
from tests.data.sources.test_table_parallel import bytes_of, check_interruption

BAD = 5  # lines that are left out


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with lines of every kind that is left out, and without a newline at the end."""
    folder = tmp_path_factory.mktemp("demo") / "raw"
    AliCCPDemo(raw_dir=str(folder), rows=1500).files()
    for path in folder.glob("*.csv"):
        lines = path.read_text().split("\n")[:-1]
        if path.stem == "common_features_train":
            lines.insert(5, "broken")
            lines.append(lines[0])
        if path.stem.startswith("sample_skeleton"):
            for number in range(0, len(lines), 7):
                sample, _, _, rest = lines[number].split(",", 3)
                lines[number] = f"{sample},0,1,{rest}"
        if path.stem == "sample_skeleton_train":
            lines[400] += "x"
            lines[900] = lines[900].replace("205\x02", "999\x02")
            *head, _, rest = lines[1000].split(",", 4)
            lines[1000] = ",".join([*head, "nobody", rest])
        path.write_text("\n".join(lines))
    return folder


def made(
    raw: Path, data: Path, piece: int, monkeypatch: pytest.MonkeyPatch, workers: int = 1, **settings: Any
) -> Store:
    monkeypatch.setattr(aliccp_passes, "PIECE", piece)
    settings = {"min_count": 2, "validation": 0.3, "bad_rows": BAD} | settings
    return prepare(AliCCP(str(raw), **settings), data, workers)


@pytest.mark.parametrize("validation_by", ["user", "row"])
def test_pieces_have_the_rows_and_messages_of_the_whole(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], validation_by: str
) -> None:
    stores, said = [], []
    for piece in (1 << 30, 30_000):
        stores.append(made(raw, tmp_path / f"{piece}", piece, monkeypatch, validation_by=validation_by))
        said.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")])
    wanted, store = stores
    assert (len(wanted.shards), len(store.shards)) == (1, 9)
    assert said[0] == said[1]
    assert len(said[0]) == BAD
    for name in ("train", "validation", "test"):
        found, expected = (tensors_of(whole(s.split(name))) for s in (store, wanted))
        assert all(torch.equal(found[part], values) for part, values in expected.items())
        assert store.labels_identity(name) == wanted.labels_identity(name)
    assert store.schema == wanted.schema
    assert torch.equal(store.counts, wanted.counts)
    notes = (s.content["notes"] | {"prepare_seconds": 0} for s in stores)
    assert next(notes) == next(notes)
    refused = [
        refusal(partial(made, raw, tmp_path / f"{piece}", piece, monkeypatch, bad_rows=BAD - 1))
        for piece in (1 << 30, 30_000)
    ]
    assert refused[0] == refused[1]
    assert "line 1001: " in refused[0]


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bytes_of(made(raw, tmp_path / "one", 30_000, monkeypatch))
    in_order = Workers.in_order

    def watched(*arguments: Any) -> Iterator[Any]:
        for result in in_order(*arguments):
            assert not isinstance(result, Failed)  # a piece that fails in a worker would be repeated here
            yield result

    monkeypatch.setattr(Workers, "in_order", watched)
    two = bytes_of(made(raw, tmp_path / "two", 30_000, monkeypatch, 2))
    assert list(one) == list(two)
    for name, content in one.items():
        assert two[name] == content, name


def test_an_interrupted_preparing_goes_on_with_finished_shards(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliccp_passes, "PIECE", 30_000)
    source = AliCCP(str(raw), min_count=2, validation=0.3, bad_rows=BAD)
    check_interruption(source, tmp_path, monkeypatch, AliCCPPasses, "write_shard", finished=4)
