"""Write the prepared store of a data set, once."""

from pathlib import Path

from dlen.commands.prepare import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
