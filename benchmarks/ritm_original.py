"""A checkout of github.com/SamsungLabs/ritm_interactive_segmentation to compare with, and random weights for both."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from sam_jax.checkpoints import expected_shapes, state_from_params
from sam_jax.ritm import RitmConfig
from sam_jax.types import Params


def use_original(folder: Path) -> None:
    """`import isegm` works after this.

    It is of 2021: names that NumPy has dropped come back. What it imports of torchvision and TensorBoard is a
    conversion and a log that is not written: where they are missing, these stand in.
    """
    sys.path.insert(0, str(folder))
    for name, kind in {"int": int, "bool": bool, "float": float}.items():
        if not hasattr(np, name):
            setattr(np, name, kind)
    stand_ins: dict[str, dict[str, Any]] = {
        "torchvision": {"transforms": types.SimpleNamespace(ToTensor=_ToTensor)},
        "torch.utils.tensorboard": {"SummaryWriter": object},
    }
    for name, contents in stand_ins.items():
        try:
            __import__(name)
        except ImportError:
            module = types.ModuleType(name)
            module.__dict__.update(contents)
            sys.modules[name] = module


class _ToTensor:
    def __call__(self, image: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(image.transpose(2, 0, 1).copy()).float().div(255)


def original_model(params: Params, config: RitmConfig) -> Any:
    """The original network with our weights; call `use_original` first."""
    import torch
    from isegm.model.is_hrnet_model import HRNetModel  # pyright: ignore[reportMissingImports]

    model = HRNetModel(
        width=config.width,
        ocr_width=config.ocr_width,
        small=config.small,
        with_aux_output=True,
        use_leaky_relu=config.leaky_relu,
        use_rgb_conv=False,
        use_disks=True,
        norm_radius=config.click_radius,
        with_prev_mask=config.previous_mask,
    )
    state = {name: torch.tensor(array) for name, array in state_from_params(params, config, "published").items()}
    missing, extra = model.load_state_dict(state, strict=False)
    assert not extra
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return model.eval().requires_grad_(False)


def original_logits(
    model: Any, image: np.ndarray, previous: np.ndarray | None, points: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """(H, W) logits of one image (H, W, 3), 0-1; points (x, y)."""
    import torch

    channels = [image.transpose(2, 0, 1)] + ([previous[None]] if previous is not None else [])
    slots = np.full((2 * len(points), 3), -1, np.float32)
    for kind, first in ((1, 0), (0, len(points))):
        rows = points[labels == kind][:, ::-1]
        slots[first : first + len(rows), :2] = rows
    inputs = torch.from_numpy(np.concatenate(channels)[None].copy())
    return model(inputs, torch.from_numpy(slots[None]))["instances"][0, 0].numpy()


def original_predictor(
    model: Any, image: np.ndarray, **zoom: Any
) -> Callable[[tuple[int, int], int], tuple[np.ndarray, tuple[int, int, int, int] | None]]:
    """The predictor of the published evaluation, with its settings, on one object in an image.

    Args:
        zoom: what is to differ from these settings in the original's ZoomIn.

    Returns:
        point (x, y) and label of one more click -> probabilities (H, W) and box.
    """
    import torch
    from isegm.inference.clicker import Click, Clicker  # pyright: ignore[reportMissingImports]
    from isegm.inference.predictors import get_predictor  # pyright: ignore[reportMissingImports]

    settings = {"target_size": 400} | zoom
    predictor = get_predictor(model, "NoBRS", torch.device("cpu"), prob_thresh=0.49, zoom_in_params=settings)
    predictor.set_input_image(image)
    clicker = Clicker()

    def answer(point: tuple[int, int], label: int) -> tuple[np.ndarray, tuple[int, int, int, int] | None]:
        clicker.add_click(Click(is_positive=bool(label), coords=(int(point[1]), int(point[0]))))
        probabilities = predictor.get_prediction(clicker)
        box = predictor.zoom_in._object_roi
        return probabilities, None if box is None else tuple(int(end) for end in box)

    return answer


def random_params(config: RitmConfig, seed: int = 0, clicks: float = 1.0, threshold: float = 0.0) -> Params:
    """Weights that keep the magnitude of what passes; nothing is zero or one, which would hide mistakes.

    Args:
        clicks: weight of clicks and previous mask beside the image. A large one gives masks near the clicks.
        threshold: is subtracted from the logits.
    """
    random = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random.normal(size=shape).astype(np.float32)
        if name.endswith("kernel"):
            return noise * np.float32(2 / np.prod(shape[:-1])) ** 0.5
        if name.endswith("var"):
            return 1 + 0.3 * np.abs(noise)
        if name.endswith("scale"):
            return (0.3 if "bn2/" in name or "bn3/" in name else 0.9) * (1 + 0.2 * noise)
        return 0.1 * noise

    flat = {name: draw(name, shape) for name, shape in sorted(expected_shapes(config).items())}
    flat["maps_transform_3_scale"][:] = clicks
    flat["head/cls_head/bias"] -= np.float32(threshold)
    return unflatten_dict(flat, sep="/")
