"""Embeds images and texts in one space with CLIP (Radford et al. 2021), for text prompts and for search by text."""

from sam_jax.clip.model import Clip

__all__ = ["Clip"]
