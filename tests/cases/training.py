"""A training config, a batch and a folder of examples for small models."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from cases.models import DETECTOR, SMALL
from sam_jax.config import DataConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig
from sam_jax.data.examples import Example
from sam_jax.ops.rle import encode_rle
from sam_jax.training.detector.config import DetectorTrainConfig, SamplingConfig
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import init_state, train_step
from sam_jax.types import Batch


def make_config(**changes) -> TrainConfig:
    base = TrainConfig(
        out=Path("unused"),
        model=SMALL,
        data=DataConfig(batch_size=2, masks_per_image=3),
        prompts=PromptConfig(point_rounds=2, refine_rounds=2),
        loss=LossConfig(size=32),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=5, decay_steps=(), layer_decay=1.0, clip_norm=1.0),
        drop_path=0.0,
        decoder_dropout=0.0,
        remat=False,
    )
    return dataclasses.replace(base, **changes)


def make_detector_config(**changes) -> DetectorTrainConfig:
    base = DetectorTrainConfig(
        out=Path("unused"),
        model=DETECTOR,
        data=DataConfig(batch_size=2, masks_per_image=3),
        sampling=SamplingConfig(anchors=64, boxes=24, pre_nms=40),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, warmup_steps=5, decay_steps=(150,), layer_decay=1.0, clip_norm=5.0
        ),
        mask_size=32,
        drop_path=0.0,
        remat=False,
    )
    return dataclasses.replace(base, **changes)


def start(config: TrainConfig, params):
    """Returns the state at step 0 and the compiled step."""
    make = functools.partial(make_optimizer, config.optimizer, config.model.encoder)
    state = init_state(params, jax.random.key(0), config, make)
    return state, jax.jit(functools.partial(train_step, config=config, optimizer=make(state.params)))


def make_batch(seed: int = 0) -> Batch:
    """Makes a batch of coloured rectangles on a non-square image, with one empty slot."""
    rng = np.random.default_rng(seed)
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[:, :48] = 40
    masks = np.zeros((2, 3, 32, 32), bool)
    boxes = np.zeros((2, 3, 4), np.float32)
    for b, q in np.ndindex(2, 3):
        x0, y0 = rng.integers(0, 20), rng.integers(0, 12)
        w, h = rng.integers(5, 12, 2)
        masks[b, q, y0 : y0 + h, x0 : x0 + w] = True
        images[b, 2 * y0 : 2 * (y0 + h), 2 * x0 : 2 * (x0 + w)] = rng.integers(60, 255, 3)
        boxes[b, q] = 2 * x0, 2 * y0, 2 * (x0 + w) - 1, 2 * (y0 + h) - 1
    valid = np.ones((2, 3), bool)
    valid[1, 2] = False
    return Batch(images, np.tile(np.int32([48, 64]), (2, 1)), masks, boxes, valid)


def write_examples(folder, count: int = 6) -> list[Example]:
    """Writes non-square images with one bright rectangle and one dark ellipse each."""
    rng = np.random.default_rng(0)
    examples = []
    for i in range(count):
        h, w = (60, 90) if i % 2 else (100, 70)
        image = rng.integers(80, 120, (h, w, 3)).astype(np.uint8)
        rectangle = np.zeros((h, w), bool)
        rectangle[10 : 30 + i, 20:50] = True
        ys, xs = np.mgrid[:h, :w]
        ellipse = ((ys - 0.7 * h) / 12) ** 2 + ((xs - 0.5 * w) / 20) ** 2 < 1
        image[rectangle], image[ellipse] = 250, 5
        path = folder / f"{i}.png"
        Image.fromarray(image).save(path)
        examples.append(Example(path, (h, w), (encode_rle(rectangle), encode_rle(ellipse)), "synthetic"))
    return examples
