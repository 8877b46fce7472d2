"""Search a space of settings with Optuna, over as many workers as there are devices."""

from pathlib import Path

from dlen.commands.sweep import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
