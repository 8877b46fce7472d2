"""A W&B workspace as code: dashboard panels for the keys that the given runs have logged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlen.errors import UserError, one_line
from dlen.files import read_mapping, write_json
from dlen.metric_names import own_names
from dlen.reports.run_labels import differing
from dlen.reports.run_record import RunRecord

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

_STEP = "trainer/global_step"
_MOST_PARAMETERS = 8  # in the parallel coordinates of a sweep


def build_workspace(records: Sequence[RunRecord], entity: str, project: str) -> ws.Workspace:
    """Build the workspace as an object of the library, without sending anything.

    Sections: overview, one per task, latent state, gates, speed, sweep. Sections without data are omitted.

    Args:
        records: runs whose keys, tasks and settings the panels show.
        entity: W&B user or team.
        project: W&B project.

    Raises:
        UserError: the library is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError("config wandb: needs wandb-workspaces; pip install 'dlen[workspaces]'") from None

    keys = sorted({key for record in records for key in record.logged})
    final = sorted({key for record in records for key in record.metrics})
    targets = list(dict.fromkeys(t for r in records for t in r.targets))

    def lines(title: str, wanted: Iterable[str], axis: str = "") -> list[Any]:
        """A plot by step of the keys that were logged."""
        y: list[Any] = [key for key in wanted if key in keys]
        return [wr.LinePlot(title=title, x=_STEP, y=y, title_y=axis or None)] if y else []

    def bars(title: str, wanted: Iterable[str]) -> list[Any]:
        """Bars of final metrics, mean over the runs of a model."""
        metrics: list[Any] = [key for key in wanted if key in final]
        if not metrics:
            return []
        return [wr.BarPlot(title=title, metrics=metrics, groupby=wr.Config("model_name"), groupby_aggfunc="mean")]

    def pictures(title: str) -> list[Any]:
        return [wr.MediaBrowser(title=title, media_keys=[f"plots/{title}"], num_columns=2)]

    overview = [
        wr.ScalarChart(title="Best validation", metric="val/auc/mean", groupby_aggfunc="max"),
        *lines("Validation AUC, mean over the tasks", ["val/auc/mean"], "AUC"),
        *bars("Test AUC", [f"test/auc/{t}" for t in [*targets, "mean"]]),
        *bars("Gain over the base run", [f"test/gain/{t}" for t in [*targets, "mean"]]),
        *lines("Training loss", ["train/loss"]),
        *lines("Likelihood of all labels", ["val/logloss/labels"], "nats"),
        wr.WeavePanelSummaryTable(table_name="test/figures"),
        wr.RunComparer(diff_only="split"),
    ]
    own = own_names(dict.fromkeys(keys), "val")
    sections = [ws.Section(name="Overview", panels=overview, is_open=True)]
    for target in targets:
        panels = [
            *lines("AUC", [f"val/auc/{target}", f"val/auc_joint/{target}", f"val/auc_total/{target}"], "AUC"),
            *lines("Logloss", [f"val/logloss/{target}"], "nats"),
            *lines("Predicted over observed", [f"val/calibration/{target}"]),
            *lines("Calibration error", [f"val/ece/{target}"]),
            *(panel for name in own for panel in lines(name, [f"val/{name}/{target}"])),
            *bars("Test AUC and oracle", [f"test/auc/{target}", f"test/oracle/{target}"]),
            *bars("Within users", [f"test/gauc/{target}", f"test/ndcg@10/{target}"]),
        ]
        sections.append(ws.Section(name=f"Task {target}", panels=panels))
    latent = [
        *lines("Distribution of P(UP)", [f"val/hidden/{k}" for k in ("p10", "p50", "p90", "mean")]),
        *lines("Deviation and saturation", ["val/hidden/std", "val/hidden/saturated"]),
        *lines("AUC of P(UP)", [k for k in keys if k.startswith("val/auc/up_")]),
        *lines("Correlation with the truth", ["val/corr/up_truth"]),
        *lines("Leak: P(t | not UP) over P(t | UP)", [k for k in keys if k.startswith("val/leak/")]),
        *(
            p
            for kind in ("other", "silent", "detest")
            for p in lines(f"Negatives: {kind}", [k for k in keys if k.startswith(f"val/negatives/{kind}/")])
        ),
    ]
    if latent:
        latent += [*pictures("P(UP) by what happened"), *pictures("What a negative means")]
        latent.append(wr.WeavePanelSummaryTable(table_name="test/negatives"))
        sections.append(ws.Section(name="Latent state", panels=latent))
    sections += _gates(ws, keys, lines, pictures)
    conflict = lines("Task pairs that pull apart", ["train/conflict/share", "train/conflict/rows"])
    if conflict:
        cosines = [k for k in keys if k.startswith("train/conflict/cosine")]
        conflict += [*lines("Cosines", cosines), *pictures("Gradient conflict")]
        sections.append(ws.Section(name="Gradient conflict", panels=conflict))
    speed = [
        *bars("Training samples/s", ["fit/samples_per_second"]),
        *bars("Peak memory, MiB", ["fit/peak_memory_mb"]),
        *bars("Seconds", ["fit/seconds", "fit/validation_seconds", "fit/checkpoint_seconds"]),
        wr.ScatterPlot(
            title="AUC by speed", x=wr.SummaryMetric("fit/samples_per_second"), y=wr.SummaryMetric("val/auc/mean")
        ),
    ]
    sections.append(ws.Section(name="Speed", panels=speed))
    sections += _sweep(wr, ws, records)
    settings = ws.WorkspaceSettings(x_axis=_STEP, max_runs=50)
    runset = ws.RunsetSettings(groupby=[])
    return ws.Workspace(entity, project, "dlen", sections, settings, runset)


def _gates(
    ws: Any, keys: Sequence[str], lines: Callable[..., list[Any]], pictures: Callable[[str], list[Any]]
) -> list[Any]:
    """Weights and entropy of each gate by step."""
    gates = list(dict.fromkeys(m[1] for k in keys if (m := re.match(r"val/(gates/level\d+/[^/]+)/", k))))
    if not gates:
        return []
    panels = []
    for gate in gates:
        panels += lines(
            f"Weights, {gate.removeprefix('gates/')}", [k for k in keys if k.startswith(f"val/{gate}/weight/")]
        )
    panels += lines("Entropy", [f"val/{gate}/entropy" for gate in gates])
    levels = list(dict.fromkeys(gate.split("/")[1].removeprefix("level") for gate in gates))
    panels += [panel for level in levels for panel in pictures(f"Gates, level {level}")]
    return [ws.Section(name="Gates", panels=panels)]


def _sweep(wr: Any, ws: Any, records: Sequence[RunRecord]) -> list[Any]:
    """Effect on the AUC of the settings that differ between runs."""
    varied = [
        key
        for key in differing(records)
        if "_target_" not in key
        and not key.startswith(("data.", "trainer.", "loader.", "model_name"))
        and all(isinstance(r.settings[key], int | float | str) for r in records if key in r.settings)
    ]
    varied = varied[:_MOST_PARAMETERS] or ["model.head.alpha"]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key)) for key in varied]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("val/auc/mean")))
    panels = [
        wr.ParallelCoordinatesPlot(title="Settings and AUC", columns=columns),
        wr.ParameterImportancePlot(with_respect_to="val/auc/mean"),
        *(
            wr.ScatterPlot(title=f"AUC by {key}", x=wr.Config(key), y=wr.SummaryMetric("val/auc/mean"))
            for key in varied
        ),
    ]
    return [ws.Section(name="Sweep", panels=panels)]


def publish(workspace: ws.Workspace, path: Path) -> str:
    """Create the workspace, or update the one recorded in ``path``. Without an API key only write the file.

    Args:
        workspace: workspace to publish.
        path: JSON file with the content sent to W&B and the name of the workspace.

    Returns:
        A line that reports what was done.

    Raises:
        UserError: W&B refuses it or cannot be reached.
    """
    _remember(workspace, path)
    online = bool(os.environ.get("WANDB_API_KEY")) and os.environ.get("WANDB_MODE") not in (
        "offline",
        "dryrun",
        "disabled",
    )
    if online:
        try:
            workspace.save()
        except Exception as error:  # the library raises whatever its transport raises
            reason = one_line(error)[:200] or type(error).__name__
            raise UserError(f"config wandb: {workspace.entity}/{workspace.project}: {reason}") from None
    view = workspace._to_model()
    content = {"entity": view.entity, "project": view.project, "name": view.name, "id": view.id}
    content["spec"] = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    write_json(path, content)
    if online:
        return f"W&B workspace: {workspace.url} ({path})"
    return f"W&B workspace: its definition is in {path}; set WANDB_API_KEY to create it"


def _remember(workspace: ws.Workspace, path: Path) -> None:
    """Reuse the identity of a previously created workspace, so that it is updated instead of duplicated."""
    try:
        before = read_mapping(path)
        if (before["entity"], before["project"]) == (workspace.entity, workspace.project):
            workspace._internal_name, workspace._internal_id = str(before["name"]), str(before["id"])
    except (UserError, KeyError):
        return
