"""Loggers of all verbs: W&B, TensorBoard and MLflow, behind one interface (`tracker.Tracker`).

`session.track` opens the loggers that `logger.name` lists, and closes them, also after an error. A failure of a logger
after its start costs nothing but its logs. Training adds an adapter for Lightning and `metrics.csv`
(`training/loggers.py`).
"""
