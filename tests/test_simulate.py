"""The simulated annotator keeps to the paper's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.models import TINY
from sam_jax.config import PromptConfig
from sam_jax.prompting.simulate import first_prompts, image_pixels, next_points, round_schedule, sample_pixel
from sam_jax.types import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, NOT_A_POINT, PAD, Batch

MODEL = TINY.with_image_size(64)
SIDE = 32  # of the masks: half the input frame


def make_batch(masks: np.ndarray, size: tuple[int, int] = (64, 48)) -> Batch:
    """Makes a batch of masks (B, Q, SIDE, SIDE) with their tight boxes in the input frame."""
    B, Q = masks.shape[:2]
    boxes = np.zeros((B, Q, 4), np.float32)
    for b, q in np.ndindex(B, Q):
        ys, xs = np.nonzero(masks[b, q])
        boxes[b, q] = 2 * xs.min(), 2 * ys.min(), 2 * xs.max() + 1, 2 * ys.max() + 1
    images = np.zeros((B, 64, 64, 3), np.uint8)
    return Batch(images, np.tile(np.int32(size), (B, 1)), masks, boxes, np.ones((B, Q), bool))


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_sampled_pixels_are_uniform_over_the_region():
    region = np.zeros((5, 7), bool)
    region[0, 6] = region[2, 1:4] = region[4, 0] = True
    keys = jax.random.split(jax.random.key(0), 5000)
    pixels, found = jax.vmap(lambda key: sample_pixel(key, jnp.asarray(region)))(keys)
    counts = np.zeros(region.shape, int)
    np.add.at(counts, (pixels[:, 1], pixels[:, 0]), 1)
    assert found.all()
    assert (counts[~region] == 0).all()
    assert counts[region] == pytest.approx(1000, abs=150)  # 5 standard deviations


def test_an_empty_region_has_no_pixel():
    _, found = sample_pixel(jax.random.key(0), jnp.zeros((2, 4, 4), bool))
    assert not found.any()


@pytest.mark.parametrize("seed", range(5))
def test_a_first_click_lies_in_its_mask_and_brings_the_padding_point(seed):
    masks = np.stack([rectangle(3, 5, 9, 30), rectangle(20, 0, 22, 2)])[None]
    points, labels = first_prompts(
        jax.random.key(seed), make_batch(masks), MODEL, PromptConfig(point_rounds=3, box_probability=0.0)
    )
    assert labels.tolist() == [[[FOREGROUND, NOT_A_POINT, PAD, PAD, PAD]] * 2]
    # Pixel (x, y) of the masks' frame has its centre at 2 x + 0.5 in the input frame.
    x, y = np.moveaxis(np.asarray((points[0, :, 0] - 0.5) / 2).astype(int), -1, 0)
    assert masks[0, [0, 1], y, x].all()


def test_box_noise_has_the_papers_spread_and_stays_in_the_image():
    masks = np.broadcast_to(rectangle(8, 8, 16, 24), (1, 4000, SIDE, SIDE))
    batch = make_batch(masks[:, :1])._replace(masks=masks, valid=np.ones((1, 4000), bool))
    batch = batch._replace(boxes=np.tile(batch.boxes, (1, 4000, 1)))
    points, labels = first_prompts(jax.random.key(0), batch, MODEL, PromptConfig(point_rounds=0, box_probability=1.0))
    assert (labels == jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])).all()
    noise = np.asarray(points.reshape(-1, 4) - batch.boxes[0])
    limit = 20 * 64 / 1024
    sides = np.array([15.0, 31.0, 15.0, 31.0])
    assert np.abs(noise).max() <= limit + 1e-5
    for column, side in zip(noise.T, sides, strict=True):
        draws = np.clip(np.random.default_rng(0).normal(0, 0.1 * side, 200_000), -limit, limit)
        assert column.std() == pytest.approx(draws.std(), rel=0.05)
    low, high = points.min((0, 1, 2)), points.max((0, 1, 2))
    assert (low >= 0).all()
    assert high[0] <= 47
    assert high[1] <= 63


def test_corrections_fall_on_errors_with_the_right_label():
    truth, predicted = rectangle(4, 4, 12, 12), rectangle(8, 4, 16, 12)
    inside = jnp.ones((1, SIDE, SIDE), bool)
    labels_seen = set()
    for seed in range(20):
        point, label = next_points(
            jax.random.key(seed), jnp.asarray(predicted)[None, None], jnp.asarray(truth)[None, None], inside, MODEL
        )
        x, y = np.asarray((point[0, 0] - 0.5) / 2).astype(int)
        assert truth[y, x] != predicted[y, x]
        assert label[0, 0] == (FOREGROUND if truth[y, x] else BACKGROUND)
        labels_seen.add(int(label[0, 0]))
    assert labels_seen == {FOREGROUND, BACKGROUND}


def test_a_perfect_prediction_is_answered_with_a_background_click_in_the_image():
    truth = jnp.asarray(rectangle(0, 0, 20, 20))[None, None]
    inside = image_pixels(jnp.array([[64, 42]]), SIDE, MODEL)  # the image is 21 columns of 32 wide
    for seed in range(10):
        point, label = next_points(jax.random.key(seed), truth, truth, inside, MODEL)
        x, y = np.asarray((point[0, 0] - 0.5) / 2).astype(int)
        assert label[0, 0] == BACKGROUND
        assert not truth[0, 0, y, x]
        assert x < 21


def test_errors_in_the_padding_do_not_attract_clicks():
    truth = jnp.asarray(rectangle(0, 0, 4, 4))[None, None]
    predicted = (
        truth | jnp.asarray(rectangle(25, 0, 32, 32))[None, None] | jnp.asarray(rectangle(10, 9, 11, 10))[None, None]
    )
    inside = image_pixels(jnp.array([[64, 42]]), SIDE, MODEL)
    point, label = next_points(jax.random.key(0), predicted, truth, inside, MODEL)
    assert np.asarray((point[0, 0] - 0.5) / 2).tolist() == [10, 9]
    assert label[0, 0] == BACKGROUND


def test_the_schedule_is_the_papers_eleven_passes():
    config = PromptConfig()
    schedules = np.stack([round_schedule(jax.random.key(seed), config) for seed in range(40)])
    assert schedules.shape == (40, 10)  # and the first pass makes eleven
    assert (schedules.sum(1) == 8).all()
    assert not schedules[:, -1].any()
    assert len({int(np.flatnonzero(~row[:-1])[0]) for row in schedules}) > 5  # the other one moves
