"""Who trains the model: ranks, wrappers, sharded parameters, compiled code; and hooks that stay with one model."""
