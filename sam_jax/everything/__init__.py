"""Finds all masks of an image, and masks for boxes; writes them in many formats."""
