"""Small boxes from near: the windows, and that masks come back to where they were found."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases.models import SMALL
from sam_jax.errors import UserError
from sam_jax.everything.box_masks import SamBoxes
from sam_jax.model import Sam
from sam_jax.modeling import init_params
from sam_jax.ops.boxes import box_pixels, zoom_window
from sam_jax.ops.rle import decode_rle, encode_rle
from sam_jax.types import Prediction


@given(st.integers(1, 3000), st.integers(1, 3000), st.data())
def test_a_window_lies_in_its_image_around_the_box(H, W, data):
    x0, x1 = sorted(data.draw(st.tuples(*[st.floats(0, W)] * 2)))
    y0, y1 = sorted(data.draw(st.tuples(*[st.floats(0, H)] * 2)))
    left, top, right, bottom = zoom_window(np.array([x0, y0, x1, y1]), (H, W), 1.0)
    assert 0 <= left <= x0 <= x1 <= right <= W
    assert 0 <= top <= y0 <= y1 <= bottom <= H
    if (x1 - x0) * (y1 - y0) < H * W:
        least = max(64, 3 * max(x1 - x0, y1 - y0))
        for length, limit in ((right - left, W), (bottom - top, H)):
            assert min(least, limit) <= length <= min(1.25 * least + 1, limit)


def test_pixels_of_boxes_by_hand():
    assert box_pixels(np.array([10.4, 20.6, 30.4, 30.6]), (50, 60)) == (10, 21, 30, 31)
    assert box_pixels(np.array([10, 20, 30, 30]), (50, 60), 0.1) == (8, 19, 32, 31)
    assert box_pixels(np.array([-5, 2, 70, 49]), (50, 60), 0.5) == (0, 0, 60, 50)


def test_windows_by_hand():
    size = (300, 400)
    assert zoom_window(np.array([200, 100, 220, 110]), size, 0.01) == (178, 73, 242, 137)
    assert zoom_window(np.array([200, 100, 220, 110]), size) == (0, 0, 400, 300)
    assert zoom_window(np.array([200, 100, 250, 150]), size, 0.01) == (0, 0, 400, 300)  # too large for it
    assert zoom_window(np.array([-9, -9, 12, 20]), size, 0.01) == (0, 0, 64, 64)
    assert zoom_window(np.array([390, 200, 409, 300]), size, 0.01) == (80, 0, 400, 300)  # 3 x 100, rounded up to 320


@dataclasses.dataclass(frozen=True, eq=False)
class HalfPlane(Sam):
    """Answers a box with all that is on its side of one of its edges: (0, 1) x0, y0 and (2, 3) x1, y1."""

    edge: int = 0

    def encode_image(self, images, sizes):
        return np.zeros((len(images), 1))

    def decode(self, embeddings, prompts, *, multimask_output=None):
        B, Q = prompts.points.shape[:2]
        S = self.config.low_res_size
        corner, axis = divmod(self.edge, 2)
        at = np.asarray(prompts.points)[:, :, corner, axis, None, None, None]
        position = (np.arange(S) + 0.5) * (self.config.image_size / S) - at  # linear: resizing keeps it as it is
        plane = (
            (-position if corner else position) if axis == 0 else (-position if corner else position).swapaxes(-1, -2)
        )
        return Prediction(np.broadcast_to(plane, (B, Q, 4, S, S)), np.full((B, Q, 4), 0.5))


CASES = {
    "in the middle": ((200, 400), (150, 60, 171, 90), (0, 1, 2, 3)),
    "at the first corner": ((200, 400), (0, 0, 40, 37), (2, 3)),
    "at the last corner": ((200, 401), (365, 170, 401, 200), (0, 1)),
    "in a window as wide as the image": ((700, 150), (45, 300, 105, 320), (0, 1, 2, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mask_comes_back_to_the_pixel(name):
    (H, W), (x0, y0, x1, y1), edges = CASES[name]
    image, box = np.zeros((H, W, 3), np.uint8), np.array([x0, y0, x1, y1], float)
    left, top, right, bottom = zoom_window(box, (H, W), 0.05)
    assert (right - left, bottom - top) != (W, H)
    for edge in edges:
        ((found,),) = SamBoxes(HalfPlane(SMALL, {}, edge=edge), batch_size=2, zoom=0.05).segment([image], [box[None]])
        expected = np.zeros((H, W), bool)
        starts = (max(left, x0), top), (left, max(top, y0)), (left, top), (left, top)
        ends = (right, bottom), (right, bottom), (min(right, x1), bottom), (right, min(bottom, y1))
        expected[starts[edge][1] : ends[edge][1], starts[edge][0] : ends[edge][0]] = True
        np.testing.assert_array_equal(decode_rle(found["segmentation"]), expected)
        assert found == {"segmentation": encode_rle(expected), "predicted_iou": 0.5}


def test_boxes_of_all_sizes_keep_their_order_and_only_the_small_ones_change():
    model = Sam(SMALL, init_params(SMALL, jax.random.key(0)))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((200, 300), (250, 200), (160, 160))]
    small = [np.array([[10.0 * i, 50, 10 * i + 20, 66] for i in range(5)]), np.array([[180.0, 230, 200, 250]])]
    large = np.array([[10.0, 10, 150, 120]])
    boxes = [np.concatenate([small[0][:2], large, small[0][2:]]), small[1], np.zeros((0, 4))]
    plain, near = (SamBoxes(model, batch_size=2, zoom=zoom).segment(images, boxes) for zoom in (None, 0.01))
    assert SamBoxes(model, batch_size=2, zoom=1e-6).segment(images, boxes) == plain
    assert [len(row) for row in near] == [6, 1, 0]
    same = [[one == other for one, other in zip(*rows, strict=True)] for rows in zip(plain, near, strict=True)]
    assert same == [[False, False, True, False, False, False], [False], []]
    # A window is segmented like an image of its own.
    x0, y0, x1, y1 = zoom_window(small[1][0], (250, 200), 0.01)
    window = images[1][y0:y1, x0:x1]
    ((alone,),) = SamBoxes(model, batch_size=2).segment([window], [small[1] - np.array([x0, y0, x0, y0])])
    mask = np.zeros((250, 200), bool)
    mask[y0:y1, x0:x1] = decode_rle(alone["segmentation"])
    assert np.mean(decode_rle(near[1][0]["segmentation"]) != mask) < 0.002
    assert near[1][0]["predicted_iou"] == pytest.approx(alone["predicted_iou"], abs=1e-5)


@pytest.mark.parametrize("zoom", [None, 0.05])
def test_a_mask_ends_with_its_box_where_it_is_asked_to(zoom):
    image, box = np.zeros((200, 400, 3), np.uint8), np.array([150.0, 60, 171, 90])
    model = HalfPlane(SMALL, {}, edge=0)  # all that is right of x0
    finders = [SamBoxes(model, batch_size=1, zoom=zoom, margin=margin) for margin in (None, 0.0, 0.1)]
    whole, inside, wider = (
        decode_rle(finder.segment([image], [box[None]])[0][0]["segmentation"]) for finder in finders
    )
    expected = np.zeros((200, 400), bool)
    expected[60:90, 150:171] = True
    np.testing.assert_array_equal(inside, expected)
    expected[57:93, 150:173] = True
    np.testing.assert_array_equal(wider, expected)
    assert whole.sum() > 2 * wider.sum()


def test_options_are_part_of_what_masks_depend_on_and_are_checked():
    model = HalfPlane(SMALL, {})
    assert SamBoxes(model, zoom=0.01).identity != SamBoxes(model, zoom=0.02).identity != SamBoxes(model).identity
    assert SamBoxes(model, zoom=0.01).name == "sam zoom"
    assert SamBoxes(model, margin=0.0).identity != SamBoxes(model, margin=0.1).identity != SamBoxes(model).identity
    assert SamBoxes(model, refine=False, zoom=0.01, margin=0.0).name == "sam one pass zoom inside"
    with pytest.raises(UserError, match=r"in \(0, 1\], got 0"):
        SamBoxes(model, zoom=0)
    with pytest.raises(UserError, match="of at least 0, got -1"):
        SamBoxes(model, margin=-1)
