"""What pushes neurons towards removal from outside the loss."""

from demp.regularization.scales import OutputScales, Shrink

__all__ = ["OutputScales", "Shrink"]
