"""Errors that a user can act on. Every message says what is wrong, where, and what to do."""


class DempError(Exception):
    """Base of all errors that demp raises on purpose; the CLI shows no traceback."""


class UsageError(DempError, ValueError):
    """An argument, a config value or a file does not fit."""


class TraceError(DempError, RuntimeError):
    """The model could not be read with the given example inputs."""


class CutError(DempError, RuntimeError):
    """A cut was refused or rolled back; the model is as it was before the call."""


class ExportError(DempError, RuntimeError):
    """A model could not be exported, or its file does not answer as the model does; no file was kept."""


class ArtifactError(DempError, RuntimeError):
    """A saved model is incomplete, altered, or does not fit the constructor."""
