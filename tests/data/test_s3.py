"""Logs in an S3 store: a server of moto, with the credentials and the endpoint where S3's own tools look for them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
import s3fs
import yaml
from moto.server import ThreadedMotoServer

from dlen.data.prepare import identify, prepare
from tests.conftest import run_here
from tests.data.helpers import refusal
from tests.data.sources.test_table_partitions import DAYS, SPEC, content, log, write
from tests.data.test_remote import copies, table, upload

SECRET = "a-secret-key"
NUMBERS = itertools.count()  # of buckets


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an empty store."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    serving = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    serving.start()
    yield "http://{}:{}".format(*serving.get_host_and_port())
    serving.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """A file system, and an empty bucket of it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()  # of other credentials
    system = fsspec.filesystem("s3")
    name = f"bucket-{next(NUMBERS)}"
    system.mkdir(name)
    return system, name


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_log_in_s3_is_the_same_data_as_on_this_machine(tmp_path: Path, bucket: tuple[Any, str], ending: str) -> None:
    system, name = bucket
    local = write(tmp_path, SPEC, log(), ending)
    upload(system, tmp_path / "logs", f"{name}/logs")
    there = table(tmp_path, {**SPEC, "files": f"s3://{name}/logs"})
    store = prepare(there, tmp_path / "data")
    assert content(store) == content(prepare(local, tmp_path / "data"))
    recorded = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert SECRET not in recorded


def test_a_file_is_copied_again_when_it_has_changed_and_only_then(tmp_path: Path, bucket: tuple[Any, str]) -> None:
    system, name = bucket
    write(tmp_path, SPEC, log(), "parquet")
    upload(system, tmp_path / "logs", f"{name}/logs")

    def fingerprint() -> str:
        system.invalidate_cache()  # which each command has anew
        return str(identify(table(tmp_path, {**SPEC, "files": f"s3://{name}/logs"}), tmp_path / "data")["fingerprint"])

    first, kept = fingerprint(), {path: (tmp_path / "copies" / path).stat().st_ino for path in copies(tmp_path)}
    assert fingerprint() == first
    changed = f"logs/day={DAYS[0]}/country=nl/part-0.parquet"
    rows = pl.read_parquet(tmp_path / changed).with_columns(pl.lit("d").alias("user"))
    rows.write_parquet(tmp_path / "new.parquet")
    system.pipe_file(f"{name}/{changed}", (tmp_path / "new.parquet").read_bytes())
    assert fingerprint() != first
    now = {path: (tmp_path / "copies" / path).stat().st_ino for path in copies(tmp_path)}
    assert [path for path in now if now[path] != kept[path]] == [f"s3/{name}/{changed}"]


@pytest.mark.parametrize("place", ["s3://{}/none.csv", "s3://{}/none/*.csv", "s3://no-such-bucket/logs"])
def test_what_is_not_there_is_one_line(tmp_path: Path, bucket: tuple[Any, str], place: str) -> None:
    address = place.format(bucket[1])
    said = refusal(lambda: table(tmp_path, {**SPEC, "files": address}).files())
    assert said.startswith(f"{address}: ")
    assert "\n" not in said


def test_wrong_credentials_are_one_line_without_them(
    tmp_path: Path, bucket: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    said = refusal(lambda: table(tmp_path, {**SPEC, "files": f"s3://{bucket[1]}/a.csv"}).files())
    assert "credentials" in said
    assert SECRET not in said


def test_a_command_reads_a_folder_in_s3(tmp_path: Path, bucket: tuple[Any, str]) -> None:
    system, name = bucket
    write(tmp_path, SPEC, log(), "parquet")
    upload(system, tmp_path / "logs", f"{name}/mine/logs")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "files": "logs"}, sort_keys=False))
    ran = run_here("prepare.py", ["data=table", "data.spec=spec.yaml", f"data.folder=s3://{name}/mine"], tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "training rate" in ran.stdout
