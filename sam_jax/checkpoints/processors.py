"""Reads what a Hugging Face folder says of preparing images: colours are taken, other settings must be ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sam_jax.errors import UserError

BILINEAR, BICUBIC = 2, 3  # Pillow's numbers
COLOURS = ("do_rescale", "do_normalize")  # switches that are taken with the colours
HARMLESS = ("do_convert_rgb",)  # images are always made RGB
Colour = tuple[float, float, float]


def square(side: int) -> dict[str, int]:
    """Returns a size as processors write it."""
    return {"height": side, "width": side}


def read_colours(
    processor: Mapping[str, Any], source: str, default_mean: Colour, default_std: Colour
) -> tuple[Colour, Colour]:
    """Returns what is subtracted from RGB values of 0-255, and what divides them afterwards.

    Images are multiplied by `rescale_factor` there, and normalised afterwards; each of the two may be switched off.

    Args:
        source: where the processor is from, for the error.
        default_mean, default_std: of what it leaves out.

    Raises:
        UserError: a value is no number, or no three of them.
    """
    try:
        factor = float(processor.get("rescale_factor") or 1 / 255) if _is_on(processor, "do_rescale") else 1.0
        if not _is_on(processor, "do_normalize"):
            return (0.0, 0.0, 0.0), (1 / factor, 1 / factor, 1 / factor)
        mean, std = (
            default if processor.get(key) is None else _in_pixels(processor[key], factor)
            for key, default in (("image_mean", default_mean), ("image_std", default_std))
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{source}: expected image_mean and image_std of three numbers each and a rescale_factor, got "
            f"{str({key: processor.get(key) for key in ('image_mean', 'image_std', 'rescale_factor')})[:200]}: {error}"
        ) from error
    return mean, std


def check_processor(processor: Mapping[str, Any], source: str, **expected: Any) -> None:
    """Refuses settings that this package does not have.

    Args:
        expected: by the step that it belongs to, the size that images are resized to (`size`), that they are padded to
            (`pad`) or cropped to (`crop`), and Pillow's number of the interpolation (`resample`).

    Raises:
        UserError: names all of them.
    """
    steps = {"do_resize": "size", "do_pad": "pad", "do_center_crop": "crop"}
    sizes = {"size": "size", "pad": "pad_size", "crop": "crop_size"}
    problems = []
    for switch, step in steps.items():
        if step in expected and not _is_on(processor, switch):
            problems.append(f"{switch} must be true, got {processor[switch]!r}")
        elif step in expected and not _same_size(given := processor.get(sizes[step]), expected[step]):
            problems.append(f"{sizes[step]} must be {expected[step]}, got {str(given)[:80]}")
    known = {*COLOURS, *HARMLESS, *(switch for switch, step in steps.items() if step in expected)}
    others = [key for key, value in processor.items() if key.startswith("do_") and value and key not in known]
    problems += [f"{key} must be false, got {str(processor[key])[:80]}" for key in others]
    if (given := processor.get("resample")) not in (None, expected["resample"]):
        problems.append(f"resample must be {expected['resample']}, got {str(given)[:80]}")
    if problems:
        raise UserError(
            f"{source}: a processor with settings that this package does not have:\n  " + "\n  ".join(problems)
        )


def _is_on(processor: Mapping[str, Any], switch: str) -> bool:
    return processor.get(switch) is not False and processor.get(switch) != 0


def _same_size(given: Any, expected: Mapping[str, int]) -> bool:
    """Returns whether a size is the expected one; old files give the number of a side alone, new ones add nulls."""
    if isinstance(given, Mapping):
        given = {key: value for key, value in given.items() if value is not None}
    return given is None or given == expected or given in expected.values()


def _in_pixels(values: Any, factor: float) -> Colour:
    # Eight decimals undo the division by 255 exactly, for constants that were written by hand.
    red, green, blue = (round(float(value) / factor, 8) for value in values)
    return red, green, blue
