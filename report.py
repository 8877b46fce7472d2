"""Write one page of tables and plots about runs, comparisons and studies."""

from pathlib import Path

from dlen.commands.report import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
