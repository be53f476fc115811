"""Experiments as values: their settings, what fits together, their JSON form and their key."""
