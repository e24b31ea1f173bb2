"""What an image encoder is to the rest of the package: one record with everything that depends on its kind."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from sam_jax.config import EncoderConfig, SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling.common import apply
from sam_jax.types import AnyArray, Params

C = TypeVar("C", bound=EncoderConfig)
Shape = tuple[int, ...]
NOTHING = r"(?!)"  # a regular expression that is found in no name
Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


class Trunk(nn.Module, Generic[C]):
    """Base class of the encoders' modules.

    `__call__` takes normalised images (B, S, S, 3) in the input frame and returns maps (B, h, w, C) by name: "last",
    which the embedding is made of, and whatever else it has in passing: "stride_4" and so on for maps of other sizes,
    "block_2" and so on for early features. Under `jax.jit` only those that the caller uses are computed to their end.
    """

    config: C
    dtype: DTypeLike = jnp.float32  # of the arithmetic
    drop_path: float = 0.0  # rate of the last block, where the encoder has stochastic depth
    remat: bool = False  # recompute each block in the backward pass

    def __call__(
        self, images: Float[Array, "B S S 3"], deterministic: bool = True
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        raise NotImplementedError

    def finish(
        self, maps: dict[str, Float[Array, "B _ _ _"]], deterministic: bool = True
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        """Returns the same from the maps of the encoder's `first_part`, if it has one."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class EncoderPart:
    """A part of an image encoder that, if it is frozen, need not run again on an image that it has seen.

    Attributes:
        params: regular expression, searched in names below the encoder, for the params of this part.
        maps: names of its maps, all that what comes after it takes.
    """

    params: str
    maps: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Says whether a param below the encoder belongs to this part."""
        return re.search(self.params, name) is not None


@dataclasses.dataclass(frozen=True)
class TensorNames(Generic[C]):
    """How published checkpoints name an encoder's tensors.

    Attributes:
        rules: regular expressions and what they become, applied one after the other to `path/to/param` below the
            encoder. What PyTorch names have in common (digits apart, `weight`, dots) comes after them.
        landmark: name of a tensor, below the encoder, that all such files have, and by which they are known.
        landmark_shape: its shape, which tells sizes apart.
    """

    rules: Rules
    landmark: str
    landmark_shape: Callable[[C], Shape]


@dataclasses.dataclass(frozen=True)
class OfficialNames(TensorNames[C]):
    """Names in the style of segment_anything's checkpoints.

    Attributes:
        guess: shapes by name, below the encoder -> config. Where they are of no config it raises KeyError, IndexError,
            ZeroDivisionError or ValueError.
    """

    guess: Callable[[Mapping[str, Shape]], C]


@dataclasses.dataclass(frozen=True)
class HuggingFaceNames(TensorNames[C]):
    """Names in a Hugging Face `SamModel`.

    Attributes:
        to_section: config -> the encoder's own part of `vision_config`.
        from_section: `vision_config`, complete -> config, without its colours.
    """

    to_section: Callable[[C], dict[str, Any]]
    from_section: Callable[[Mapping[str, Any]], C]


@dataclasses.dataclass(frozen=True)
class Pretraining(Generic[C]):
    """A published model whose tensors start the encoder.

    Attributes:
        what: what it is, for errors.
        rules: as in `TensorNames`.
        landmarks: names of tensors by which it is known.
        unused: regular expression for the names there that are not taken over.
        zeros: regular expression for our params that it lacks and that start at zero.
        kept: regular expression for our params that it lacks and that stay as they were.
        convert: name there, tensor, config -> our param, which must come out in our shape.
    """

    what: str
    rules: Rules
    landmarks: tuple[str, ...]
    unused: str
    convert: Callable[[str, np.ndarray, C], np.ndarray]
    zeros: str = NOTHING
    kept: str = NOTHING


def _same(params: Params, old: Any, new: Any) -> Params:
    return params


@dataclasses.dataclass(frozen=True)
class Encoder(Generic[C]):
    """One kind of image encoder.

    Attributes:
        config: its class of configs, whose `kind` names it in files.
        trunk: its module.
        layers: config -> regular expressions, searched in `path/to/param` below the encoder, that say which params
            belong to the first layer, the second and so on, for layer-wise learning rates. All other params of the
            model make up the layer after those.
        flops: config -> floating point operations of the forward pass on one image.
        resize: params, config, config of another image size -> params for that size. Params that are not the
            trunk's stay.
        sizes: models with this encoder that have a name.
        official, huggingface: names in checkpoints of the whole model; None: there is no such format.
        pretraining: None: there is none.
        first_part: what the trunk can do without by `finish`, given its maps; None: the trunk is one whole.
    """

    config: type[C]
    trunk: type[Trunk[C]]
    layers: Callable[[C], tuple[str, ...]]
    flops: Callable[[C], float]
    resize: Callable[[Params, C, C], Params] = _same
    sizes: Mapping[str, SamConfig] = dataclasses.field(default_factory=dict)
    official: OfficialNames[C] | None = None
    huggingface: HuggingFaceNames[C] | None = None
    pretraining: Pretraining[C] | None = None
    first_part: EncoderPart | None = None

    def names(self, naming: str) -> TensorNames[C]:
        """Returns the names in checkpoints of the whole model.

        Args:
            naming: "official" or "huggingface".

        Raises:
            UserError: there are none with this encoder.
        """
        names, label = (self.official, "official") if naming == "official" else (self.huggingface, "Hugging Face")
        if names is None:
            raise UserError(
                f"the {self.config.kind} encoder has no {label} checkpoint format; keep the model as *.safetensors"
            )
        return names

    def init(self, config: C, key: Key[Array, ""]) -> Params:
        """Returns random float32 params of the trunk. Shapes alone: `jax.eval_shape` over this function."""
        images = jnp.zeros((1, config.image_size, config.image_size, 3))
        return self.trunk(config).init(key, images)["params"]

    def apply(
        self,
        params: Params,
        images: Float[AnyArray, "B S S 3"],
        config: C,
        *,
        dtype: DTypeLike = jnp.float32,
        drop_path: float = 0.0,
        remat: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        """Returns the trunk's maps of normalised images by name, "last" among them, in `dtype`.

        Args:
            params: of the trunk; others beside them are not looked at.
            images: from `normalize_images`, S = config.image_size.
            drop_path: rate of the last block; takes effect only with a `key`, that is in training.
            remat: recompute blocks in the backward pass, to save memory.
            key: random key of the drop path.

        Raises:
            UserError: images of another size.
        """
        side = config.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise UserError(
                f"expected images of shape (B, {side}, {side}, 3) for this image encoder, got {images.shape}; resize "
                "and pad them first (sam_jax.ops.transforms)"
            )
        module = self.trunk(config, dtype, drop_path, remat)
        rngs = None if key is None else {"drop_path": key}
        return apply(module, params, images, deterministic=key is None, rngs=rngs)

    def finish(
        self,
        params: Params,
        maps: Mapping[str, Float[AnyArray, "B _ _ _"]],
        config: C,
        *,
        dtype: DTypeLike = jnp.float32,
        drop_path: float = 0.0,
        remat: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        """Returns the trunk's maps from those of its `first_part`. The other arguments are those of `apply`."""
        module = self.trunk(config, dtype, drop_path, remat)
        rngs = None if key is None else {"drop_path": key}
        return apply(module, params, dict(maps), deterministic=key is None, rngs=rngs, method="finish")
