"""Data of which the filters leave no mask is refused, by the name of the filter; what is mostly left out is said."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest
from PIL import Image

from cases.models import SMALL
from sam_jax.config import DataConfig
from sam_jax.data.augment import prepare_example
from sam_jax.data.examples import Example
from sam_jax.data.loader import fixed_batches, make_loader
from sam_jax.data.mask_filters import MaskCounts
from sam_jax.errors import UserError
from sam_jax.ops.rle import encode_rle

CONFIG = DataConfig(batch_size=2, masks_per_image=4)
H, W = 60, 80


def mask(h: int, w: int) -> np.ndarray:
    found = np.zeros((H, W), bool)
    found[10 : 10 + h, 10 : 10 + w] = True
    return found


def make_source(folder, masks, count=3) -> list[Example]:
    Image.new("RGB", (W, H)).save(folder / "image.png")
    return [Example(folder / "image.png", (H, W), tuple(map(encode_rle, masks)), "test")] * count


CASES = {
    "one pixel": ([mask(1, 1)], {}, "smaller than 16 pixels of the scaled image (data.min-area)"),
    "no pixel": ([mask(0, 0)], {}, "smaller than 1 pixels of the image (data.min-original-area)"),
    "all pixels": ([np.ones((H, W), bool)], {}, "larger than 0.9 of the image (data.max-area-fraction)"),
    "a high limit": ([mask(20, 20)], {"min_area": 5000}, "smaller than 5000 pixels"),
    "a high limit before": ([mask(20, 20)], {"min_original_area": 401}, "smaller than 401 pixels of the image"),
    "a low limit": ([mask(20, 20)], {"max_area_fraction": 0.01}, "larger than 0.01 of the image"),
    "two filters": ([mask(1, 1), np.ones((H, W), bool)], {}, "3 larger than 0.9 of the image"),
    "no masks": ([], {}, "the images have none"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("repeat", [False, True])
def test_data_without_a_usable_mask_is_refused_with_the_filter_and_its_counts(tmp_path, case, repeat):
    masks, changes, message = CASES[case]
    source, config = make_source(tmp_path, masks), dataclasses.replace(CONFIG, repeat_masks=repeat, **changes)
    arguments = {"model": SMALL, "config": config, "loss_size": SMALL.image_size, "seed": 0}
    with pytest.raises(UserError) as error:
        fixed_batches(source, 2, **arguments)
    assert message in str(error.value)
    assert "no mask to validate on in the first 3 images" in str(error.value)
    batches = make_loader(source, **arguments)
    with pytest.raises(UserError) as error:
        list(itertools.islice(batches, 2))  # three images are an epoch
    assert message in str(error.value)
    assert "no mask to train on in the first 3 images" in str(error.value)


def test_one_mask_in_an_epoch_is_enough(tmp_path):
    source = [*make_source(tmp_path, [mask(1, 1)], 5), *make_source(tmp_path, [mask(20, 20)], 1)]
    arguments = {"model": SMALL, "config": CONFIG, "loss_size": SMALL.image_size, "seed": 0}
    assert sum(batch.valid.sum() for batch in fixed_batches(source, 3, **arguments)) == 1
    batches = make_loader(source, **arguments)
    assert sum(next(batches).valid.sum() for _ in range(6)) == 2


def test_a_set_of_which_most_is_left_out_is_warned_of_once(caplog):
    config = DataConfig(min_area=50)
    counts = MaskCounts(config, images=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(9):
            counts.count(1, ["min_area", "min_area", "not seen"])
    assert caplog.messages == [
        "of the masks in the first 3 images 3 are used and 6 are left out: 6 smaller than 50 pixels of the scaled "
        "image (data.min-area), 3 outside the crop, or hidden"
    ]
    caplog.clear()
    counts = MaskCounts(config, images=2)
    for _ in range(2):
        counts.count(2, ["min_area", "not seen", "not seen", "not seen"])
    assert not caplog.messages


def test_repeated_masks_count_once(tmp_path):
    (example,) = make_source(tmp_path, [mask(20, 20), mask(1, 1)], 1)
    config = dataclasses.replace(CONFIG, repeat_masks=True)
    row = prepare_example(example, np.random.default_rng(0), SMALL.image_size, config, SMALL.image_size, augment=False)
    assert (len(row.patches), row.masks, row.dropped) == (4, 1, ("min_area",))
