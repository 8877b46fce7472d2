"""Measure a model on each appended day, then train it on that day."""

from pathlib import Path

from dlen.commands.progressive import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
