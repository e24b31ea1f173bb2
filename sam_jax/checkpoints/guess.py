"""The config of an official checkpoint, which does not hold it, from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from sam_jax.checkpoints.layout import PREFIXES, Naming, foreign_shapes
from sam_jax.config import VIT_B, SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling import encoders
from sam_jax.modeling.encoders.base import Encoder, Shape, TensorNames


class Published(NamedTuple):
    """A kind of checkpoints that others publish: whose names it has, and of which encoder."""

    naming: Naming
    encoder: Encoder[Any]
    names: TensorNames[Any]

    @property
    def landmark(self) -> str:
        """A tensor that only these checkpoints have."""
        return PREFIXES[self.naming] + self.names.landmark


def published_kinds() -> list[Published]:
    """Returns every kind of checkpoints that is known."""
    kinds: list[tuple[Naming, Encoder[Any], TensorNames[Any] | None]] = []
    for encoder in encoders.ENCODERS:
        kinds += [("official", encoder, encoder.official), ("huggingface", encoder, encoder.huggingface)]
    return [Published(naming, encoder, names) for naming, encoder, names in kinds if names is not None]


def recognise(tensors: Container[str], source: str) -> Published:
    """Returns the kind of a checkpoint with these names of tensors.

    Raises:
        UserError: there is none.
    """
    kinds = published_kinds()
    for kind in kinds:
        if kind.landmark in tensors:
            return kind
    raise UserError(
        f"expected a Segment Anything checkpoint with a tensor {' or '.join(kind.landmark for kind in kinds)}, "
        f"{source} has others"
    )


def guess_config(shapes: Mapping[str, Shape], naming: Naming, source: str) -> SamConfig:
    """One of the known sizes where its shapes are these; else, of official names, a config "custom" made from them.

    Shapes tell all but the decoder's heads and the colour normalisation. The official code fixes both, for a decoder
    256 wide; so a narrower or wider one, unless it is of a known size, cannot be guessed. Hugging Face's files have
    their config beside them.

    Args:
        shapes: name -> shape.
        source: named in errors.

    Returns:
        a config that fits the shapes; or, where none does, the known size with the same landmark, so that the caller
        can say what is wrong.

    Raises:
        UserError: the shapes do not tell.
    """
    kind = recognise(shapes, source)
    landmark, sizes = shapes[kind.landmark], kind.encoder.sizes
    alike = [config for config in sizes.values() if kind.names.landmark_shape(config.encoder) == landmark]
    for config in alike:
        if foreign_shapes(config, naming) == shapes:
            return config
    custom = _from_official_shapes(shapes, kind.encoder) if naming == "official" else None
    if custom is not None and foreign_shapes(custom, naming) == shapes:
        if custom.prompt_dim == VIT_B.prompt_dim:
            return custom
        raise UserError(
            f"{source} has a decoder of width {custom.prompt_dim}; how many heads that has, only widths of known "
            f"models tell ({', '.join(sizes)}): give the config"
        )
    if alike:
        return alike[0]
    raise UserError(
        f"{source} has {kind.landmark} of shape {landmark}, which no known size has ({', '.join(sizes)}), "
        "and its other tensors do not tell a config: give it"
    )


def _from_official_shapes(shapes: Mapping[str, Shape], encoder: Encoder[Any]) -> SamConfig | None:
    """None: not the shapes of any config. A config may still differ in other tensors than those looked at here."""

    def layers(prefix: str, suffix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in shapes)

    prefix, decoder = PREFIXES["official"], "mask_decoder."
    layer, iou_head = f"{decoder}transformer.layers.", f"{decoder}iou_prediction_head.layers."
    assert encoder.official is not None
    try:
        prompt_dim = shapes[f"{prefix}neck.0.weight"][0]
        own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        return SamConfig(
            name="custom",
            encoder=encoder.official.guess(own),
            prompt_dim=prompt_dim,
            mask_channels=shapes["prompt_encoder.mask_downscaling.3.weight"][0],
            decoder_depth=layers(layer, ".norm1.weight"),
            decoder_mlp_dim=shapes[f"{layer}0.mlp.lin1.weight"][0],
            decoder_heads=VIT_B.decoder_heads if prompt_dim == VIT_B.prompt_dim else 1,
            decoder_attention_downsample=prompt_dim // shapes[f"{layer}0.cross_attn_token_to_image.q_proj.weight"][0],
            num_multimask_outputs=shapes[f"{decoder}mask_tokens.weight"][0] - 1,
            iou_head_depth=layers(iou_head, ".weight"),
            iou_head_hidden_dim=shapes[f"{iou_head}0.weight"][0],
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None
