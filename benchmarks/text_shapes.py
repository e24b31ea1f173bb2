"""Does the text prompt learn? Everything from images to a score, on one CPU core, without published weights.

Draws images of shapes with captions; trains a small CLIP on parts of them and what is said of these; trains the text
prompt of a small SAM on CLIP's embeddings of masks, with no text (configs/text_shapes.py); asks that SAM for masks of
new images by texts. What is finished is not done again.

python benchmarks/text_shapes.py [--out runs/text_shapes]
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from sam_jax.checkpoints import save_checkpoint
from sam_jax.checkpoints.hub import load_clip, load_model
from sam_jax.clip.config import ClipConfig
from sam_jax.clip.crops import crop_objects, square_boxes
from sam_jax.clip.network import init_clip_params
from sam_jax.clip.tokenizer import tokenize
from sam_jax.config_file import load_config
from sam_jax.data.phrases import read_phrases
from sam_jax.data.shapes import draw_image, relations, write_shapes
from sam_jax.evals.text import TextEvalConfig
from sam_jax.ops.draw import draw_masks
from sam_jax.predictor import SamPredictor
from sam_jax.training.contrastive import Pairs, train_clip
from sam_jax.training.loop import train

CLIP = ClipConfig("shapes", 32, 8, 64, 3, 2, 32, 2, 2, 77, 49408, 32)
TOKENS = 16  # the longest caption has fewer
RELATED = 0.25  # of the texts name two shapes and how they lie


@dataclasses.dataclass(frozen=True)
class Options:
    out: Path = Path("runs/text_shapes")
    """Folder for all that is made."""
    num_images: int = 2000
    """To train on."""
    held_out: int = 200
    """To ask for masks in."""
    clip_steps: int = 1500
    """Of the contrastive training."""
    sam_steps: int = 2000
    """Of the training of the model with the text prompt."""


def draw_pairs(count: int, batch: int, seed: int) -> Iterator[Pairs]:
    """Endless batches of parts of images and texts on them: a shape, or two and how the first lies to the second."""
    rng = np.random.default_rng(seed)
    num_images = [draw_image(np.random.default_rng((seed, i))) for i in range(count)]
    while True:
        images, boxes, texts = [], [], []
        for index in rng.integers(count, size=batch):
            image, shapes = num_images[index]
            related = list(relations(shapes))
            if related and rng.random() < RELATED:
                one, other, text = related[rng.integers(len(related))]
                mask = one.mask | other.mask
            else:
                shape = shapes[rng.integers(len(shapes))]
                mask, text = shape.mask, shape.caption
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            images.append(image)
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            texts.append(text)
        expansion = rng.uniform(1.0, 2.0, (batch, 1)).astype(np.float32)
        cut = _cut(np.array(images), np.array(boxes, np.float32)[:, None], expansion)
        yield Pairs(cut, tokenize(texts)[:, :TOKENS])


@functools.partial(jax.jit)
def _cut(images: jax.Array, boxes: jax.Array, expansion: jax.Array) -> jax.Array:
    B, side = images.shape[:2]
    sizes, everything = jnp.full((B, 2), side), jnp.ones((B, 1, 1, 1), bool)
    hide = jnp.zeros((B, 1), bool)
    return crop_objects(images, sizes, everything, square_boxes(boxes, expansion), CLIP, hide=hide)[0][:, 0]


def draw_answers(path: Path, test_set: Path, model: Path, clip: Path, num_images: int = 12) -> None:
    """The first held-out images, each with the mask that its first text gives."""
    from matplotlib.figure import Figure

    predictor = SamPredictor(load_model(model), load_clip(clip))
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axes, row in zip(figure.subplots(2, num_images // 2).ravel(), read_phrases(test_set), strict=False):
        image = row.example.image()
        predictor.set_image(image)
        masks, iou, _ = predictor.predict(text=row.texts[0])
        big = [np.asarray(Image.fromarray(x).resize((256, 256), 0)) for x in (image, masks[iou.argmax()])]
        axes.imshow(draw_masks(big[0], [big[1]]))
        axes.set_title(row.texts[0], fontsize="medium")
        axes.axis("off")
    figure.savefig(path, dpi=64)


def main(options: Options) -> None:
    out, config = options.out, load_config(["text_shapes"], "train")
    train_set, test_set, clip = out / "train", out / "held_out", out / "clip.safetensors"
    seconds = {}
    start = time.monotonic()
    for folder, count, seed in ((train_set, options.images, 1), (test_set, options.held_out, 2)):
        if not (folder / "annotations.json").exists():
            write_shapes(folder, count, seed)
    seconds["pictures"] = time.monotonic() - start
    if not clip.exists():
        start = time.monotonic()
        params = train_clip(
            init_clip_params(CLIP, jax.random.key(0)),
            CLIP,
            draw_pairs(options.images, 64, seed=1),
            steps=options.clip_steps,
            learning_rate=1e-3,
        )
        save_checkpoint(clip, jax.device_get(params), CLIP)
        seconds["clip"] = time.monotonic() - start
    config = dataclasses.replace(
        config,
        out=out / "sam",
        steps=options.sam_steps,
        data=dataclasses.replace(config.data, path=train_set),
        text=dataclasses.replace(config.text, clip=str(clip)),
        optimizer=dataclasses.replace(config.optimizer, decay_steps=(int(0.85 * options.sam_steps),)),
    )
    model = config.out / "model.safetensors"
    if not model.exists():
        start = time.monotonic()
        train(config, resume=(config.out / "config.json").exists())
        seconds["sam"] = time.monotonic() - start
    start = time.monotonic()
    report = TextEvalConfig(data=test_set, model=str(model), clip=str(clip), out=out / "eval", min_area=1).evaluate()
    seconds["evaluation"] = time.monotonic() - start
    report.write(out / "eval")
    draw_answers(out / "answers.png", test_set, model, clip)
    print(f"{report.title}\n\n{report.table}\n" + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))


if __name__ == "__main__":
    main(tyro.cli(Options))
