"""Rank models over data sets, each model searched with the same budget."""

from pathlib import Path

from dlen.commands.benchmark import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
