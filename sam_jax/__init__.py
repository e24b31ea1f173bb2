"""Segment Anything in JAX and Flax."""
