"""The list of targets of an iterative pruning: in each round half of what is still missing goes."""

from demp.files.checks import check_at_least


def targets(target: float, start: float = 0.5, rounds: int = 5) -> tuple[float, ...]:
    """Neuron sparsity after each round.

    ``k_i = target - (target - start) / 2^i`` for ``i = 0 ... rounds``, then ``target``. Where the target is not above
    ``start``, or with 0 rounds, it is reached at once: the original list would begin above the target and overshoot.

    >>> [round(share, 3) for share in targets(0.8, start=0.5, rounds=2)]
    [0.5, 0.65, 0.725, 0.8]
    """
    check_at_least("rounds", rounds, 0)
    if target <= start or rounds == 0:
        return (target,)
    return (*(target - (target - start) * 0.5**i for i in range(rounds + 1)), target)
