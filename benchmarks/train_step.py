"""Times a training step against the same step written plainly in PyTorch on Hugging Face's `SamModel`.

    python benchmarks/train_step.py                                                  # CPU: ViT-B at 512, float32
    python benchmarks/train_step.py --image-size 1024 --masks 64 --dtype bfloat16 --models vit_b vit_l vit_h   # GPU

Both get a process of their own and take turns, with the same weights, image and truth. A step encodes the images,
plays the paper's 11 rounds (a click, 8 clicks from the error region, 2 rounds without a new one), and updates with
AdamW; first with the image encoder trained, then with it frozen. Before anything is timed, both play the same clicks
from the same weights: the losses of every round must agree.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from workers import Worker, serve

from sam_jax.config import SIZES, DataConfig, FinetuneConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig

DECODER_ONLY = r"^(mask_decoder|prompt_encoder)/"


def make_config(options: argparse.Namespace, model: str, frozen: bool, rounds: tuple[int, int] = (8, 2)) -> TrainConfig:
    point_rounds, refine_rounds = rounds
    return TrainConfig(
        out=Path("unused"),
        model=SIZES[model].with_image_size(options.image_size),
        data=DataConfig(batch_size=options.batch, masks_per_image=options.masks),
        prompts=PromptConfig(point_rounds, refine_rounds, box_probability=0.0),
        loss=LossConfig(size=options.image_size // 4),
        optimizer=OptimizerConfig(learning_rate=1e-5, layer_decay=1.0, weight_decay=0.1),
        finetune=FinetuneConfig(trainable=DECODER_ONLY if frozen else ""),
        drop_path=0.0,
        decoder_dropout=0.0,
        dtype=options.dtype,
        remat=options.remat,
    )


def make_batch(config: TrainConfig) -> dict[str, np.ndarray]:
    """Noise with bright ellipses, which are the masks."""
    rng = np.random.default_rng(0)
    side, small, Q = config.model.image_size, config.loss.size, config.data.masks_per_image
    B = config.data.batch_size
    images = rng.integers(0, 90, (B, side, side, 3)).astype(np.uint8)
    ys, xs = np.mgrid[:small, :small] / small
    masks = np.zeros((B, Q, small, small), bool)
    for b, q in np.ndindex(B, Q):
        x, y, w, h = rng.uniform([0.2, 0.2, 0.06, 0.06], [0.8, 0.8, 0.2, 0.2])
        masks[b, q] = ((xs - x) / w) ** 2 + ((ys - y) / h) ** 2 < 1
        images[b][masks[b, q].repeat(side // small, 0).repeat(side // small, 1)] = rng.integers(90, 255, 3)
    return {"images": images, "masks": masks}


def ours(options: argparse.Namespace) -> Callable[[str], Any]:
    import time

    import jax
    from official import random_params

    from sam_jax.training.loop import compile_program
    from sam_jax.training.sam import sam_task
    from sam_jax.training.step import run_rounds
    from sam_jax.types import Batch

    def as_batch(config: TrainConfig) -> Batch:
        made = make_batch(config)
        B, Q = made["masks"].shape[:2]
        sizes = np.full((B, 2), config.model.image_size, np.int32)
        return Batch(made["images"], sizes, made["masks"], np.zeros((B, Q, 4), np.float32), np.ones((B, Q), bool))

    @functools.cache
    def prepare(model: str, frozen: bool) -> tuple[Any, Any, list]:
        config = make_config(options, model, frozen)
        params = random_params(config.model)
        program = compile_program(sam_task(config, params), params)
        return program, as_batch(config), [program.init(params)]

    def run(task: str) -> Any:
        request = json.loads(task)
        model = request["model"]
        if request["what"] == "clicks":
            config = make_config(options, model, True, (options.check_rounds, 0))
            play = jax.jit(functools.partial(run_rounds, config=config, training=False))
            rounds = jax.device_get(play(random_params(config.model), as_batch(config), jax.random.key(0)))
            keep = [0, *range(2, rounds.labels.shape[-1])]  # without the padding point
            losses = {name: rounds.terms[name].mean((1, 2)).tolist() for name in ("focal", "dice", "iou_error")}
            clicks = {"points": rounds.points[:, :, keep].tolist(), "labels": rounds.labels[:, :, keep].tolist()}
            return clicks | {"losses": losses}
        program, batch, state = prepare(model, request["frozen"])
        start = time.perf_counter()
        state[0], metrics = program.step(state[0], batch, jax.random.key(1))
        jax.block_until_ready((state[0], metrics))
        return {"seconds": time.perf_counter() - start}

    return run


def huggingface(options: argparse.Namespace) -> Callable[[str], Any]:
    import time

    import torch
    import transformers
    from official import random_params
    from torch.nn import functional as F

    from sam_jax.checkpoints import state_from_params
    from sam_jax.checkpoints.huggingface import config_to_huggingface

    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=options.dtype == "bfloat16")

    def build(config: TrainConfig, frozen: bool) -> tuple[Any, Any, Any, Any]:
        model = transformers.SamModel(transformers.SamConfig(**config_to_huggingface(config.model)))
        state = state_from_params(random_params(config.model), config.model, "huggingface")
        model.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in state.items()}, strict=True)
        model.shared_image_embedding.requires_grad_(False)
        model.vision_encoder.requires_grad_(not frozen)
        if config.remat and not frozen:
            model.gradient_checkpointing_enable()
        model.to(device).train()
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-5, weight_decay=0.1, fused=device == "cuda")
        made = make_batch(config)
        pixels = (made["images"] - np.array(config.model.encoder.pixel_mean)) / np.array(config.model.encoder.pixel_std)
        images = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32, device=device)
        return model, optimizer, images, torch.tensor(made["masks"], device=device)

    def play(
        model: Any, images: Any, masks: Any, config: TrainConfig, rounds: tuple[int, int], clicks: Any = None
    ) -> Any:
        """(focal, dice, IoU error) of every round, means over the masks; `clicks` in place of drawn ones."""
        B, Q, side = masks.shape[:3]
        truth = masks.float().flatten(0, 1)
        with autocast():
            embeddings = model.vision_encoder(images).last_hidden_state
            positions = model.get_image_wide_positional_embeddings().to(device)
        embeddings = embeddings.repeat_interleave(Q, 0)  # a prompt's mask is added to the image that it is about
        positions = positions.repeat(B * Q, 1, 1, 1)

        def draw(region: Any) -> Any:
            index = torch.multinomial(region.flatten(1).float() + 1e-12, 1)[:, 0]
            pixel = torch.stack([index % side, index // side], -1)
            return index, ((pixel + 0.5) * (config.model.image_size / side) - 0.5)[:, None, None]

        point_rounds, refine_rounds = rounds
        adds = [True] * point_rounds
        for _ in range(refine_rounds - 1):
            adds.insert(np.random.default_rng(0).integers(len(adds) + 1), False)
        adds += [False] * min(refine_rounds, 1)
        if clicks is None:
            _, points = draw(truth)
            labels = torch.ones((B * Q, 1, 1), dtype=torch.int, device=device)
        logits, terms = None, []
        for turn in range(1 + len(adds)):
            if clicks is not None:
                points, labels = (part[:, None, : 1 + turn] for part in clicks)
            elif turn and adds[turn - 1]:
                error = (upscaled[:, 0] > 0) != (truth > 0)  # noqa: F821  of the last turn
                index, point = draw(error)
                label = truth.flatten(1).gather(1, index[:, None])[:, :, None].int()
                points, labels = torch.cat([points, point], 2), torch.cat([labels, label], 2)
            with autocast():
                sparse, dense = model.prompt_encoder(points, labels, None, logits)
                low_res, iou = model.mask_decoder(
                    image_embeddings=embeddings,
                    image_positional_embeddings=positions,
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=turn == 0,
                )
            low_res, iou = low_res[:, 0].float(), iou[:, 0].float()
            upscaled = F.interpolate(low_res, (side, side), mode="bilinear", align_corners=False)
            target = truth[:, None].expand_as(upscaled)
            p = upscaled.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(upscaled, target, reduction="none")
            p_t = p * target + (1 - p) * (1 - target)
            focal = ((0.25 * target + 0.75 * (1 - target)) * (1 - p_t) ** 2 * entropy).mean((-2, -1))
            total = p.sum((-2, -1)) + target.sum((-2, -1))
            dice = 1 - (2 * (p * target).sum((-2, -1)) + 1) / (total + 1)
            with torch.no_grad():
                found = (upscaled > 0).float()
                overlap = (found * target).sum((-2, -1))
                true_iou = overlap / (found.sum((-2, -1)) + target.sum((-2, -1)) - overlap).clamp(min=1)
            best = (20 * focal + dice).argmin(-1, keepdim=True)
            terms.append([x.gather(-1, best).mean() for x in (focal, dice, (iou - true_iou) ** 2)])
            trusted = iou.argmax(-1)[:, None, None, None]
            logits = low_res.gather(1, trusted.expand(-1, 1, *low_res.shape[2:]))
            upscaled = upscaled.gather(1, trusted.expand(-1, 1, side, side)).detach()
        return terms

    @functools.cache
    def prepare(model: str, frozen: bool) -> tuple[Any, ...]:
        config = make_config(options, model, frozen)
        return config, *build(config, frozen)

    def run(task: str) -> Any:
        request = json.loads(task)
        name = request["model"]
        if request["what"] == "losses":
            config = make_config(options, name, True, (options.check_rounds, 0))
            model, _, images, masks = build(config, True)
            clicks = (
                torch.tensor(request["points"], device=device).flatten(0, 1).float(),
                torch.tensor(request["labels"], device=device).flatten(0, 1),
            )
            with torch.no_grad():
                terms = play(model, images, masks, config, (options.check_rounds, 0), clicks)
            rows = [[float(value) for value in row] for row in terms]
            return dict(zip(("focal", "dice", "iou_error"), map(list, zip(*rows, strict=True)), strict=True))
        config, model, optimizer, images, masks = prepare(name, request["frozen"])
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        terms = play(model, images, masks, config, (8, 2))
        sum(20 * focal + dice + error for focal, dice, error in terms).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - start}

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_b"], choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="pictures")
    parser.add_argument("--masks", type=int, default=16, help="per image")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--remat", action="store_true", help="recompute activations in the backward pass, in both")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--check-rounds", type=int, default=3, help="rounds after the first whose losses are compared")
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    parser.add_argument("--serve", choices=["sam_jax", "huggingface"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve({"sam_jax": ours, "huggingface": huggingface}[options.serve](options))
        return 0

    workers = {
        name: Worker(name, [sys.executable, __file__, *sys.argv[1:], "--serve", name])
        for name in ("sam_jax", "huggingface")
    }
    results: dict[str, Any] = {}
    agree = True
    for model in options.models:
        clicks = workers["sam_jax"].ask(json.dumps({"what": "clicks", "model": model}))
        theirs = workers["huggingface"].ask(json.dumps({"what": "losses", "model": model} | clicks))
        error = max(
            abs(a - b) / max(abs(b), 1e-3)
            for name, values in clicks["losses"].items()
            for a, b in zip(values, theirs[name], strict=True)
        )
        allowed = 1e-3 if options.dtype == "float32" else 0.1
        agree &= error < allowed
        print(f"{model}: losses of {1 + options.check_rounds} rounds differ by a share of at most {error:.1e}")
        for frozen in (False, True):
            times: dict[str, list[float]] = {name: [] for name in workers}
            task = json.dumps({"what": "step", "model": model, "frozen": frozen})
            for turn in range(1 + options.rounds):
                for name, worker in workers.items():
                    seconds = worker.ask(task)["seconds"]
                    if turn:  # the first compiles
                        times[name].append(seconds)
            encoder = "frozen" if frozen else "trained"
            results[f"{model}, encoder {encoder}"] = times | {"relative_error": error}
            medians = {name: statistics.median(values) for name, values in times.items()}
            speeds = [
                f"{name} {median:.3g} s ({options.batch / median:.3g} images/s, "
                f"{options.batch * options.masks / median:.3g} masks/s)"
                for name, median in medians.items()
            ]
            ratio = medians["huggingface"] / medians["sam_jax"]
            print(f"{model}, encoder {encoder}: {'; '.join(speeds)}; we are {ratio:.2f} times as fast", flush=True)
    for worker in workers.values():
        worker.end()
    if options.out:
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(json.dumps({"options": vars(options), "seconds": results}, default=str, indent=1))
        temporary.replace(options.out)
    if not agree:
        print(f"the losses do not agree within {allowed}: these are not the same step", file=sys.stderr)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
