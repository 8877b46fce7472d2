"""Train models x seeds on one data set and compare them, paired, with a base model."""

from pathlib import Path

from dlen.commands.compare import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
