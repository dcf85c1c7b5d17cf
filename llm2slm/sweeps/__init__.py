"""Sweeps: their jobs and the records of these, launchers, the Optuna study, and the tables of a sweep."""
