"""Measure a finished run again, on any split."""

from pathlib import Path

from dlen.commands.evaluate import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
