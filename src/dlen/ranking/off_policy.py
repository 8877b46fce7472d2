"""evaluate.py with off_policy.log: the rates a run's ranking would have achieved, from rows shown at random."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from dlen.data.split import Split
from dlen.errors import UserError
from dlen.files import check_links, write_json
from dlen.models.model import Model
from dlen.ranking.estimators import Estimate, Estimator, best_of, swap_items
from dlen.ranking.fusion import Score
from dlen.ranking.scoring import load_model, make_scores, read_fusion
from dlen.ranking.settings import OffPolicySettings, read_off_policy
from dlen.training.building import quiet
from dlen.training.stores import open_row_source

RANDOM, SCORE, WITHOUT_UP = "random", "score", "score without P(UP)"
_ROWS_AT_ONCE = 16384  # logged rows plus drawn items


def check_off_policy(config: DictConfig) -> dict[str, Any]:
    """Estimate the rates of every task under the run's ranking, next to those of the random log.

    Args:
        config: config of ``evaluate.py``, with ``off_policy.log``.

    Returns:
        The content of ``off_policy.json``.

    Raises:
        UserError: the run, the log or a setting is wrong.
    """
    quiet()
    settings, folder = read_off_policy(config), Path(config.run)
    run_config, store, source = open_row_source(folder, config.trust)
    check_links(folder)
    schema = store.schema
    if schema.regressions:
        name = schema.tasks[schema.regressions[0]].name
        raise UserError(f"{folder}: off-policy estimates are of rates, and {name} is a regression; use another run")
    if schema.user_column is None:
        raise UserError(f"{folder}: the data have no user field, which the confidence intervals need")
    model = load_model(folder, run_config, store, config.checkpoint)
    fusion = read_fusion(config.fusion)
    fusions = {SCORE: fusion} | ({WITHOUT_UP: replace(fusion, up=0.0, floor=0.0)} if fusion.needs_up else {})
    scores = dict(zip(fusions, make_scores(list(fusions.values()), model, store), strict=True))
    try:
        batches = list(_weigh(source.read(settings.log, store, labels=True), model, scores, settings))
    except ValueError as error:
        raise UserError(f"config off_policy: {error}") from None
    weights, labels, users = (np.concatenate(part) for part in zip(*batches, strict=True))
    policies = {RANDOM: Estimator(np.ones(len(users)), users)}
    policies |= {name: Estimator(weights[:, i], users) for i, name in enumerate(scores)}
    content = _content(policies, labels, schema.task_names, config, settings)
    write_json(folder / "off_policy.json", content)
    _print(content, settings)
    print(f"Off-policy estimates: {folder}/off_policy.json")
    return content


def _weigh(
    chunks: Iterator[Split], model: Model, scores: Mapping[str, Score], settings: OffPolicySettings
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (n, policies) weights, (n, T) labels and (n,) users of consecutive rows.

    Further items are drawn from the rows of the same chunk. Only one number per policy, the labels and the user of
    each row are kept.
    """
    schema = model.schema
    user = schema.user_column
    assert user is not None
    generator = torch.Generator().manual_seed(settings.seed)
    size = max(_ROWS_AT_ONCE // (settings.draws + 1), 1)
    with torch.inference_mode():
        for chunk in chunks:
            for index in torch.arange(len(chunk)).split(size):
                others = torch.randint(len(chunk), (len(index), settings.draws), generator=generator)
                rows = chunk.batch(index)
                if rows.labels.isnan().any():
                    raise UserError(
                        f"{settings.log}: a label is missing; off-policy estimates need every label of every row"
                    )
                context = chunk.batch(index.repeat_interleave(settings.draws))
                drawn = model(swap_items(context, chunk.batch(others.flatten()), schema))
                logged = model(rows)
                weights = []
                for score in scores.values():
                    of_logged, of_drawn = (score(p.log_p, p.log_states) for p in (logged, drawn))
                    weights.append(best_of(of_logged, of_drawn.view(len(index), -1), settings.candidates, generator))
                yield torch.stack(weights, 1).numpy(), rows.labels.numpy(), rows.ids[:, user].numpy()


def _content(
    policies: Mapping[str, Estimator],
    labels: np.ndarray,
    tasks: list[str],
    config: DictConfig,
    settings: OffPolicySettings,
) -> dict[str, Any]:
    """Metrics of every policy and task, and the settings."""
    figures = {}
    for name, estimator in policies.items():
        of_tasks = {}
        for number, task in enumerate(tasks):
            happened = labels[:, number].astype(np.float64)
            estimates = {"ips": estimator.ips(happened), "snips": estimator.snips(happened)}
            for other in (RANDOM, WITHOUT_UP):
                if other in policies and name == SCORE:
                    estimates[f"gain over {other}"] = estimator.snips_gain(policies[other], happened)
            of_tasks[task] = {key: asdict(estimate) for key, estimate in estimates.items()}
        figures[name] = {"effective_rows": estimator.effective_rows, "tasks": of_tasks}
    return {
        "rows": len(labels),
        "settings": {**asdict(settings), "log": settings.log.name},
        "fusion": OmegaConf.to_container(config.fusion, resolve=True),
        "policies": figures,
    }


def _print(content: Mapping[str, Any], settings: OffPolicySettings) -> None:
    """Print the self-normalised estimates and the effective number of rows as a table."""
    policies = content["policies"]
    others = [name for name in policies if name != SCORE]
    table = Table(title=f"Off-policy (SNIPS): the best of {settings.candidates}, from {content['rows']:,} random rows")
    for heading in ("task", *policies, *(f"gain over {name}" for name in others)):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task in policies[RANDOM]["tasks"]:
        cells = [_shown(policies[name]["tasks"][task]["snips"]) for name in policies]
        cells += [_shown(policies[SCORE]["tasks"][task][f"gain over {name}"], "+") for name in others]
        table.add_row(task, *cells)
    table.add_row("effective rows", *(f"{policies[name]['effective_rows']:,.0f}" for name in policies))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _shown(figures: Mapping[str, float], sign: str = "") -> str:
    estimate = Estimate(**figures)
    return f"{estimate.value:{sign}.4f} [{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"
