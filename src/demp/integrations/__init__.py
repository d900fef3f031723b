"""Pruners for the training loops of other libraries; no mathematics, and no import of a library until asked."""
