"""Finds objects by text among all masks of an image, with any model and any CLIP: no text prompt is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sam_jax.clip.model import OBJECTS_AT_ONCE, Clip
from sam_jax.errors import UserError
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.ops.rle import counts_from_rle, mask_from_counts


class TextMatch(NamedTuple):
    """A mask that matches a text, and how well."""

    record: dict[str, Any]  # of the mask generator
    similarity: float  # cosine between the embeddings of the text and the object
    margin: float  # the similarity less its mean over all objects of the image


def search(
    generator: SamAutomaticMaskGenerator, clip: Clip, image: np.ndarray, texts: Sequence[str], top: int = 5
) -> list[list[TextMatch]]:
    """Finds, for each text, the masks of everything mode that are most like it, the best first.

    CLIP ranks and does not decide: there is a best mask for a text about nothing in the image, too. `margin` helps to
    tell.

    Args:
        image: (H, W, 3), RGB, uint8.
        texts: what to look for, such as "a wheel".
        top: most masks for each text.

    Raises:
        WrongType, UserError: this is not such an image; or the texts are bad, which is found before the image is read.
    """
    if top < 1:
        raise UserError(f"expected to find at least 1 mask, got top {top}")
    wanted = clip.embed_texts(texts)
    image = generator.check_image(image)
    records = generator.generate(image)
    if not records:
        return [[] for _ in texts]
    parts = [records[i : i + OBJECTS_AT_ONCE] for i in range(0, len(records), OBJECTS_AT_ONCE)]
    objects = [
        clip.embed_objects(image, np.stack([_mask(record["segmentation"]) for record in part])) for part in parts
    ]
    similarity = wanted @ np.concatenate(objects).T
    return [
        [
            TextMatch(records[i], float(row[i]), float(row[i] - row.mean()))
            for i in np.argsort(-row, kind="stable")[:top]
        ]
        for row in similarity
    ]


def _mask(segmentation: Any) -> np.ndarray:
    if isinstance(segmentation, np.ndarray):
        return segmentation
    return mask_from_counts(counts_from_rle(segmentation), tuple(segmentation["size"]))
