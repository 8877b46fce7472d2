"""docs/days.md: the YAML of a log that grows by a folder a day."""

from __future__ import annotations

import re
from pathlib import Path

from dlen.data.append import append
from dlen.data.prepare import prepare
from dlen.data.sources.table import Table
from tests.commands.test_days import OLD, write
from tests.conftest import ROOT


def test_its_yaml_prepares_the_first_days_and_appends_another(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(# log\.yaml\n.*?)```", (ROOT / "docs/days.md").read_text(), re.DOTALL)
    assert found
    spec = tmp_path / "log.yaml"
    write(tmp_path, range(OLD))
    spec.write_text(found[1])
    store = prepare(Table(str(spec), "log"), tmp_path / "data")
    assert store.rows == {"train": 300, "validation": 300, "test": 300}
    write(tmp_path, range(OLD, OLD + 1))
    spec.write_text(found[1])
    assert append(Table(str(spec), "log"), tmp_path / "data").rows["days"] == 300
