"""A table of ids as peer libraries prepare it. Run by bench/prepare.py with the Python of bench/peers/.venv.

python prepare.py pandas|FuxiCTR TABLE.csv FOLDER [FUXICTR]

``pandas`` is what the examples of torch-rechub and DeepCTR-Torch do: a LabelEncoder for each column of a DataFrame.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.preprocessing import LabelEncoder

LABELS = ["click", "buy"]


def with_pandas(table: Path, folder: Path) -> None:
    """Number the ids of each column, and write the arrays."""
    frame = pd.read_csv(table)
    for column in frame.columns.drop(LABELS):
        frame[column] = LabelEncoder().fit_transform(frame[column])
    np.savez(folder / "rows.npz", **{column: frame[column].to_numpy() for column in frame.columns})


def with_fuxictr(table: Path, folder: Path, repository: Path) -> None:
    """FuxiCTR's own processor and build of a data set."""
    sys.path.insert(0, str(repository))
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    with table.open() as file:
        names = file.readline().strip().split(",")
    fields = {"name": [n for n in names if n not in LABELS], "active": True, "dtype": "str", "type": "categorical"}
    labels = [{"name": name, "dtype": "float"} for name in LABELS]
    processor = FeatureProcessor([fields], labels, dataset_id="rows", data_root=str(folder))
    build_dataset(processor, train_data=str(table))


def main() -> None:
    """Prepare the table."""
    what, table, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "pandas":
        with_pandas(table, folder)
    else:
        with_fuxictr(table, folder, Path(sys.argv[4]))


if __name__ == "__main__":
    main()
