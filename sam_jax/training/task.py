"""What a training run trains: the functions and names that differ between SAM and a detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_jax.config import EncoderConfig, RunConfig, SamConfig
from sam_jax.training.preview import Preview
from sam_jax.training.step import TrainState
from sam_jax.types import Batch, Params

Metrics = Mapping[str, Any]
"""Arrays of a training or validation step, on the host."""

Values = dict[str, Any]
"""Numbers, or a list with a number per round of prompts, by the names under which they are logged."""


@dataclasses.dataclass(frozen=True)
class TrainingTask:
    """What the training loop is given to train. All functions are pure, but for `save`.

    Attributes:
        config: the run's config, with the model that is trained, which may come from the start of the run.
        frame: the config whose input frame the images are fitted into.
        encoder: the config of the image encoder.
        mask_size: side at which the target masks are kept, pixels.
        images_at_once: images that all devices together work on at a time.
        train_step: (state, batch, key, *, optimizer, axis_name) -> (state, metrics), as `wrap` takes it.
        validation_step: (state, batch, key, *, axis_name) -> metrics of a batch.
        preview_step: (state, batch, key) -> what `draw` shows.
        count: name of the metric that counts the masks of a step.
        summarize: the metrics of a training step -> values for the log.
        summarize_validation: the metrics of all validation batches -> values for the log.
        describe: values -> a few words for people.
        score: validation values -> a number; the checkpoint where it is highest is kept.
        draw: a few images and what the preview step made of them -> what is shown of them.
        save: writes the exported model to a path.
        curves: (names of losses, names of values from 0 to 1) that are plotted.
        flops: floating point operations of a step; None where they are not known.
    """

    config: RunConfig
    frame: SamConfig | EncoderConfig
    encoder: EncoderConfig
    mask_size: int
    images_at_once: int
    train_step: Callable[..., tuple[TrainState, Metrics]]
    validation_step: Callable[..., Metrics]
    preview_step: Callable[..., Any]
    count: str
    summarize: Callable[[Metrics], Values]
    summarize_validation: Callable[[Sequence[Metrics]], Values]
    describe: Callable[[Values], str]
    score: Callable[[Values], float]
    draw: Callable[[Batch, Any], Preview]
    save: Callable[[Path, Params], None]
    curves: tuple[Sequence[str], Sequence[str]]
    flops: float | None = None
