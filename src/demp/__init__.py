"""demp: train a PyTorch network that gets smaller while it learns."""

__version__ = "0.1.0"
