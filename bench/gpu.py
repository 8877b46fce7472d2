"""Everything to learn of a GPU in one command of at most nine minutes, on a bare machine without a network.

python bench/gpu.py                                     # first tells which packages are missing and how to bring them
python bench/gpu.py sections=speed,profile models=mmoe batches=4096,65536
python bench/gpu.py limit=240                           # in four minutes: every section gets its share of them
python bench/gpu.py device=cpu                          # the same code, small, without graphs: two minutes

Each section runs in a process of its own and may take its share of the time, so neither an error nor a hang costs the
others their results. Rows are printed and written to ``out`` (bench/out/gpu.json) as they come.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))  # nothing is installed on a bare machine

# Imports of train.py, and the packages to carry where they are missing. Wheels of 53 MiB in all, 51 of them Polars.
NEEDED = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "yaml": ("pyyaml",),
    "rich": ("rich",),
    "lightning": ("lightning",),
    "torchmetrics": ("torchmetrics",),
    "omegaconf": ("omegaconf",),
    "antlr4": ("antlr4-python3-runtime",),
    "hydra": ("hydra-core",),
    "polars": ("polars", "polars-runtime-32"),
}
FROM_SOURCE = ("antlr4-python3-runtime",)  # has no wheel; plain Python, so one built anywhere will do
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT = 530  # seconds of the whole command
ROW = "ROW "
DEFAULTS = {
    "cuda": {"rows": "42300135", "batches": "4096,16384,65536,262144", "seconds": "1.5", "limit": str(LIMIT)},
    "cpu": {"rows": "4000", "batches": "256,1024", "seconds": "0.05", "limit": "3600"},
}
KEYS = {"device", "rows", "batches", "models", "seconds", "limit", "sections", "out", "section"}


def missing(found: Any = importlib.util.find_spec) -> list[str]:
    """The packages to carry to this machine."""
    return [package for module, packages in NEEDED.items() if found(module) is None for package in packages]


def how_to_carry(packages: list[str], python: str) -> str:
    """The commands that bring packages, in the versions of constraints.txt, for a machine with this Python."""
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    named = {name: f"{name}=={pins[name]}" if name in pins else name for name in packages}
    wheels = " ".join(pin for name, pin in named.items() if name not in FROM_SOURCE)
    platforms = " ".join(f"--platform {name}" for name in PLATFORMS)
    download = f"python3 -m pip download --no-deps --only-binary=:all: --python-version {python} --implementation cp"
    lines = [f"  {download} {platforms} -d .whl {wheels}"] if wheels else []
    lines += [f"  python3 -m pip wheel --no-deps -w .whl {pin}" for name, pin in named.items() if name in FROM_SOURCE]
    install = "python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl"
    lines += ["and then here, with the folder .whl:", f"  {install} && export PYTHONPATH=/tmp/site"]
    return "\n".join(lines)


def run_section(name: str, arguments: dict[str, str]) -> None:
    """Run one section in this process and print its rows."""
    import torch

    torch.set_float32_matmul_precision("high")  # as train.py
    from gpu_sections import SECTIONS, Asked

    asked = Asked(
        torch.device(arguments["device"]),
        int(arguments["rows"]),
        tuple(int(size) for size in arguments["batches"].split(",")),
        tuple(arguments["models"].split(",")),
        float(arguments["seconds"]),
    )
    for row in SECTIONS[name][0](asked):
        print(ROW + json.dumps(row), flush=True)


def section(name: str, arguments: dict[str, str], seconds: float, result: dict[str, Any], out: Path) -> None:
    """Run one section in a process of its own, for at most some seconds, and record its rows as they come."""
    started = time.monotonic()
    own: dict[str, Any] = {"rows": []}
    result["sections"][name] = own
    settings = [f"{key}={value}" for key, value in arguments.items() if key not in ("limit", "sections", "out")]
    command = [sys.executable, __file__, *settings, f"section={name}"]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])  # of the train.py that it runs too
    with (out.parent / f"{out.stem}_{name}.err").open("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,
        )
        timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))  # with the train.py that it runs
        timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(ROW):
                    own["rows"].append(json.loads(line.removeprefix(ROW)))
                    print("  " + described(own["rows"][-1]), flush=True)
                    write(out, result)
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:  # Ctrl-C
                os.killpg(process.pid, signal.SIGKILL)
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
    own["seconds"] = round(time.monotonic() - started, 1)
    if code:
        own["error"] = f"stopped after {seconds:.0f} s" if code == -9 else "".join(last) or f"exit code {code}"
        print(f"  FAILED: {own['error']}", flush=True)
    write(out, result)


def described(row: dict[str, Any]) -> str:
    """A row in one line."""
    return ", ".join(
        f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def write(out: Path, result: dict[str, Any]) -> None:
    """Write all results so far."""
    out.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Run the sections that the arguments ask for."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if unknown := given.keys() - KEYS:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(sorted(KEYS - {'section'}))}")
    if "section" in given:
        run_section(given.pop("section"), given)
        return
    started = time.monotonic()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = missing()
    print(f"missing here: {', '.join(packages) or 'nothing'}")
    if packages:
        print(f"bring them, 53 MiB at most, from a machine with a network:\n{how_to_carry(packages, python)}")
    if {"torch", "numpy", "omegaconf", "antlr4-python3-runtime"} & set(packages):
        raise SystemExit("dlen needs omegaconf and antlr4-python3-runtime at least")
    import torch
    from common import machine
    from gpu_sections import SECTIONS

    arguments = {"device": "cuda" if torch.cuda.is_available() else "cpu", "models": "mmoe,dlen,ple"} | given
    arguments = DEFAULTS[arguments["device"]] | arguments
    names = arguments.get("sections", ",".join(SECTIONS)).split(",")
    if wrong := [name for name in names if name not in SECTIONS]:
        raise SystemExit(f"no section {wrong[0]}; there are {', '.join(SECTIONS)}")
    if max(int(size) for size in arguments["batches"].split(",")) * 3 > int(arguments["rows"]):
        raise SystemExit("rows must be three times the largest batch or more")
    out = Path(arguments.get("out", ROOT / "bench/out/gpu.json")).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine(), "arguments": arguments, "missing": packages, "sections": {}}
    print(described(result["machine"] | arguments), flush=True)
    limit = float(arguments["limit"])
    for name in names:
        share = SECTIONS[name][1] / sum(SECTIONS[asked][1] for asked in names)
        seconds = min(share * limit, limit - (time.monotonic() - started))
        print(f"{name}, at most {seconds:.0f} s", flush=True)
        if seconds <= 0:
            result["sections"][name] = {"rows": [], "error": "no time left"}
        else:
            section(name, arguments, seconds, result, out)
    write(out, result)
    rows = [row for found in result["sections"].values() for row in found["rows"]]
    failed = [name for name, found in result["sections"].items() if "error" in found]
    bad = [row for row in rows if "error" in row or row.get("ok") is False]
    print(f"{len(rows)} rows in {out}, {len(bad)} of them failed; sections that failed: {', '.join(failed) or 'none'}")
    raise SystemExit(bool(bad or failed))


if __name__ == "__main__":
    main()
