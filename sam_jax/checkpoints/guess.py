"""The config of an official checkpoint, which does not hold it, from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping

from sam_jax.checkpoints.layout import Naming, foreign_shapes
from sam_jax.config import SIZES, VIT_B, SamConfig
from sam_jax.errors import UserError

Shape = tuple[int, ...]
POSITIONS: dict[Naming, str] = {"official": "image_encoder.pos_embed", "huggingface": "vision_encoder.pos_embed"}


def guess_config(shapes: Mapping[str, Shape], naming: Naming, source: str) -> SamConfig:
    """One of `SIZES` where its shapes are these; else, of official names, a config "custom" made from the shapes.

    Shapes tell all but the decoder's heads and the colour normalisation. The official code fixes both, for a decoder
    256 wide; so a narrower or wider one, unless it is in `SIZES`, cannot be guessed. Hugging Face's files have their
    config beside them.

    Args:
        shapes: name -> shape.
        source: named in errors.

    Returns:
        a config that fits the shapes; or, where none does, the one in `SIZES` with the same position embeddings, so
        that the caller can say what is wrong.

    Raises:
        ValueError: the shapes do not tell.
    """
    positions = shapes[POSITIONS[naming]]
    alike = [c for c in SIZES.values() if positions == (1, c.grid_size, c.grid_size, c.encoder_dim)]
    for config in alike:
        if foreign_shapes(config, naming) == shapes:
            return config
    custom = _from_official_shapes(shapes) if naming == "official" else None
    if custom is not None and foreign_shapes(custom, naming) == shapes:
        if custom.prompt_dim == VIT_B.prompt_dim:
            return custom
        raise UserError(
            f"{source} has a decoder of width {custom.prompt_dim}; how many heads that has, only widths of known "
            f"models tell ({', '.join(SIZES)}): give the config"
        )
    if alike:
        return alike[0]
    raise UserError(
        f"{source} has position embeddings of shape {positions}, which no known size has ({', '.join(SIZES)}), "
        "and its other tensors do not tell a config: give it"
    )


def _from_official_shapes(shapes: Mapping[str, Shape]) -> SamConfig | None:
    """None: not the shapes of any config. A config may still differ in other tensors than those looked at here."""

    def layers(prefix: str, suffix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in shapes)

    encoder, decoder = "image_encoder.", "mask_decoder."
    layer, iou_head = f"{decoder}transformer.layers.", f"{decoder}iou_prediction_head.layers."
    try:
        _, grid, _, dim = shapes[f"{encoder}pos_embed"]
        patch_size = shapes[f"{encoder}patch_embed.proj.weight"][-1]
        depth = layers(f"{encoder}blocks.", ".norm1.weight")
        tables = [shapes[f"{encoder}blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
        sides = [(rows + 1) // 2 for rows, _ in tables]  # of the attention, patches
        prompt_dim = shapes[f"{encoder}neck.0.weight"][0]
        return SamConfig(
            name="custom",
            image_size=grid * patch_size,
            patch_size=patch_size,
            encoder_dim=dim,
            encoder_depth=depth,
            encoder_heads=dim // tables[0][1],
            encoder_mlp_ratio=shapes[f"{encoder}blocks.0.mlp.lin1.weight"][0] / dim,
            window_size=next((side for side in sides if side != grid), grid),
            global_attention_blocks=tuple(i for i, side in enumerate(sides) if side == grid),
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
