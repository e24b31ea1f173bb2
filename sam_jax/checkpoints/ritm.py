"""Defines the family of RITM: its published checkpoints, a `.pth` with a config and a state dict.

Our names are the published ones with `/` for `.` and digits joined by `_`; the head has a part of its own. What is
numbered there and alike, the modules of a stage and the blocks of a branch, is one array with leading axes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sam_jax.checkpoints.family import Family, Naming, Rules, Shape, rename
from sam_jax.checkpoints.published import Published
from sam_jax.errors import UserError
from sam_jax.ritm.config import RITM_SIZES, RitmConfig
from sam_jax.ritm.network import init_params

RULES: Rules = (
    (r"^head/", "feature_extractor/"),
    (r"/(stage\d)/", r"/\1/{}/"),
    (r"/(branches_\d)/", r"/\1/{}/"),
    (r"/(ocr_distri_head)_", r"/\1/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
    (r"_(\d+)(?=[_/])", r"/\1"),
    (r"/3_scale$", "/3/scale"),  # of the clicks, which has no norm
    (r"/", "."),
)
MODEL_CLASS = "HRNetModel"
# What a config may hold besides what we read, and the only value that we have a network for.
# The second value is the published code's own default, which files may leave out.
FIXED: dict[str, tuple[Any, Any]] = {
    "use_rgb_conv": (False, True),
    "conv_extend": (False, False),
    "use_disks": (True, False),
    "clicks_groups": (None, None),
    "binary_prev_mask": (False, False),
}


def config_from_published(published: Mapping[str, Any], source: str) -> RitmConfig:
    """Reads the config that a published checkpoint holds: its class and the arguments that it was built with.

    Raises:
        UserError: names all that our network cannot do.
    """
    try:
        name = published["class"].rsplit(".", 1)[-1]
        arguments = {key: entry["value"] for key, entry in published["params"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected a config with 'class' and 'params' (name -> value) in {source}, got {published!r}"
        ) from error
    problems = [] if name == MODEL_CLASS else [f"class {name}, expected {MODEL_CLASS}"]
    problems += [
        f"{key} = {arguments.get(key, default)!r}, expected {only!r}"
        for key, (only, default) in FIXED.items()
        if arguments.get(key, default) != only
    ]
    ocr_width = arguments.get("ocr_width", 256)
    if name == MODEL_CLASS and isinstance(ocr_width, (int, float)) and ocr_width <= 0:
        problems.append(f"ocr_width = {ocr_width}, expected a head of object-contextual representations")
    if problems:
        raise UserError(f"{source} holds a network that sam_jax.ritm has not: {'; '.join(problems)}")
    try:
        mean, std = arguments.get("norm_mean_std") or (RitmConfig.pixel_mean, RitmConfig.pixel_std)
        return RitmConfig(
            width=arguments.get("width", 48),
            ocr_width=ocr_width,
            small=arguments.get("small", False),
            previous_mask=arguments.get("with_prev_mask", False),
            leaky_relu=arguments.get("use_leaky_relu", False),
            click_radius=float(arguments.get("norm_radius", 260)),
            pixel_mean=tuple(mean),
            pixel_std=tuple(std),
            name=f"hrnet{arguments.get('width', 48)}{'s' if arguments.get('small') else ''}",
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{source}: a config with values of other kinds than expected: {error}") from error


def _own_config(published: Published) -> RitmConfig | None:
    stored = published.stored_config
    return None if stored is None else config_from_published(stored, str(published.path))


def _guess(shapes: Mapping[str, Shape], source: str) -> RitmConfig:
    raise UserError(
        f"expected a RITM checkpoint with its 'config' beside its 'state_dict', {source} has tensors alone; "
        "they do not tell a config: give it"
    )


RITM = Family(
    label="a RITM checkpoint",
    key="sam_jax_ritm_config",
    config=RitmConfig,
    init=init_params,
    sizes=RITM_SIZES,
    namings=(
        Naming(
            name="published",
            landmarks=("maps_transform.", "config.class"),
            rename=lambda ours, _: rename(ours, RULES),
            guess=_guess,
            own_config=_own_config,
            unused=r"\.num_batches_tracked$",  # of training
        ),
    ),
)
