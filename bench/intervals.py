"""How often the 95 % interval of two equal models contains zero, by number of seeds and ratio of seed to row noise.

python bench/intervals.py
"""

from __future__ import annotations

import numpy as np

from dlen.comparing.statistics import paired

RATIOS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)  # standard deviation of the mean, seeds to rows
DRAWS = 20_000


def coverage(seeds: int, ratio: float, draws: int, seed: int = 0) -> float:
    """Fraction of ``draws`` comparisons of equal models whose interval contains zero."""
    random, row = np.random.default_rng(seed), 0.001
    held = 0
    for _ in range(draws):
        differences = random.normal(0, row) + random.normal(0, ratio * row * np.sqrt(seeds), seeds)
        found = paired(differences.tolist(), [0.0] * seeds, row**2)
        held += found.low <= 0 <= found.high
    return held / draws


def main() -> None:
    """Print the table."""
    print("| seeds | " + " | ".join(str(r) for r in RATIOS) + " |\n|---:|" + "---:|" * len(RATIOS))
    for seeds in (2, 3, 5, 10):
        print(f"| {seeds} | " + " | ".join(f"{coverage(seeds, r, DRAWS):.1%}" for r in RATIOS) + " |", flush=True)


if __name__ == "__main__":
    main()
