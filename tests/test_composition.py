"""Mosaics of four images, and objects pasted on other images."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sam_jax.config import DataConfig
from sam_jax.data.augment import prepare_example, stack_rows
from sam_jax.data.composition import what_is_left
from sam_jax.data.examples import Example
from sam_jax.errors import BadRecord
from sam_jax.ops.resample import Patch
from sam_jax.ops.rle import encode_rle

SIDE = 64
PASTE = DataConfig(masks_per_image=32, min_area=1, copy_paste_probability=1.0)
MOSAIC = DataConfig(masks_per_image=32, min_area=1, mosaic_probability=1.0)


def write_example(path, colour: int, size=(SIDE, SIDE), masks=()) -> Example:
    """Writes an image of one shade of blue; the pixels of its masks are red."""
    image = np.full((*size, 3), (0, 0, colour), np.uint8)
    for mask in masks:
        image[mask] = (250, 0, colour)
    Image.fromarray(image).save(path)
    return Example(path, size, tuple(map(encode_rle, masks)), "test")


def rectangle(top, left, bottom, right, size=(SIDE, SIDE)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def prepare(example, others, config, seed=0, loss_size=SIDE, augment=True):
    """Returns the row, and its masks as whole arrays."""
    row = prepare_example(example, np.random.default_rng(seed), SIDE, config, loss_size, augment, others)
    batch = stack_rows([row], config.masks_per_image, loss_size)
    return row, batch.masks[0][batch.valid[0]]


@pytest.fixture
def tiles(tmp_path) -> Example:
    """An image whose masks are its 16 squares of 16 x 16 pixels."""
    squares = [rectangle(top, left, top + 16, left + 16) for top in range(0, 64, 16) for left in range(0, 64, 16)]
    example = write_example(tmp_path / "tiles.png", 100)
    return dataclasses.replace(example, masks=tuple(map(encode_rle, squares)))


@pytest.mark.parametrize("seed", range(5))
def test_an_object_is_pasted_pixel_by_pixel_and_hides_what_is_below_it(tmp_path, tiles, seed):
    hooked = rectangle(10, 20, 22, 40) & ~rectangle(10, 20, 16, 30)
    other = write_example(tmp_path / "other.png", 200, masks=[hooked])
    row, masks = prepare(tiles, [other], PASTE, seed)
    red = row.image[..., 0] == 250
    assert red.sum() == hooked.sum()
    assert (row.image[red] == (250, 0, 200)).all()
    assert (row.image[~red] == (0, 0, 100)).all()
    np.testing.assert_array_equal(masks[0], red)
    ys, xs = np.nonzero(red)
    np.testing.assert_array_equal(row.boxes[0], [xs.min(), ys.min(), xs.max(), ys.max()])

    squares = [rectangle(top, left, top + 16, left + 16) for top in range(0, 64, 16) for left in range(0, 64, 16)]
    left_over = [square & ~red for square in squares]
    expected = sorted(mask.tobytes() for mask in left_over if mask.sum() >= 128)
    assert sorted(mask.tobytes() for mask in masks[1:]) == expected
    for mask, (x0, y0, x1, y1) in zip(masks, row.boxes.astype(int), strict=True):
        assert mask[y0 : y1 + 1, x0 : x1 + 1].sum() == mask.sum()
        assert all(edge.any() for edge in (mask[y0], mask[y1], mask[:, x0], mask[:, x1]))


def test_pasted_objects_are_scaled_and_mirrored_and_agree_with_their_mask_at_the_losss_resolution(tmp_path, tiles):
    hooked = rectangle(10, 20, 22, 40) & ~rectangle(10, 20, 16, 30)
    other = write_example(tmp_path / "other.png", 200, masks=[hooked])
    config = dataclasses.replace(PASTE, scale_range=(0.5, 2.0), flip_probability=0.5)
    areas, notch_is_left = [], set()
    for seed in range(12):
        row, masks = prepare(tiles, [other], config, seed, loss_size=SIDE // 2)
        red = row.image[..., 2] > 150
        share = red.reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
        np.testing.assert_array_equal(masks[0], share > 0.5)
        areas.append(red.sum())
        ys, xs = np.nonzero(red)
        notch_is_left.add(bool(xs[ys <= ys.min() + 1].mean() > xs.mean()))
    assert min(areas) < 0.5 * hooked.sum() < 2 * hooked.sum() < max(areas)
    assert notch_is_left == {False, True}


def test_objects_that_are_too_small_or_too_large_are_not_pasted(tmp_path, tiles):
    unfit = [rectangle(0, 0, 6, 6), rectangle(0, 0, 50, 50)]
    row, masks = prepare(tiles, [write_example(tmp_path / "other.png", 200, masks=unfit)], PASTE)
    assert (row.image == (0, 0, 100)).all()
    assert len(masks) == 16
    both = write_example(tmp_path / "both.png", 200, masks=[*unfit, rectangle(20, 20, 30, 34)])
    assert (prepare(tiles, [both], PASTE)[0].image[..., 0] == 250).sum() == 140


def test_a_mask_that_loses_more_than_half_is_dropped():
    covered = np.zeros((8, 8), bool)
    covered[:, :3] = True
    assert what_is_left(Patch(np.ones((2, 4), bool), 3, 0), covered) is None
    found = what_is_left(Patch(np.ones((2, 4), bool), 3, 1), covered)
    assert found is not None
    assert (found.mask.tolist(), found.top, found.left) == ([[True, True], [True, True]], 3, 3)


@pytest.fixture
def shades(tmp_path) -> list[Example]:
    """Images of four shades and sizes, with a square object on each."""
    sizes = ((40, 60), (80, 50), (64, 64), (30, 90))
    return [
        write_example(tmp_path / f"{i}.png", 50 * (i + 1), size, [rectangle(8, 10, 20, 22, size)])
        for i, size in enumerate(sizes)
    ]


def test_a_mosaic_fills_the_frame_with_four_images_and_draws_the_masks_of_all(shades):
    config = dataclasses.replace(MOSAIC, scale_range=(0.5, 2.0), flip_probability=0.5)
    shades_with_masks, centres = set(), set()
    for seed in range(12):
        row, masks = prepare(shades[0], shades, config, seed)
        shade = row.image[..., 2]
        assert row.size == (SIDE, SIDE)
        assert set(np.unique(shade)) <= {50, 100, 150, 200}  # nothing is left black
        assert shade[0, 0] == 50
        # Each part has one shade, and they meet in one point.
        rows, columns = (np.flatnonzero(np.diff(shade.astype(int), axis=axis).any(1 - axis)) for axis in (0, 1))
        assert len(rows) <= 1
        assert len(columns) <= 1
        centres.add((*rows, *columns))
        for mask, box in zip(masks, row.boxes, strict=True):
            assert len(np.unique(shade[mask])) == 1
            assert (row.image[mask][:, 0] > 100).mean() > 0.9  # red
            ys, xs = np.nonzero(mask)
            np.testing.assert_array_equal(box, [xs.min(), ys.min(), xs.max(), ys.max()])
            shades_with_masks.add(int(shade[mask][0]))
        assert (row.image[..., 0] > 140).sum() <= 1.1 * sum(mask.sum() for mask in masks)  # no object without a mask
    assert shades_with_masks == {50, 100, 150, 200}
    assert len(centres) > 6


def test_masks_of_a_mosaic_are_at_most_as_many_as_asked_for_and_can_be_repeated(shades):
    _, masks = prepare(shades[0], shades, dataclasses.replace(MOSAIC, masks_per_image=2))
    assert len(masks) == 2
    _, masks = prepare(shades[0], shades, dataclasses.replace(MOSAIC, masks_per_image=9, repeat_masks=True))
    assert len(masks) == 9


@pytest.mark.parametrize("config", [PASTE, MOSAIC])
def test_another_image_that_cannot_be_read_leaves_the_example_alone(tmp_path, tiles, shades, config):
    broken = dataclasses.replace(shades[1], path=tmp_path / "missing.png")
    row, masks = prepare(tiles, [broken], config)
    assert (row.image == (0, 0, 100)).all()
    assert len(masks) == 16
    with pytest.raises(BadRecord, match="image cannot be read"):
        prepare(broken, shades, config)


@pytest.mark.parametrize("config", [PASTE, MOSAIC])
def test_without_augmentation_or_other_images_nothing_is_composed(tiles, shades, config):
    for others, augment in ((shades, False), ((), True)):
        assert (prepare(tiles, others, config, augment=augment)[0].image == (0, 0, 100)).all()
