"""Metrics and zero-shot protocols."""
