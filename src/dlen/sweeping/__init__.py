"""Sweeps: Optuna studies over train.py's config, with one worker per device."""
