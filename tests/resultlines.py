"""Lines of results that no run made."""

MEASURED = {
    "machine": "m", "torch": "2", "eval/top1": 0.5, "neuron_sparsity": 0.5, "weight_sparsity": 0.5, "split": "test",
    "masked_share": 0.0, "flops": 1, "train_flops": 1, "train_seconds": 1.0, "flops_dense": 2, "train_flops_dense": 2,
}  # fmt: skip
"""What every result of a training says of it."""
