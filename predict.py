"""Score new rows with a finished run."""

from pathlib import Path

from dlen.commands.predict import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
