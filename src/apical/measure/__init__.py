"""Measurements of a model: probes, diagnostics, statistics."""
