"""Compares MobileSAM's image encoder with the original code, random weights: each map, the masks, and the time.

    python benchmarks/mobile_sam.py --official FOLDER --image PHOTO [--rounds 5]

FOLDER is a checkout of MobileSAM, which needs timm. Both run on all cores, in this process, taking turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from sam_jax import SamPredictor, load_model, read_image
from sam_jax.modeling import encode_maps

MAPS = ("stride_4", "stride_8", "stride_16", "last")


def shake(network: torch.nn.Module) -> None:
    """Gives norms, their statistics and biases values that an untrained network does not have."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith(("running_var", "bn.weight")):
                value.copy_(0.5 + noise.abs())
            elif value.ndim == 1 or name.endswith(("running_mean", "attention_biases")):
                value.add_(0.1 * noise)
    network.train()
    network.eval()  # which looks the attention biases up


def median_times(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for work, taken in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.path.insert(0, str(options.official))
    import mobile_sam

    original = mobile_sam.sam_model_registry["vit_t"]()
    shake(original)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(original.state_dict(), Path(folder) / "mobile_sam.pt")
        model = load_model(Path(folder) / "mobile_sam.pt")
    image = read_image(options.image)
    images = np.random.default_rng(0).normal(size=(1, 1024, 1024, 3)).astype(np.float32)
    encode = jax.jit(lambda params, images: encode_maps(params, images, model.config, (*MAPS, "embedding")))
    found = encode(model.params, images)
    outputs: dict[str, Any] = {}
    for name, layer in zip(MAPS, original.image_encoder.layers, strict=True):
        layer.blocks[-1].register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        outputs["embedding"] = original.image_encoder(tensor)
    for name, output in outputs.items():
        ours, theirs = np.asarray(found[name]), output.numpy()
        theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs.reshape(ours.shape)
        relative = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        print(
            f"{name}: largest error {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}, L2 {relative:.1e}"
        )
    ours, theirs = SamPredictor(model), mobile_sam.SamPredictor(original)
    point = np.array([[image.shape[1] // 2, image.shape[0] // 2]])
    ours.set_image(image)
    theirs.set_image(image)
    masks, iou, logits = ours.predict(point, np.array([1]))
    other_masks, other_iou, other_logits = theirs.predict(point, np.array([1]))
    print(
        f"a click: low-res logits {np.abs(logits - other_logits).max():.1e} of {np.abs(other_logits).max():.1f}, "
        f"predicted IoU {np.abs(iou - other_iou).max():.1e}, {(masks != other_masks).sum()} of {masks.size} mask pixels"
    )
    embed = jax.jit(lambda params, images: encode_maps(params, images, model.config)["embedding"])
    with torch.no_grad():
        jax_time, torch_time = median_times(
            lambda: embed(model.params, images).block_until_ready(),
            lambda: original.image_encoder(tensor),
            options.rounds,
        )
    print(f"encoder: {jax_time:.2f} s, PyTorch {torch_time:.2f} s, ratio {jax_time / torch_time:.2f}")


if __name__ == "__main__":
    main()
