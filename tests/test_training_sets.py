"""Training on several sets at once, with a weight for each, and several prompts of the same mask."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cases.training import write_examples
from sam_jax.config import DataConfig
from sam_jax.data.augment import prepare_example
from sam_jax.data.training_sets import repeat_by_weight
from sam_jax.errors import UserError


@pytest.fixture
def examples(tmp_path):
    written = write_examples(tmp_path, count=6)
    return [dataclasses.replace(e, dataset="ab"[i // 4]) for i, e in enumerate(written)]  # four of a, two of b


def counts(examples, weights):
    repeated = repeat_by_weight(examples, ("a", "b"), weights)
    return [sum(other is example for other in repeated) for example in examples]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((), [1, 1, 1, 1, 1, 1]),
        ((1.0, 3.0), [1, 1, 1, 1, 3, 3]),
        ((0.5, 0.0), [0, 1, 0, 1, 0, 0]),
        ((1.5, 1.0), [1, 2, 1, 2, 1, 1]),
    ],
)
def test_images_are_drawn_as_often_as_their_sets_weight_says(examples, weights, expected):
    assert counts(examples, weights) == expected


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (1.0, float("nan"))])
def test_weights_that_do_not_go_with_the_sets_are_refused(examples, weights):
    with pytest.raises(UserError, match=r"dataset_weight of at least 0 for each of \['a', 'b'\]"):
        counts(examples, weights)


def test_an_image_with_few_masks_can_repeat_them(examples):
    def row(repeat):
        config = DataConfig(path=Path(), masks_per_image=5, repeat_masks=repeat)
        return prepare_example(examples[0], np.random.default_rng(0), 64, config, 32, augment=False)

    once, repeated = row(False), row(True)
    assert (len(once.patches), len(repeated.patches), repeated.boxes.shape) == (2, 5, (5, 4))
    for i in range(5):
        assert repeated.patches[i] is repeated.patches[i % 2]
        np.testing.assert_array_equal(repeated.boxes[i], once.boxes[i % 2])
