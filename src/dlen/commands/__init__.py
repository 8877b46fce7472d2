"""The commands. `python train.py`, `dlen-train` and `python -m dlen.commands.train` are the same; so are the others."""
