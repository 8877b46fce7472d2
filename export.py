"""Write a finished run as an ONNX model, checked against the run."""

from pathlib import Path

from dlen.commands.export import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
