"""Files at addresses: what is listed, copied, kept and recorded, with file systems that need no cloud."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import polars as pl
import pytest
import yaml

from dlen.data.prepare import identify, prepare
from dlen.data.remote import RemoteFiles, is_address
from dlen.data.sources.table import Table
from dlen.errors import UserError
from tests.data.helpers import refusal
from tests.data.sources.test_table_partitions import DAYS, SPEC, content, log, write

ENDINGS = ("parquet", "csv")


@pytest.fixture
def bucket() -> Iterator[Any]:
    """An empty object store in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def upload(bucket: Any, folder: Path, to: str) -> None:
    """Copy all files of a folder to the store."""
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.pipe_file(f"{to}/{path.relative_to(folder)}", path.read_bytes())


def table(tmp_path: Path, spec: dict[str, Any], folder: str | None = None) -> Table:
    """A table whose YAML is local."""
    (tmp_path / "remote.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return Table(str(tmp_path / "remote.yaml"), "t", folder=folder, copies=str(tmp_path / "copies"))


def copies(tmp_path: Path) -> list[str]:
    """Paths of all copies."""
    folder = tmp_path / "copies"
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("[!.]*") if p.is_file())


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("how", ["folder", "pattern", "list", "data.folder"])
def test_a_log_in_a_store_is_the_same_data_as_on_this_machine(
    tmp_path: Path, bucket: Any, ending: str, how: str
) -> None:
    local = write(tmp_path, SPEC, log(), ending)
    upload(bucket, tmp_path / "logs", "/b/logs")
    bucket.pipe_file("/b/logs/_SUCCESS", b"")
    bucket.pipe_file("/b/logs/notes/part-0.csv", b"not,of\nthe,log\n")
    pattern = f"memory://b/logs/day=*/country=*/part-0.{ending}"
    files: Any = {"folder": "memory://b/logs/", "pattern": pattern, "data.folder": "logs"}.get(how)
    if how == "list":
        files = [f"memory:/{place}" for place in sorted(bucket.find("/b/logs")) if "=" in place]
    there = table(tmp_path, {**SPEC, "files": files}, "memory://b/" if how == "data.folder" else None)
    assert content(prepare(there, tmp_path / "data")) == content(prepare(local, tmp_path / "data"))
    assert len(copies(tmp_path)) == 2 * len(DAYS)


def test_only_files_that_where_leaves_are_copied(tmp_path: Path, bucket: Any) -> None:
    write(tmp_path, SPEC, log())
    upload(bucket, tmp_path / "logs", "/b/logs")
    there = table(tmp_path, {**SPEC, "files": "memory://b/logs", "where": f"day >= '{DAYS[1]}' and country in ['nl']"})
    prepare(there, tmp_path / "data")
    assert copies(tmp_path) == [f"memory/b/logs/day={day}/country=nl/part-0.parquet" for day in DAYS[1:]]


def test_joined_tables_are_copied_too(tmp_path: Path, bucket: Any) -> None:
    write(tmp_path, SPEC, log())
    upload(bucket, tmp_path / "logs", "/b/logs")
    bucket.pipe_file("/users.csv", b"user,age\na,1\nb,2\nc,3\n")
    join = {"joins": {"users": {"file": "memory://users.csv", "by": "user"}}}
    fields = {**SPEC["fields"], "age": {}}
    store = prepare(table(tmp_path, {**SPEC, **join, "fields": fields, "files": "memory://b/logs"}), tmp_path / "data")
    assert sorted(store.vocabulary("age")["value"].to_list()) == ["1", "2", "3"]


def test_a_file_is_copied_again_when_it_has_changed_and_only_then(tmp_path: Path, bucket: Any) -> None:
    write(tmp_path, SPEC, log())
    upload(bucket, tmp_path / "logs", "/b/logs")
    spec = {**SPEC, "files": "memory://b/logs"}

    def fingerprint() -> str:
        return str(identify(table(tmp_path, spec), tmp_path / "data")["fingerprint"])

    first = fingerprint()
    before = {name: (tmp_path / "copies" / name).stat().st_ino for name in copies(tmp_path)}
    assert fingerprint() == first
    assert {name: (tmp_path / "copies" / name).stat().st_ino for name in copies(tmp_path)} == before
    changed = f"memory/b/logs/day={DAYS[0]}/country=nl/part-0.parquet"
    rows = pl.read_parquet(tmp_path / "copies" / changed).with_columns(pl.lit("d").alias("user"))
    rows.write_parquet(tmp_path / "new.parquet")
    bucket.pipe_file(changed.removeprefix("memory"), (tmp_path / "new.parquet").read_bytes())
    assert fingerprint() != first
    after = {name: (tmp_path / "copies" / name).stat().st_ino for name in copies(tmp_path)}
    assert {name for name in after if after[name] != before[name]} == {changed}


def test_a_copy_that_breaks_off_is_not_kept(tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe_file("/a.csv", b"x\n1\n")
    remote = RemoteFiles(tmp_path)
    paths = remote.matching("memory://a.csv", bool)
    bucket.pipe_file("/a.csv", b"x\n")  # after it was listed
    with pytest.raises(UserError, match=r"memory:///a.csv: gave 2 of 4 bytes"):
        remote.copy(paths)
    assert not list(tmp_path.rglob("*.csv*"))


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("memory://nowhere.csv", "no such file"),
        ("memory://nowhere/*.csv", "no files"),
        ("ftp://host/a.csv", "ftp://host/a.csv: addresses of this kind"),
        ("gs://bucket/a.csv", "pip install gcsfs"),
        ("hdfs://host/a.csv", "hdfs://host/a.csv"),
        ("memory://b/../../a.csv", "has an empty folder name"),
        ("http://127.0.0.1:9/a.csv", "http://127.0.0.1:9/a.csv: "),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, bucket: Any, address: str, named: str) -> None:
    bucket.store["/b/../../a.csv"] = bucket.store.get("/b", None) or _file(bucket)
    with pytest.raises(UserError) as error:
        table(tmp_path, {**SPEC, "files": address}).files()
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert copies(tmp_path) == []


@pytest.mark.parametrize(
    "address",
    [
        "http://me:secret@127.0.0.1:9/a.csv?sig=secret",
        "SERVER/none.csv?sig=secret",
        "ftp://me:secret@host/a.csv",
        "memory://nowhere/*.csv?sig=secret",
        "memory://nowhere.csv?sig=secret",
        "gs://me:secret@bucket/a.csv?sig=secret",
        "hdfs://me:secret@host/a.csv?sig=secret",
        "http://me:p@secret@127.0.0.1:9/a.csv?sig='secret'",
    ],
)
def test_messages_show_no_passwords_and_signatures(tmp_path: Path, bucket: Any, server: str, address: str) -> None:
    said = refusal(lambda: table(tmp_path, {**SPEC, "files": address.replace("SERVER", server)}).files())
    assert "secret" not in said
    assert "://" in said


def _file(bucket: Any) -> Any:
    bucket.pipe_file("/some.csv", b"x\n1\n")
    return bucket.store["/some.csv"]


class Server(BaseHTTPRequestHandler):
    """A web server with one file, which tells its version by an ETag or not at all."""

    etag: str | None = None
    content = b""
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        """The headers alone."""
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        """The file."""
        found = self.path.startswith("/log.csv")
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        if self.etag:
            self.send_header("ETag", self.etag)
        self.end_headers()
        if found and body:
            self.asked.append(self.path)  # first: the client goes on once it has all bytes
            self.wfile.write(self.content)

    def log_message(self, *args: Any) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a :class:`Server`."""
    Server.etag, Server.content, Server.asked = None, b"user,click\n" + b"a,1\nb,0\na,0\nb,1\n" * 100, []
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


@pytest.mark.parametrize("etag", ['"1"', None])
def test_a_web_server_is_asked_again_unless_it_tells_the_version(tmp_path: Path, server: str, etag: str | None) -> None:
    Server.etag = etag
    spec = {"files": f"{server}/log.csv", "fields": {"user": {}}, "tasks": {"click": "click"}}
    for _ in range(2):
        prepare(table(tmp_path, spec), tmp_path / "data")
    assert len(Server.asked) == (1 if etag else 2)
    Server.etag, Server.content = etag and '"2"', Server.content.replace(b"b", b"c")
    store = prepare(table(tmp_path, spec), tmp_path / "data")
    assert sorted(store.vocabulary("user")["value"]) == ["a", "c"]
    with pytest.raises(UserError, match="no such file"):
        table(tmp_path, {**spec, "files": f"{server}/other.csv"}).files()


def test_passwords_and_signatures_are_not_recorded_by_us(tmp_path: Path, server: str) -> None:
    address = server.replace("://", "://me:secret1@") + "/log.csv?signature=secret2"
    spec = {"fields": {"user": {}}, "tasks": {"click": "click"}}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(spec))
    source = Table(str(tmp_path / "t.yaml"), "t", files=address, copies=str(tmp_path / "copies"))
    prepare(source, tmp_path / "data")
    assert Server.asked
    for path in tmp_path.rglob("*"):
        assert "secret" not in str(path)
        assert not path.is_file() or b"secret" not in path.read_bytes()


def test_a_path_is_no_address() -> None:
    assert is_address("s3://bucket/a")
    assert not any(map(is_address, ["a.csv", "/a/b:c.csv", "C:/a.csv", "day=1/a.csv", "1://a", ""]))
