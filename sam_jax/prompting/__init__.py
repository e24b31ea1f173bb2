"""Prompts: as users give them, and as training simulates them."""
