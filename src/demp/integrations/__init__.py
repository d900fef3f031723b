"""Doors from other people's training loops to the pruner; they hold no mathematics and import nothing until asked."""
