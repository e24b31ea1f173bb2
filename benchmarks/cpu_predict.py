"""Times prediction on this machine's CPU against the implementations that people can install.

    python benchmarks/cpu_predict.py [--official PATH] [--keras-python PATH] [--out times.json]

Every implementation gets a process of its own, and the measurements go round: one of ours, one of each peer, and again,
so that a machine that slows down does so for all. Weights are random, for time does not depend on them; arithmetic is
float32 on all cores. `encode` is one normalised image to its embedding; `decode Q` is Q prompts of one click on an
embedded image to low-resolution logits of three masks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from workers import Worker, serve

IMAGE_SIZE = 1024
Task = Callable[[], Any]  # does the work and returns when it is done


def clicks(count: int) -> np.ndarray:
    """(count, 2) points (x, y), pixels of the input frame."""
    return np.random.default_rng(0).uniform(0, IMAGE_SIZE, (count, 2)).astype(np.float32)


def make_image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)


def ours() -> tuple[Task, Callable[[int], Task]]:
    import jax
    import jax.numpy as jnp

    from sam_jax.config import VIT_B
    from sam_jax.modeling import decode_masks, encode_image, encode_prompts, init_params
    from sam_jax.types import FOREGROUND, NOT_A_POINT, Prompts

    params = init_params(VIT_B, jax.random.key(0))
    image = jnp.asarray(make_image())
    encode = jax.jit(lambda params, image: encode_image(params, image, VIT_B))

    @jax.jit
    def decode(params, embedding, prompts):
        return decode_masks(params, embedding, encode_prompts(params, prompts, VIT_B), VIT_B, multimask_output=True)

    embedding = encode(params, image)

    def decode_task(count: int) -> Task:
        xy = clicks(count)[None, :, None]
        points = jnp.asarray(np.concatenate([xy, np.zeros_like(xy)], 2))
        prompts = Prompts(points, jnp.broadcast_to(jnp.array([FOREGROUND, NOT_A_POINT]), points.shape[:3]))
        return lambda: jax.block_until_ready(decode(params, embedding, prompts))

    return lambda: jax.block_until_ready(encode(params, image)), decode_task


def official(folder: str) -> tuple[Task, Callable[[int], Task]]:
    """The reference implementation, from a checkout of github.com/facebookresearch/segment-anything."""
    import torch
    from official import use_official

    torch.set_num_threads(os.cpu_count() or 1)
    use_official(Path(folder))
    from segment_anything import sam_model_registry  # pyright: ignore[reportMissingImports]

    model = sam_model_registry["vit_b"]().eval()
    image = torch.from_numpy(make_image()).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def encode():
        return model.image_encoder(image)

    embedding = encode()

    def decode_task(count: int) -> Task:
        points, labels = torch.from_numpy(clicks(count))[:, None], torch.ones(count, 1)

        @torch.no_grad()
        def decode():
            sparse, dense = model.prompt_encoder(points=(points, labels), boxes=None, masks=None)
            return model.mask_decoder(embedding, model.prompt_encoder.get_dense_pe(), sparse, dense, True)

        return decode

    return encode, decode_task


def huggingface() -> tuple[Task, Callable[[int], Task]]:
    import torch
    from transformers import SamConfig, SamModel

    torch.set_num_threads(os.cpu_count() or 1)
    model = SamModel(SamConfig()).eval()
    image = torch.from_numpy(make_image()).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def encode():
        return model.get_image_embeddings(image)

    embedding = encode()

    def decode_task(count: int) -> Task:
        points, labels = torch.from_numpy(clicks(count))[None, :, None], torch.ones(1, count, 1, dtype=torch.long)

        @torch.no_grad()
        def decode():
            return model(image_embeddings=embedding, input_points=points, input_labels=labels, multimask_output=True)

        return decode

    return encode, decode_task


def kerashub() -> tuple[Task, Callable[[int], Task]]:
    """KerasHub on its JAX backend, jitted."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import jax.numpy as jnp
    import keras_hub  # pyright: ignore[reportMissingImports]

    encoder = keras_hub.models.ViTDetBackbone(
        hidden_size=768,
        num_layers=12,
        intermediate_dim=3072,
        num_heads=12,
        global_attention_layer_indices=[2, 5, 8, 11],
        image_shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
        patch_size=16,
        num_output_channels=256,
        window_size=14,
        dtype="float32",
    )
    prompter = keras_hub.layers.SAMPromptEncoder(
        hidden_size=256, image_embedding_size=(64, 64), input_image_size=(IMAGE_SIZE,) * 2, mask_in_channels=16
    )
    decoder = keras_hub.layers.SAMMaskDecoder(
        num_layers=2,
        hidden_size=256,
        intermediate_dim=2048,
        num_heads=8,
        embedding_dim=256,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
    image = jnp.asarray(make_image())

    def call(layer, values, *args, **kwargs):
        return layer.stateless_call(*values, *args, **kwargs)[0]

    def values_of(layer):
        return [v.value for v in layer.trainable_variables], [v.value for v in layer.non_trainable_variables]

    encode = jax.jit(lambda values, image: call(encoder, values, image))
    encoder_values = values_of(encoder)
    embedding = encode(encoder_values, image)

    @jax.jit
    def decode(values, embedding, points, labels):
        return call(decoder, values[1], embedding, **prompt_keywords(call(prompter, values[0], None, points, labels)))

    def prompt_keywords(prompts: dict) -> dict:
        names = ("dense_positional_embeddings", "sparse_embeddings", "dense_embeddings")
        return {f"prompt_{name}": prompts[f"prompt_{name}"] for name in names}

    def decode_task(count: int) -> Task:
        xy = clicks(count)[:, None]
        points = jnp.asarray(np.concatenate([xy, np.zeros_like(xy)], 1))
        labels = jnp.broadcast_to(jnp.array([1.0, -1.0]), points.shape[:2])
        # The layers make their variables at their first call.
        decoder(embedding, **prompt_keywords(prompter(points=points[:1], labels=labels[:1])))
        values = values_of(prompter), values_of(decoder)
        return lambda: jax.block_until_ready(decode(values, embedding, points, labels))

    return lambda: jax.block_until_ready(encode(encoder_values, image)), decode_task


def timer(name: str, official_folder: str) -> Callable[[str], float]:
    """Task -> the seconds that it takes this implementation."""
    builders = {"sam_jax": ours, "official": lambda: official(official_folder)}
    builders |= {"huggingface": huggingface, "kerashub": kerashub}
    encode, decode_task = builders[name]()
    tasks: dict[str, Task] = {"encode": encode}

    def seconds(task: str) -> float:
        if task not in tasks:
            tasks[task] = decode_task(int(task.split()[1]))
            tasks[task]()
        start = time.perf_counter()
        tasks[task]()
        return time.perf_counter() - start

    return seconds


def report(times: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown table of medians, and of ours over theirs."""
    names = list(next(iter(times.values())))
    lines = [
        "| seconds (median) | " + " | ".join(names) + " | " + " | ".join(f"ours / {name}" for name in names[1:]) + " |"
    ]
    lines.append("|---" * (2 * len(names)) + "|")
    for task, by_name in times.items():
        medians = {name: statistics.median(values) for name, values in by_name.items()}
        cells = [f"{value:.3f}" for value in medians.values()]
        cells += [f"{medians[names[0]] / medians[name]:.2f}" for name in names[1:]]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", default="", metavar="PATH", help="folder that holds segment_anything/")
    parser.add_argument("--keras-python", default="", metavar="PATH", help="a Python that has jax and keras-hub")
    parser.add_argument("--no-huggingface", action="store_true", help="leave out transformers.SamModel")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 64], help="prompts to decode together")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--out", type=Path, help="write all times as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(timer(options.serve, options.official))
    if options.official and not (Path(options.official) / "segment_anything").is_dir():
        parser.error(f"--official: expected a folder that holds segment_anything/, got {options.official}")

    pythons = {"sam_jax": sys.executable}
    if options.official:
        pythons["official"] = sys.executable
    if not options.no_huggingface:
        pythons["huggingface"] = sys.executable
    if options.keras_python:
        pythons["kerashub"] = options.keras_python
    workers = [
        Worker(name, [python, __file__, "--serve", name, "--official", options.official])
        for name, python in pythons.items()
    ]
    times: dict[str, dict[str, list[float]]] = {}
    for task in ["encode", *(f"decode {count}" for count in options.prompts)]:
        times[task] = {worker.name: [] for worker in workers}
        for worker in workers:
            worker.ask(task)  # warm-up
        for i in range(options.rounds):
            for worker in workers:
                times[task][worker.name].append(worker.ask(task))
            print(f"{task}: round {i + 1} of {options.rounds}", file=sys.stderr)
    for worker in workers:
        worker.end()
    print(f"ViT-B at {IMAGE_SIZE}, float32, {os.cpu_count()} cores, {options.rounds} rounds\n")
    print(report(times))
    if options.out:
        options.out.write_text(json.dumps(times, indent=1))


if __name__ == "__main__":
    main()
