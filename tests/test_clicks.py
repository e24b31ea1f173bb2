"""Where the simulated user clicks, by hand and against plain definitions."""

import numpy as np
import pytest

from cases.images import rectangle
from sam_jax.evals.clicks import deepest_pixel, first_click, inscribed_radius, next_click, random_click
from sam_jax.evals.metrics import mask_iou


def test_the_first_click_is_the_middle_and_the_image_border_counts():
    assert first_click(rectangle(5, 4, 12, 9)) == ((7, 6), 1)  # 7 x 5: three middles, the leftmost is first
    assert first_click(rectangle(0, 0, 5, 20)) == ((2, 2), 1)
    assert inscribed_radius(np.ones((3, 3), bool))[1, 1] == 2
    region = np.random.default_rng(0).random((12, 15)) < 0.8
    ys, xs = np.nonzero(~np.pad(region, 1))
    for y, x in np.argwhere(region)[::7]:
        nearest = np.sqrt(((ys - 1 - y) ** 2 + (xs - 1 - x) ** 2).min())
        assert inscribed_radius(region)[y, x] == nearest
    large = np.zeros((700, 900), bool)
    large[20:681, 100:761] = True  # 661 x 661: the middle is one pixel
    assert deepest_pixel(large) == ((430, 350), 331)


def test_the_next_click_goes_to_the_larger_error_and_never_twice_to_a_pixel():
    ground_truth = rectangle(2, 2, 9, 9)
    missed_more = next_click(ground_truth, rectangle(20, 2, 23, 5), [])
    assert missed_more == ((5, 5), 1)
    wrong_more = next_click(ground_truth, ground_truth | rectangle(15, 2, 29, 19), [])
    assert wrong_more[1] == 0
    assert not ground_truth[wrong_more[0][1], wrong_more[0][0]]
    again = next_click(ground_truth, rectangle(20, 2, 23, 5), [(5, 5)])
    assert again[0] != (5, 5)
    # A tie is a background click; ignored pixels attract none.
    assert next_click(rectangle(2, 2, 5, 5), rectangle(12, 2, 15, 5), [])[1] == 0
    assert next_click(ground_truth, rectangle(20, 2, 23, 5), [], ignore=ground_truth)[1] == 0


def test_the_deepest_pixel_is_that_of_the_whole_map():
    for seed in range(20):
        region = np.random.default_rng(seed).random((17, 23)) < (0.1 + 0.04 * seed)
        whole = inscribed_radius(region)
        clicked = [(int(x), int(y)) for y, x in np.argwhere(region)[:2]]
        for x, y in clicked:
            whole[y, x] = 0
        y, x = divmod(int(whole.argmax()), 23)
        assert deepest_pixel(region, clicked) == ((x, y), whole[y, x])
    assert deepest_pixel(np.zeros((4, 5), bool))[1] == 0


def test_a_random_click_is_uniform_over_the_object_and_a_function_of_its_generator():
    ground_truth = rectangle(3, 2, 6, 4)  # 6 pixels
    ignore = rectangle(5, 0, 6, 20)  # of which 2 are not to be clicked
    clicks = [random_click(ground_truth, np.random.default_rng(seed), ignore) for seed in range(400)]
    points, counts = np.unique([point for point, _ in clicks], axis=0, return_counts=True)
    assert points.tolist() == [[3, 2], [3, 3], [4, 2], [4, 3]]
    assert counts.min() > 70
    assert {label for _, label in clicks} == {1}
    assert clicks[7] == random_click(ground_truth, np.random.default_rng(7), ignore)
    with pytest.raises(ValueError, match="at least one pixel"):
        random_click(ground_truth, np.random.default_rng(0), ignore=ground_truth)


def test_iou_by_hand_and_without_the_ignored_pixels():
    assert mask_iou(rectangle(0, 0, 4, 4), rectangle(2, 0, 6, 4)) == 8 / 24
    assert mask_iou(rectangle(0, 0, 4, 4), rectangle(2, 0, 6, 4), ignore=rectangle(0, 0, 2, 20)) == 8 / 16
    assert mask_iou(rectangle(0, 0, 0, 0), rectangle(0, 0, 0, 0)) == 0


def test_the_first_click_avoids_ignored_pixels_and_needs_a_pixel():
    ground_truth = rectangle(0, 0, 20, 10)
    (x, _), label = first_click(ground_truth, ignore=rectangle(4, 0, 20, 20))
    assert (label, x < 4) == (1, True)
    with pytest.raises(ValueError, match="at least one pixel"):
        first_click(np.zeros((5, 5), bool))
