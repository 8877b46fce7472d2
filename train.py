"""Prepare the data if needed, train a model, and test its best checkpoint."""

from pathlib import Path

from dlen.commands.train import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
