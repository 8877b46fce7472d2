"""Sweeps: Optuna studies over train.py's config, by as many workers as there are devices."""
