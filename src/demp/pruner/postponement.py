"""Checks that wait, since a forward may still get its backward: how many in a row, and the messages about it."""

import logging

logger = logging.getLogger("demp")

PATIENCE = 3
"""Checks in a row that are put off before a warning: a forward of the next step is freed by then."""


class Postponement:
    """Counts checks that are put off, one after the other; ``waiting``: the last one still is, maybe of a saved run."""

    def __init__(self) -> None:
        self.count, self.waiting = 0, False

    def put_off(self, step: int, held: str, *, logs: bool) -> None:
        """One more; ``held`` is what holds the forward. Only the main process ``logs`` it."""
        self.count, self.waiting = self.count + 1, True
        if logs and self.count == 1:
            logger.info("cut at step %d postponed: a forward still waits for its backward", step)
        if logs and self.count == PATIENCE:
            logger.warning("%s", advice(step, held))

    def end(self) -> None:
        """Reset the count of postponed checks, since a check is made now."""
        self.count, self.waiting = 0, False


def advice(step: int, held: str) -> str:
    """What is held, and how to let go of it."""
    return (
        f"the last {PATIENCE} checks, up to step {step}, were postponed and nothing is cut: {held} keeps a forward "
        "alive whose backward may still come. Run forwards without a backward under torch.no_grad(), keep "
        "loss.item() or out.detach() in place of the tensor, or del it"
    )


def broken(held: str) -> str:
    """What a cut at the end of a run does to a forward that is kept alive."""
    return f"{held} keeps a forward alive; a backward through it fails after the last cut"
