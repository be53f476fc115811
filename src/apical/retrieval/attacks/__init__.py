"""Attacks on a ranking."""
