"""Interactive prediction: encode an image once, then decode any number of masks. Names as in the official API."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sam_jax.clip.model import Clip
from sam_jax.embedding_files import load_embedding, save_embedding
from sam_jax.errors import UserError
from sam_jax.model import Sam, check_model
from sam_jax.ops.masks import to_original_frame
from sam_jax.ops.transforms import as_rgb, fit_image
from sam_jax.prompting.prompts import PROMPT_BUCKETS, Prompt, pack_prompts


class Masks(NamedTuple):
    """The masks of Q prompts on one image, M for each prompt: 3 with multimask_output, else 1."""

    masks: np.ndarray  # (Q, M, H, W), bool, original frame; float32 logits with return_logits
    iou_predictions: np.ndarray  # (Q, M), float32
    low_res_logits: np.ndarray  # (Q, M, S, S), float32, which can be fed back as mask prompts


class PredictorImage(NamedTuple):
    """What a `SamPredictor` knows of its image, which is replaced as one."""

    embedding: Float[Array, "1 h w E"]
    size: tuple[int, int]  # (H, W), original frame


class SamPredictor:
    """Predicts masks for any number of prompts on one image at a time.

    Threads may share a predictor: a call predicts on the image that was set last when the call began, never on a
    mixture. A thread that needs an image of its own makes a predictor of its own; any number may share a model.

    Example:
        ```python
        predictor = SamPredictor(load_model("vit_b"))
        predictor.set_image(image)
        masks, iou_predictions, low_res_logits = predictor.predict(np.array([[320, 210]]), np.array([1]))
        ```
    """

    def __init__(self, model: Sam, clip: Clip | None = None) -> None:
        """Creates a predictor without an image.

        Args:
            model: predicts the masks.
            clip: the CLIP that the model was trained with (`model.config.text_encoder`); needed for text prompts.

        Raises:
            WrongType: this is no model.
            UserError: the model was trained with another CLIP, or without text prompts.
        """
        check_model(model)
        if clip is not None:
            check_clip(model, clip)
        self.model, self.clip = model, clip
        self.reset_image()

    def reset_image(self) -> None:
        """Forgets the image."""
        self._image: PredictorImage | None = None

    @property
    def is_image_set(self) -> bool:
        """Whether an image is set."""
        return self._image is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """The size (H, W) of the image that is set, in pixels."""
        return self._current().size

    def get_image_embedding(self) -> Float[Array, "1 h w E"]:
        """Returns the embedding of the image that is set, in NHWC; the official code has NCHW."""
        return self._current().embedding

    def _current(self) -> PredictorImage:
        image = self._image
        if image is None:
            raise RuntimeError("no image is set; call set_image(image) first")
        return image

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encodes an image, for all later calls of `predict`.

        Args:
            image: (H, W, 3), uint8, 0-255; grey and RGBA images are accepted too.
            image_format: order of the channels, RGB or BGR.

        Raises:
            WrongType, UserError: the image is not as described. An image that was set before stays.
        """
        image = as_rgb(image, image_format)
        self.set_embedding(embed(self.model, [image]), (image.shape[0], image.shape[1]))

    def set_embedding(self, embedding: Float[Array, "1 h w E"], original_size: tuple[int, int]) -> None:
        """Sets an image by its embedding, which was computed before.

        Args:
            embedding: as `get_image_embedding` returned it, with the same model.
            original_size: (H, W) of the image, pixels.

        Raises:
            UserError: the embedding has another shape than this model's.
        """
        config = self.model.config
        expected = (1, config.grid_size, config.grid_size, config.embedding_dim)
        if embedding.shape != expected:
            raise UserError(f"expected an embedding of shape {expected}, got {embedding.shape}")
        self._image = PredictorImage(embedding, original_size)

    def save_embedding(self, path: str | Path) -> None:
        """Writes the embedding of the image that is set to a file, for `load_embedding`.

        Raises:
            RuntimeError: no image is set.
        """
        image = self._current()
        save_embedding(path, self.model, image.embedding, image.size)

    def load_embedding(self, path: str | Path) -> None:
        """Sets an image by its embedding in a file, without encoding it again.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the file is none of an embedding, or is damaged, or is of another model.
        """
        embedding, size = load_embedding(path, self.model)
        self.set_embedding(jnp.asarray(embedding), size)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        text: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicts the masks for one prompt.

        Args:
            point_coords: (N, 2), (x, y) in pixels of the original image.
            point_labels: (N,), 1 foreground and 0 background.
            box: (4,), (x0, y0, x1, y1) in pixels of the original image.
            mask_input: (1, S, S), low_res logits that an earlier call returned.
            multimask_output: predict three masks, for an ambiguous prompt; else one.
            return_logits: return logits instead of masks.
            text: what to segment, such as "a wheel"; alone or with points and box.

        Returns:
            Masks (M, H, W), bool, or logits, float32; predicted IoUs (M,), float32; low_res logits (M, S, S), float32.

        Raises:
            RuntimeError: no image is set.
            UserError: the prompt is not as described, or is outside the image; or there is a text, and the model was
                not trained with texts or the predictor has no CLIP.
        """
        prompt = Prompt(point_coords, point_labels, box, mask_input, text)
        result = self.predict_prompts([prompt], multimask_output, return_logits)
        return result.masks[0], result.iou_predictions[0], result.low_res_logits[0]

    def predict_prompts(
        self, prompts: Sequence[Prompt], multimask_output: bool = True, return_logits: bool = False
    ) -> Masks:
        """Predicts the masks for many prompts on the image that is set, up to 64 in one pass of the decoder.

        Raises the same errors as `predict`.
        """
        image = self._current()
        (prompts,) = embed_texts(self.model, self.clip, [prompts])
        return _predict(self.model, image.embedding, [prompts], [image.size], multimask_output, return_logits)[0]


def check_clip(model: Sam, clip: Clip) -> None:
    """Raises a UserError if the model takes no text prompts, or was trained with another CLIP."""
    config = model.config
    if not config.text_dim:
        raise UserError(f"model {config.name!r} was not trained for text prompts, so it takes no CLIP")
    if (config.text_encoder, config.text_dim) != (clip.config.name, clip.config.embedding_dim):
        raise UserError(
            f"model {config.name!r} was trained with CLIP {config.text_encoder!r}, whose embeddings are "
            f"{config.text_dim} wide, got {clip.config.name!r} with {clip.config.embedding_dim}"
        )


def embed_texts(model: Sam, clip: Clip | None, prompts: Sequence[Sequence[Prompt]]) -> list[list[Prompt]]:
    """Returns the prompts with the embeddings of their texts. All distinct texts pass CLIP in one batch.

    Args:
        prompts: the prompts of each image.

    Raises:
        UserError: there are texts, and the model takes none or there is no CLIP; or CLIP does not accept a text.
    """
    found: dict[str, np.ndarray] = {}
    if clip is not None:
        texts = [p.text for row in prompts for p in row if p.text is not None and p.text_embedding is None]
        texts = list(dict.fromkeys(texts))
        found = dict(zip(texts, clip.embed_texts(texts), strict=True))

    def resolve(prompt: Prompt) -> Prompt:
        if prompt.text_embedding is None and prompt.text in found:
            prompt = dataclasses.replace(prompt, text_embedding=found[prompt.text])
        prompt.checked_text(model.config)
        return prompt

    return [[resolve(prompt) for prompt in row] for row in prompts]


def embed(model: Sam, images: Sequence[np.ndarray]) -> Float[Array, "B h w E"]:
    """Returns the embeddings of RGB images, (H, W, 3), uint8, of any sizes."""
    padded, sizes = zip(*(fit_image(image, model.config.image_size) for image in images), strict=True)
    return model.encode_image(np.stack(padded), np.array(sizes, np.int32))


def predict_batch(
    model: Sam,
    images: Sequence[np.ndarray],
    prompts: Sequence[Sequence[Prompt]],
    multimask_output: bool = True,
    return_logits: bool = False,
    *,
    batch_size: int = 4,
    clip: Clip | None = None,
) -> list[Masks]:
    """Predicts masks for several images of any sizes, each with any number of prompts.

    Args:
        model: predicts the masks.
        images: RGB images, as in `SamPredictor.set_image`.
        prompts: the prompts of each image.
        multimask_output: see `SamPredictor.predict`.
        return_logits: see `SamPredictor.predict`.
        batch_size: largest number of images that pass the model together. The last images are divided into batches of
            half the size, a quarter, and so on, so that few sizes are compiled and no padding is encoded.
        clip: see `SamPredictor`; needed for prompts with texts.

    Returns:
        The masks of each image.

    Raises:
        WrongType, UserError: the number of lists of prompts is not that of images, or an image or prompt is invalid.
    """
    check_model(model)
    if len(images) != len(prompts):
        raise UserError(f"expected one list of prompts per image, got {len(images)} images, {len(prompts)} lists")
    if batch_size < 1:
        raise UserError(f"expected a batch_size of at least 1, got {batch_size}")
    images = [as_rgb(image) for image in images]
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    for row, size in zip(prompts, sizes, strict=True):
        for prompt in row:
            prompt.check(size)
    if clip is not None:
        check_clip(model, clip)
    prompts = embed_texts(model, clip, prompts)
    results: list[Masks] = []
    group = batch_size
    while len(results) < len(images):
        while group > len(images) - len(results):
            group //= 2
        part = slice(len(results), len(results) + group)
        embeddings = embed(model, images[part])
        results += _predict(model, embeddings, prompts[part], sizes[part], multimask_output, return_logits)
    return results


def _predict(
    model: Sam,
    embeddings: Float[Array, "B h w E"],
    prompts: Sequence[Sequence[Prompt]],
    sizes: Sequence[tuple[int, int]],
    multimask_output: bool,
    return_logits: bool,
) -> list[Masks]:
    # The decoder computes all four masks in any case; selecting here avoids compiling it a second time.
    outputs = slice(1, None) if multimask_output else slice(0, 1)
    at_once = PROMPT_BUCKETS[-1]
    parts: list[list[Masks]] = [[] for _ in sizes]
    for start in range(0, max(1, *(len(row) for row in prompts)), at_once):
        rows = [row[start : start + at_once] for row in prompts]
        prediction = model.decode(embeddings, pack_prompts(rows, sizes, model.config))
        for b, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            low_res = prediction.low_res_logits[b, :, outputs]
            # The padded prompts are processed too and cut off afterwards, so that only a new image size compiles.
            masks = to_original_frame(low_res, size, model.config, return_logits=return_logits)
            iou = prediction.iou_predictions[b, :, outputs]
            parts[b].append(Masks(*(np.asarray(x)[: len(row)] for x in (masks, iou, low_res))))
    # Even a single part is copied, since callers may write into their results and JAX returns read-only views.
    return [Masks(*(np.concatenate(fields) for fields in zip(*part, strict=True))) for part in parts]
