"""CLIP (Radford et al. 2021): images and texts embedded in one space, for text prompts and for search by text."""

from sam_jax.clip.model import Clip

__all__ = ["Clip"]
