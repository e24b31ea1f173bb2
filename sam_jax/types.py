"""Defines the pytrees that all parts share, and the letters of axes.

B images, Q prompts per image, N points per prompt, M masks per prompt, H W pixels, h w patches, D embedding.
Images are NHWC. Points are (x, y), boxes (x0, y0, x1, y1), sizes (h, w). Frames: `original` (the image as given),
`input` (resized to fit the model's square, padded on the right and bottom), `low_res` (a quarter of a patch).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8

Params = dict[str, Any]
"""A nested dict of arrays. Names follow the official checkpoint; digits join with `_` (`blocks_0`)."""

Record = dict[str, Any]
"""A mask as everything mode gives it; see `SamAutomaticMaskGenerator.generate`."""

AnyArray = Any  # numpy where the host makes it, jax inside a function

# Labels of a point slot. The official code knows all but PAD.
PAD = -2  # no token at all: masked out of every attention
NOT_A_POINT = -1  # the learned padding point that accompanies clicks without a box
BACKGROUND = 0
FOREGROUND = 1
BOX_TOP_LEFT = 2
BOX_BOTTOM_RIGHT = 3


class Prompts(NamedTuple):
    """Q prompts for each of B images, in the input frame, with static shapes.

    A box is two points with labels 2 and 3. Slots with label PAD do not exist for the model, so prompts of any mix
    share one shape. Build one with `sam_jax.prompting.prompts.pack_prompts`, which adds the padding point where the
    official code does.
    """

    points: Float[AnyArray, "B Q N 2"]  # (x, y), pixels of the input frame, without the half-pixel offset
    labels: Int[AnyArray, "B Q N"]
    mask_logits: Float[AnyArray, "B Q S S"] | None = None  # previous low_res logits; None: no prompt has a mask
    has_mask: Bool[AnyArray, "B Q"] | None = None  # which prompts use theirs; None: all
    text_embeddings: Float[AnyArray, "B Q T"] | None = None  # of CLIP, of length 1; None: no prompt has a text
    has_text: Bool[AnyArray, "B Q"] | None = None  # which prompts use theirs; None: all


class Prediction(NamedTuple):
    """What the decoder returns for B images with Q prompts each."""

    low_res_logits: Float[Array, "B Q M S S"]  # S = 4 h; mask where > 0
    iou_predictions: Float[Array, "B Q M"]  # unbounded estimate of each mask's IoU


class Batch(NamedTuple):
    """One training batch, in the input frame. L is the side at which logits and target masks are compared."""

    images: UInt8[AnyArray, "B S S 3"] | None  # None: `maps` are given
    sizes: Int[AnyArray, "B 2"]  # (h, w) of the part that is image, pixels of S
    masks: Bool[AnyArray, "B Q L L"]
    boxes: Float[AnyArray, "B Q 4"]  # tight (x0, y0, x1, y1), pixels of S
    valid: Bool[AnyArray, "B Q"]  # False: the slot holds no mask
    maps: dict[str, Float[AnyArray, "B _ _ _"]] | None = None  # of a frozen part of the image encoder, computed before
