"""The mechanism: what converting a model changes about its backward pass."""
