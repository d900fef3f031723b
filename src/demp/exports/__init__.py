"""A model on its way out: written for others to load, proven against the model itself, with a card."""

from demp.exports.export import export
from demp.exports.ordinary import plain
from demp.exports.report import ExportReport, Timing

__all__ = ["ExportReport", "Timing", "export", "plain"]
