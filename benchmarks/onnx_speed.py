"""Seconds and masks of exported ONNX graphs in ONNX Runtime beside the same functions in JAX, taking turns.

    python benchmarks/onnx_speed.py small --image PHOTO [--rounds 15]

The decoder answers one click, with all four masks in the size of the photograph as logits, in both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

from sam_jax import load_model, read_image
from sam_jax.config import SIZES
from sam_jax.export.folder import export_onnx
from sam_jax.export.functions import decode_embedding
from sam_jax.model import Sam
from sam_jax.modeling import encode_image, init_params, normalize_images
from sam_jax.ops.masks import to_original_frame
from sam_jax.ops.transforms import fit_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="name or path; random:vit_b for random weights of that size")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.model.startswith("random:"):
        config = SIZES[options.model.removeprefix("random:")]
        model = Sam(config, init_params(config, jax.random.key(0)))
    else:
        model = load_model(options.model)
    params, config = model.params, model.config
    image = read_image(options.image)
    frame, size = fit_image(image, config.image_size)
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(Path(folder), params, config)
        encoder, decoder = (
            onnxruntime.InferenceSession(Path(folder) / f"{name}.onnx", threads, providers=["CPUExecutionProvider"])
            for name in ("encoder", "decoder")
        )
    scaled = frame[: size[0], : size[1]].astype(np.float32)
    point = [[size[1] / 2, size[0] / 2], [0, 0]]
    low = config.low_res_size
    inputs = {
        "point_coords": np.array([point], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, low, low), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    own_encoder = jax.jit(
        lambda params, images: encode_image(
            params, normalize_images(images, jnp.array([size]), config.encoder), config
        ).transpose(0, 3, 1, 2)
    )

    @jax.jit
    def own_decoder(params, embedding, *inputs):
        logits, iou = decode_embedding(params, config, embedding, *inputs)
        return to_original_frame(logits, image.shape[:2], config, return_logits=True), iou, logits

    embedding = np.asarray(own_encoder(params, frame[None]))
    given = inputs | {"image_embeddings": embedding, "orig_im_size": np.array(image.shape[:2], np.float32)}
    ways: dict[str, tuple[Callable, Callable]] = {
        "encoder": (
            lambda: jax.block_until_ready(own_encoder(params, frame[None])),
            lambda: encoder.run(None, {"input_image": scaled})[0],
        ),
        "decoder": (
            lambda: jax.block_until_ready(own_decoder(params, embedding, *inputs.values())),
            lambda: decoder.run(None, given),
        ),
    }
    for name, (ours, theirs) in ways.items():
        one, two = jax.tree.leaves(ours())[0], jax.tree.leaves(theirs())[0]
        error, largest = np.abs(np.asarray(one) - two).max(), np.abs(two).max()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            for way, taken in zip((ours, theirs), times, strict=True):
                start = time.perf_counter()
                way()
                taken.append(1e3 * (time.perf_counter() - start))
        jax_ms, onnx_ms = (statistics.median(taken) for taken in times)
        print(
            f"{name}: JAX {jax_ms:.1f} ms, ONNX Runtime {onnx_ms:.1f} ms, ratio {onnx_ms / jax_ms:.2f}; "
            f"largest difference {error:.1e} of {largest:.1f}"
        )


if __name__ == "__main__":
    main()
