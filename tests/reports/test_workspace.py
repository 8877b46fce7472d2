"""The W&B workspace: built from the library's objects and the keys that real runs logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces import internal

from dlen.errors import UserError
from dlen.reports.run_record import RunRecord
from dlen.reports.runs import find, read_runs
from dlen.reports.workspace import build_workspace, publish


@pytest.fixture(scope="module")
def records(made: Path) -> list[RunRecord]:
    return [r for r in read_runs(find(str(made / "runs"))) if r.data == "feed"]


def test_sections_and_their_panels(records: list[RunRecord]) -> None:
    workspace = build_workspace(records, "me", "dlen")
    assert isinstance(workspace, ws.Workspace)
    names = [section.name for section in workspace.sections]
    tasks = [f"Task {t}" for t in ("click", "like", "share", "follow", "comment")]
    assert names == ["Overview", *tasks, "Latent state", "Gates", "Gradient conflict", "Speed", "Sweep"]
    logged = {key for record in records for key in record.logged}
    for section in workspace.sections:
        for panel in section.panels:
            if isinstance(panel, wr.LinePlot):
                assert panel.x == "trainer/global_step"
                assert set(panel.y) <= logged  # no empty panel
    gates = next(s for s in workspace.sections if s.name == "Gates")
    first: Any = gates.panels[0]
    assert "val/gates/level1/click/weight/expert0" in first.y
    parallel: Any = next(s for s in workspace.sections if s.name == "Sweep").panels[0]
    accessors = [c.metric.name for c in parallel.columns]
    assert "model.head.alpha" in accessors
    assert accessors[-1] == "val/auc/mean"


def test_what_the_runs_have_nothing_for_is_left_out(records: list[RunRecord]) -> None:
    names = [s.name for s in build_workspace([r for r in records if r.model == "mmoe"], "me", "dlen").sections]
    assert "Latent state" not in names
    assert "Gates" in names


def test_without_a_key_the_file_is_what_the_library_would_send(
    records: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    workspace = build_workspace(records, "me", "dlen")
    assert "set WANDB_API_KEY" in publish(workspace, tmp_path / "workspace.json")
    content = json.loads((tmp_path / "workspace.json").read_text())
    read = internal.View(
        entity="me",
        project="dlen",
        display_name="dlen",
        name="n",
        id="i",
        spec=internal.WorkspaceViewspec(**content["spec"]),
    )
    again = ws.Workspace._from_model(read)
    assert [s.name for s in again.sections] == [s.name for s in workspace.sections]
    assert [len(s.panels) for s in again.sections] == [len(s.panels) for s in workspace.sections]


def test_a_workspace_is_brought_up_to_date_and_not_made_twice(
    records: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def upsert(view: Any) -> dict[str, Any]:
        sent.append((view.name, view.id))
        return {"upsertView": {"view": {"name": view.name, "id": view.id or "new-id"}}}

    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr(ws.Workspace, "url", "https://wandb.ai/me/dlen")
    for _ in range(2):
        assert "https://wandb.ai/me/dlen" in publish(build_workspace(records, "me", "dlen"), tmp_path / "w.json")
    assert sent[0][1] == ""
    assert sent[1] == (sent[0][0], "new-id")


def test_a_refusal_is_one_line(records: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(view: Any) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(internal, "upsert_view2", refuse)
    with pytest.raises(UserError, match="config wandb: me/dlen: no route"):
        publish(build_workspace(records, "me", "dlen"), tmp_path / "w.json")
    assert not (tmp_path / "w.json").exists()
