"""Attacks on trained nets, as runs of their own."""
