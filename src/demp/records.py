"""Lines of results, as sweeps write them: `demp.files.results` under its documented name."""

from demp.files.results import DONE, FAILED, SCHEMA, TRAINING, Follower, Record, Records, parsed, read

__all__ = ["DONE", "FAILED", "SCHEMA", "TRAINING", "Follower", "Record", "Records", "parsed", "read"]
