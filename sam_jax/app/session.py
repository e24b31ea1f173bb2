"""The model behind the page: images are embedded ahead of the clicks, and prompts are decoded one by one.

Embedding and decoding have a thread each, so a click does not wait until another image is embedded. Everything else
runs on the event loop, so no locks are needed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sam_jax.config import SamConfig
from sam_jax.model import Sam
from sam_jax.ops.masks import frame_matrices
from sam_jax.ops.rle import Rle, counts_from_bits, rle_from_counts
from sam_jax.predictor import embed
from sam_jax.prompting.prompts import TOKEN_BUCKETS, Prompt, bucket, pack_prompts
from sam_jax.types import PAD, Prompts

TOKENS = tuple(n for n in TOKEN_BUCKETS if n >= 8)  # prompts are padded to few sizes, each of which is compiled
STABILITY_OFFSET = 1.0  # as in everything mode
MAX_AHEAD = 256  # images in the queue for embedding ahead; the oldest are dropped from a longer one
Key = TypeVar("Key")
Value = TypeVar("Value")


class EmbeddedImage(NamedTuple):
    """An image whose prompts can be decoded."""

    embedding: Float[Array, "1 h w D"]
    size: tuple[int, int]  # (H, W), pixels


class Candidate(NamedTuple):
    """One mask for a prompt, in the original frame."""

    segmentation: Rle
    area: int  # pixels
    predicted_iou: float
    stability_score: float


class PredictedMasks(NamedTuple):
    """All four masks for a prompt: the single mask first, then the three for ambiguous prompts."""

    id: str  # by which a later prompt can refine these masks
    candidates: list[Candidate]


class ModelSession:
    """Embeds images and decodes prompts for many clients at the same time.

    Example:
        ```python
        session = ModelSession(model, read)
        session.start()  # on the event loop
        predicted = await session.predict(7, Prompt(points, labels))
        ```

    Args:
        model: predicts the masks.
        read: reads the image of an id, RGB, (H, W, 3); called in another thread.
        embedding_bytes: memory for the most recently used embeddings; others are computed again when needed.
        logits_bytes: memory for the logits of the most recent predictions, which later prompts may refine.
    """

    def __init__(
        self,
        model: Sam,
        read: Callable[[int], np.ndarray],
        *,
        embedding_bytes: int = 1 << 30,
        logits_bytes: int = 1 << 28,
    ) -> None:
        self.model = model
        self._read = read
        self._embedder = ThreadPoolExecutor(1, "embed")
        self._decoder = ThreadPoolExecutor(1, "decode")
        side, grid = model.config.low_res_size, model.config.grid_size
        embedding_size = grid**2 * model.config.embedding_dim * 4  # bytes
        self._embeddings: _LruCache[int, EmbeddedImage] = _LruCache(embedding_bytes // embedding_size)
        self._logits: _LruCache[str, tuple[int, np.ndarray]] = _LruCache(logits_bytes // (4 * side**2 * 4))
        self._pending: dict[int, asyncio.Future[EmbeddedImage]] = {}
        self._urgent: OrderedDict[int, None] = OrderedDict()
        self._ahead: OrderedDict[int, None] = OrderedDict()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._compiled: Future[None] | None = None

    def start(self) -> None:
        """Starts to embed requested images, and compiles the decoder for the first click."""
        self._task = asyncio.get_running_loop().create_task(self._embed_in_turn())
        self._compiled = self._decoder.submit(self._compile)

    async def stop(self) -> None:
        """Stops both threads, and cancels the calls that still wait."""
        if self._task is not None:
            self._task.cancel()
        for future in self._pending.values():
            future.cancel()
        self._embedder.shutdown(wait=False, cancel_futures=True)
        self._decoder.shutdown(wait=False, cancel_futures=True)

    def __contains__(self, image_id: int) -> bool:
        """Returns whether an image is embedded, so that clicks on it need not wait."""
        return image_id in self._embeddings

    async def prepare(self, image_id: int) -> None:
        """Waits until clicks on an image are fast. Raises the same errors as `embed`."""
        await self.embed(image_id)
        if self._compiled is not None:
            await asyncio.shield(asyncio.wrap_future(self._compiled))

    def embed_ahead(self, images: Iterable[int]) -> None:
        """Queues images, which are embedded when nobody waits for another one."""
        for image_id in images:
            if image_id not in self._embeddings and image_id not in self._pending:
                self._ahead[image_id] = None
                self._ahead.move_to_end(image_id)
        while len(self._ahead) > MAX_AHEAD:
            self._ahead.popitem(last=False)
        self._wake.set()

    async def embed(self, image_id: int) -> EmbeddedImage:
        """Returns an image's embedding. If it must be computed, that takes precedence over images embedded ahead.

        Raises:
            UserError, OSError: the image can't be read.
        """
        found = self._embeddings.get(image_id)
        if found is not None:
            return found
        if image_id not in self._pending:
            self._pending[image_id] = asyncio.get_running_loop().create_future()
            self._urgent[image_id] = None
        elif image_id not in self._urgent:
            self._urgent[image_id] = None  # no effect if it is being embedded already
        self._ahead.pop(image_id, None)
        self._wake.set()
        # Others may wait for the same image, so it must not be cancelled when this client disconnects.
        return await asyncio.shield(self._pending[image_id])

    async def predict(self, image_id: int, prompt: Prompt, previous: tuple[str, int] | None = None) -> PredictedMasks:
        """Returns the masks for a prompt.

        Args:
            prompt: clicks and a box, in pixels of the image.
            previous: the id of an earlier prediction and the index of one of its masks, whose logits are fed back.
                It is ignored if the prediction is no longer in memory.

        Raises:
            UserError: the prompt is invalid, see `Prompt`, or the image can't be read.
        """
        embedded = await self.embed(image_id)
        if previous is not None:
            kept = self._logits.get(previous[0])
            if kept is not None and kept[0] == image_id:
                prompt = Prompt(prompt.points, prompt.labels, prompt.box, kept[1][previous[1]])
        loop = asyncio.get_running_loop()
        logits, candidates = await loop.run_in_executor(self._decoder, self._decode, embedded, prompt)
        name = secrets.token_hex(8)
        self._logits.put(name, (image_id, logits))
        return PredictedMasks(name, candidates)

    async def _embed_in_turn(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            queue = self._urgent or self._ahead
            if not queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            image_id, _ = queue.popitem(last=False)
            if image_id in self._embeddings:
                continue
            future = self._pending.setdefault(image_id, loop.create_future())
            try:
                embedded = await loop.run_in_executor(self._embedder, self._embed, image_id)
            except Exception as error:  # of any kind: it is raised in the calls that wait, and the task goes on
                future.set_exception(error)
                future.exception()  # marks it as seen: if the image was embedded ahead, nobody awaits the future
            else:
                self._embeddings.put(image_id, embedded)
                future.set_result(embedded)
            self._pending.pop(image_id)
            self._urgent.pop(image_id, None)

    def _embed(self, image_id: int) -> EmbeddedImage:
        image = self._read(image_id)
        embedding = embed(self.model, [image])
        embedding.block_until_ready()
        return EmbeddedImage(embedding, (image.shape[0], image.shape[1]))

    def _decode(self, embedded: EmbeddedImage, prompt: Prompt) -> tuple[np.ndarray, list[Candidate]]:
        config = self.model.config
        prompts = _pad_prompts(pack_prompts([[prompt]], [embedded.size], config), config)
        prediction = self.model.decode(embedded.embedding, prompts)
        logits, iou = np.asarray(prediction.low_res_logits[0, 0]), np.asarray(prediction.iou_predictions[0, 0])
        masks = [_to_rle(plane, embedded.size, config) for plane in logits]
        return logits, [Candidate(*mask[:2], float(score), mask[2]) for mask, score in zip(masks, iou, strict=True)]

    def _compile(self) -> None:
        grid, D = self.model.config.grid_size, self.model.config.embedding_dim
        nowhere = EmbeddedImage(jnp.zeros((1, grid, grid, D), self.model.dtype), (64, 64))
        self._decode(nowhere, Prompt(np.zeros((1, 2)), np.ones(1)))


def _pad_prompts(prompts: Prompts, config: SamConfig) -> Prompts:
    """Returns the same prompts with padded points and with mask logits, so that all kinds share one program."""
    B, Q, N = prompts.labels.shape
    fill = bucket(N, TOKENS) - N
    points = np.pad(prompts.points, ((0, 0), (0, 0), (0, fill), (0, 0)))
    labels = np.pad(prompts.labels, ((0, 0), (0, 0), (0, fill)), constant_values=PAD)
    if prompts.mask_logits is not None:
        return Prompts(points, labels, prompts.mask_logits, prompts.has_mask)
    nothing = np.zeros((B, Q, config.low_res_size, config.low_res_size), np.float32)
    return Prompts(points, labels, nothing, np.zeros((B, Q), bool))


def _to_rle(logits: Float[np.ndarray, "S S"], size: tuple[int, int], config: SamConfig) -> tuple[Rle, int, float]:
    """Returns the RLE, the area in pixels and the stability score of a mask in the original frame.

    The result equals that of `ops.masks.to_original_frame`, which is compiled anew for every image size. This is plain
    NumPy, and computes only the part of the image that the mask can reach.
    """
    rows, columns = frame_matrices(size, config)
    near = logits > -STABILITY_OFFSET
    if not near.any():
        return rle_from_counts(np.array([size[0] * size[1]]), size), 0, 0.0
    (y0, y1), (i0, i1) = _reach(rows, np.any(near, axis=1))
    (x0, x1), (j0, j1) = _reach(columns, np.any(near, axis=0))
    plane = rows[y0:y1, i0:i1] @ logits[i0:i1, j0:j1] @ columns[x0:x1, j0:j1].T
    mask = plane > 0
    bits = np.packbits(np.pad(mask.T, ((0, 0), (0, 1))), axis=1)
    inner, outer = (int(np.count_nonzero(plane > offset)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
    return (
        rle_from_counts(counts_from_bits(bits, size, (x0, y0)), size),
        int(np.count_nonzero(mask)),
        inner / max(1, outer),
    )


def _reach(matrix: np.ndarray, positive: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the range of rows with weights in the given columns, and the range of columns that these rows use."""
    (near,) = np.nonzero(matrix[:, positive].any(1))
    if not len(near):  # the mask is in the padding alone
        return (0, 1), (0, matrix.shape[1])
    rows = slice(near[0], near[-1] + 1)
    (used,) = np.nonzero(matrix[rows].any(0))
    return (int(near[0]), int(near[-1]) + 1), (int(used[0]), int(used[-1]) + 1)


class _LruCache(Generic[Key, Value]):
    """A cache of the most recently used entries: `count` of them, and at least one."""

    def __init__(self, count: int) -> None:
        self._count, self._entries = max(1, count), OrderedDict[Key, Value]()

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """Returns an entry, which becomes the most recently used; None if it is not in the cache."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Adds an entry, and drops the least recently used one if the cache is full."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._count:
            self._entries.popitem(last=False)
