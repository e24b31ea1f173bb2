"""What is drawn on axes is where the masks, points and boxes are."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from sam_jax.ops.rle import counts_from_mask, encode_rle
from sam_jax.plotting import show_anns, show_box, show_mask, show_points

IMAGE = np.full((30, 40, 3), 255, np.uint8)


@pytest.fixture
def ax():
    """Axes without a frame, of one pixel of the figure for each of the image."""
    figure = plt.figure(figsize=(4, 3), dpi=10)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(IMAGE)
    yield axes
    plt.close(figure)


def drawn(ax):
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize("shape", [(30, 40), (1, 30, 40)])
def test_a_mask_colours_its_pixels_alone(ax, shape):
    mask = np.zeros((30, 40), bool)
    mask[5:12, 20:33] = True
    show_mask(mask.reshape(shape), ax, colour=8)
    np.testing.assert_array_equal((drawn(ax) != 255).any(-1), mask)


@pytest.mark.parametrize("mode", ["binary_mask", "coco_rle", "uncompressed_rle"])
def test_small_masks_are_drawn_over_large_ones(ax, mode):
    large, small = np.zeros((2, 30, 40), bool)
    large[2:28, 2:38], small[10:20, 10:20] = True, True
    write = {
        "binary_mask": lambda mask: mask,
        "coco_rle": encode_rle,
        "uncompressed_rle": lambda mask: {"size": [30, 40], "counts": counts_from_mask(mask).tolist()},
    }[mode]
    anns = [{"segmentation": write(mask), "area": int(mask.sum())} for mask in (small, large)]
    show_anns(anns, ax, opacity=1.0)
    picture = drawn(ax)
    assert len(np.unique(picture[small], axis=0)) == 1
    assert len(np.unique(picture[large & ~small], axis=0)) == 1
    assert (picture[15, 15] != picture[5, 5]).any()
    assert (picture[~large] == 255).all()
    show_anns([])  # needs no axes


def test_points_and_boxes_are_where_they_are_said_to_be(ax):
    show_points([[10, 8], [30, 20]], [1, 0], ax, marker_size=30)
    show_box([5, 4, 35, 26], ax)
    first, second = (np.asarray(group.get_offsets()) for group in ax.collections)
    assert first.tolist() == [[10, 8]]
    assert second.tolist() == [[30, 20]]
    (box,) = ax.patches
    assert box.get_bbox().extents.tolist() == [5, 4, 35, 26]
    for group, colour in zip(ax.collections, ("green", "red"), strict=True):
        np.testing.assert_array_equal(group.get_facecolor(), [to_rgba(colour)])
    changed = (drawn(ax) != 255).any(-1)
    assert changed[4, 5:35].all()
    assert changed[15, 5]
    assert not changed[15, 20]
