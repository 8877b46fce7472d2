"""The GPU bench on a CPU: its parts against direct computations, and that no failure costs the rest its results."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dlen.nn.mlp import MLP
from dlen.schema import Kind
from tests.conftest import BRAKE, ROOT, run_program

CPU = torch.device("cpu")
Load = Callable[[str], ModuleType]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a module of ``bench``."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return import_module


def test_all_sections_fit_in_nine_minutes(bench: Load) -> None:
    assert sum(seconds for _, seconds in bench("gpu_sections").SECTIONS.values()) <= bench("gpu").LIMIT < 540


def test_what_to_carry_is_pinned_and_named_only_where_it_is_missing(bench: Load) -> None:
    gpu = bench("gpu")
    absent = ("polars", "hydra", "omegaconf", "antlr4")
    packages = gpu.missing(lambda module: None if module in absent else object())
    assert packages == ["omegaconf", "antlr4-python3-runtime", "hydra-core", "polars", "polars-runtime-32"]
    assert gpu.missing() == []
    lines = gpu.how_to_carry(packages, "3.12").splitlines()
    assert all(re.search(rf" {name}==[\d.]+", lines[0]) for name in packages if name != "antlr4-python3-runtime")
    assert lines[1].endswith(" wheel --no-deps -w .whl antlr4-python3-runtime==4.9.3")
    assert sum(map(len, lines)) < 2000  # the longest command line there


def test_rows_have_ids_of_their_fields_and_labels_of_a_funnel(bench: Load) -> None:
    parts = bench("gpu_parts")
    schema = parts.aliccp_schema(bags=True)
    split = parts.aliccp_rows(schema, 500, CPU)
    batch = split.batch(torch.arange(500))
    for column, field in enumerate(schema.of_kind(Kind.ID)):
        rows = schema.rows(field.name)
        assert rows.start <= batch.ids[:, column].min() <= batch.ids[:, column].max() < rows.stop
    of_fields = batch.bag_ids.split(batch.bag_lengths.sum(1).tolist())
    for ids, field in zip(of_fields, schema.of_kind(Kind.IDS), strict=True):
        rows = schema.rows(field.name)
        assert rows.start <= ids.min() <= ids.max() < rows.stop
    assert (batch.labels[:, 1] <= batch.labels[:, 0]).all()
    assert 0 < batch.labels[:, 0].mean() < 0.2


def test_an_epoch_has_every_row_once(bench: Load) -> None:
    batches = bench("gpu_parts").batches
    of_epoch = list(batches(150_000, 4096, epoch=1))
    assert [len(index) for index in of_epoch] == [4096] * 36 + [150_000 - 36 * 4096]
    assert torch.cat(of_epoch).sort().values.equal(torch.arange(150_000))
    endless = batches(100, 30)
    assert [len(next(endless)) for _ in range(7)] == [30] * 7


def test_stacked_experts_are_the_experts_one_by_one(bench: Load) -> None:
    torch.manual_seed(0)
    members = [MLP(5, (4, 3)) for _ in range(3)]
    for layer in (layer for member in members for layer in member.layers if isinstance(layer, torch.nn.Linear)):
        torch.nn.init.normal_(layer.bias)
    weights = [p for member in members for p in member.parameters()]
    x = torch.randn(7, 5, requires_grad=True)
    wanted, found = torch.stack([member(x) for member in members]), bench("gpu_parts").stacked(members, x)
    torch.testing.assert_close(found, wanted)
    factors = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((out * factors).sum(), [x, *weights]) for out in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_the_reference_takes_the_products_of_all_pairs(bench: Load) -> None:
    network = bench("gpu_parts").DotNetwork(3, 2)
    seen: list[torch.Tensor] = []
    network.top.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    vectors = torch.randn(4, 3, bench("gpu_parts").DIM)
    assert network(vectors).shape == (4, 2)
    pairs = [(vectors[:, a] * vectors[:, b]).sum(1) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(seen[0], torch.cat([vectors.flatten(1), torch.stack(pairs, 1)], 1))


@pytest.mark.parametrize("fbgemm", [False, True])
def test_the_references_learn(bench: Load, fbgemm: bool) -> None:
    if fbgemm:
        pytest.importorskip("fbgemm_gpu")
    parts = bench("gpu_parts")
    torch.manual_seed(0)
    schema = parts.aliccp_schema(bags=False)
    split = parts.aliccp_rows(schema, 64, CPU)
    step = parts.dlrm_step(schema, parts.ResidentSplit(split, CPU), bfloat16=False, fbgemm=fbgemm)
    losses = [step(torch.arange(64)).item() for _ in range(80)]
    rates = split.labels.float().mean(0).expand(64, -1)
    assert losses[-1] < F.binary_cross_entropy(rates, split.labels.float()).item() / 4  # the rates alone


def test_a_failing_row_and_a_missing_package_leave_the_others(bench: Load) -> None:
    guarded = bench("gpu_sections").guarded

    def fails() -> dict[str, Any]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    def lacks() -> dict[str, Any]:
        import not_a_package  # type: ignore[import-not-found]  # noqa: F401

        return {}

    assert guarded({"batch": 1}, fails) == {"batch": 1, "error": "RuntimeError: operation not permitted"}
    assert guarded({}, lacks) == {"skipped": "No module named 'not_a_package'"}
    assert guarded({"batch": 1}, lambda: {"ok": True}) == {"batch": 1, "ok": True}


@pytest.mark.parametrize(("seconds", "reason"), [(BRAKE, "KeyError"), (0.05, "stopped after 0 s")])
def test_a_section_that_breaks_or_hangs_is_recorded(bench: Load, tmp_path: Path, seconds: float, reason: str) -> None:
    result: dict[str, Any] = {"sections": {}}
    arguments = {"device": "cpu", "rows": "10", "batches": "2", "models": "mmoe", "seconds": "0"}
    bench("gpu").section("absent", arguments, seconds, result, tmp_path / "gpu.json")
    assert reason in json.loads((tmp_path / "gpu.json").read_text())["sections"]["absent"]["error"]


@pytest.mark.slow
def test_every_section_runs_on_a_cpu(tmp_path: Path, bench: Load) -> None:
    out = tmp_path / "gpu.json"
    settings = ["device=cpu", "rows=400", "batches=64", "models=mmoe", "seconds=0", f"out={out}"]
    ran = run_program([sys.executable, str(ROOT / "bench/gpu.py"), *settings], tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(out.read_text())
    assert list(found["sections"]) == list(bench("gpu_sections").SECTIONS)
    assert all(section["rows"] and "error" not in section for section in found["sections"].values())


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [("row=5", "unknown: row"), ("sections=all", "no section all"), ("rows=9", "rows must be three times")],
)
def test_wrong_arguments_are_answered_with_a_line(
    bench: Load, argument: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "device=cpu", argument])
    with pytest.raises(SystemExit, match=wanted):
        bench("gpu").main()


@pytest.mark.parametrize("name", ["mmoe", "dlen", "ple"])
def test_the_loops_beside_train_py_still_run(name: str, bench: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench/train.py` takes most of an hour and is run rarely; its loops are of our classes, which change."""
    loops, shape = bench("loops"), bench("shapes").Shape("rows", (), experts=2, task_experts=1)
    parts = bench("gpu_parts")
    schema = parts.aliccp_schema(bags=False)
    small = replace(schema, fields=tuple(replace(f, vocab_size=50) for f in schema.fields))
    split = parts.aliccp_rows(small, 100, CPU)
    store = SimpleNamespace(schema=small, split=lambda name: split)
    monkeypatch.setattr(loops, "WARM_UP", 1)
    model = loops.make_model(name, small, shape)
    assert loops.ours(store, model, 16, 2) > 0
    assert loops.as_peers_do(store, shape, name, 16, 2) > 0
    assert loops.matmul_limit(model, model.spec.width, 16, repeats=1) > 0
    assert loops.forward_alone(split, model, 16) > 0
