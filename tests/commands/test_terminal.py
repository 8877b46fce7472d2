"""Terminal output: progress bars with rates, a line per validation, and no colour where it is not wanted."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import ROOT

SETTINGS = ["data.rows=6000", "data.users=50", "data.items=40", "loader.batch_size=512", "trainer.max_epochs=1"]
SETTINGS += ["model.embedding.dim=4", "run_dir=run"]


def on_a_terminal(arguments: list[str], folder: Path, width: int = 120, **environment: str) -> str:
    """The output of a command on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    variables = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment}
    for name in ("DLEN_RUN_DIR", "COLUMNS", "LINES"):  # xdist's workers have their own width
        variables.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / arguments[0]), *arguments[1:]],
        cwd=folder,
        env=variables,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # Linux raises this when the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode()


@pytest.mark.slow
def test_bars_lines_and_no_colour(tmp_path: Path) -> None:
    written = on_a_terminal(["train.py", *SETTINGS], tmp_path, NO_COLOR="1")
    styles = {code for group in re.findall(r"\x1b\[([\d;]*)m", written) for code in group.split(";")}
    assert not [code for code in styles if code in ("38", "48") or (code.isdigit() and 30 <= int(code) <= 107)]
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", written)
    assert re.search(r"simulating the feed[^\n]*━", plain)
    assert re.search(r"Epoch 1/1 [^\n]*samples/s: [\d.]+", plain)
    assert re.search(r"Epoch 1/1 [^\n]*AUC: 0\.\d", plain)
    lines = re.findall(r"step \d+: validation AUC click 0\.\d{4} like 0\.\d{4} [^\n]*mean 0\.\d{4}", plain)
    assert len(lines) == 5
    assert "Run folder: run" in plain
