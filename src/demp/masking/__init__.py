"""Weights that are zero and stay zero: masks, and how a sparsity is distributed over layers."""
