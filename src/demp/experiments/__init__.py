"""Many trainings: sweeps, comparisons, the studies of the paper, its theory, and the report on all of them."""
