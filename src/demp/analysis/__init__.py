"""What a model costs, and what could be removed from it."""
