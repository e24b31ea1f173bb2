"""Previews of a run: whole images, prompts, targets and predictions side by side, the start beside the present."""

import numpy as np
from PIL import Image

from sam_jax import read_image
from sam_jax.detection.detector import Detections
from sam_jax.ops.draw import COLOURS
from sam_jax.training.detector.task import draw_detections
from sam_jax.training.preview import SIDE, draw_predictions, save_preview
from sam_jax.types import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, NOT_A_POINT, PAD, Batch

S, Q = 64, 3
WIDTH = SIDE + 8  # of a column, with its margins


def make_batch() -> Batch:
    """Three images of which the last has no mask; the first is half as high as its frame and has two masks."""
    masks = np.zeros((3, Q, S, S), bool)
    masks[0, 0, 4:14, 4:30], masks[0, 1, 18:28, 30:60], masks[1, 0, 20:50, 20:50] = True, True, True
    valid = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    sizes = np.array([[32, 64], [64, 64], [64, 64]], np.int32)
    return Batch(np.full((3, S, S, 3), 100, np.uint8), sizes, masks, np.zeros((3, Q, 4), np.float32), valid)


def draw(batch: Batch, first: np.ndarray, last: np.ndarray):
    points = np.zeros((3, Q, 4, 2), np.float32)
    labels = np.full((3, Q, 4), PAD)
    points[0, 0, 0], labels[0, 0, :3] = (10, 9), (FOREGROUND, NOT_A_POINT, BACKGROUND)
    points[0, 1, :2], labels[0, 1, :2] = ((30, 18), (60, 28)), (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)
    points[1, 0, 0], labels[1, 0, :2] = (35, 35), (FOREGROUND, NOT_A_POINT)
    return draw_predictions(batch, points, labels, first, last)


def covers(image: np.ndarray, mask: np.ndarray, colour: int) -> bool:
    """Whether the inside of a mask is drawn in a colour, over grey, and nothing outside it is."""
    large = np.kron(mask, np.ones((SIDE // S, SIDE // S), bool))
    drawn = (np.abs(image - np.round(0.5 * 100 + 0.5 * COLOURS[colour])) <= 1).all(-1)
    return drawn[large].mean() > 0.8 and not drawn[~large].any()


def test_every_image_is_shown_whole_with_all_its_targets_and_predictions():
    batch = make_batch()
    first, last = np.roll(batch.masks, 3, 3), batch.masks
    preview = draw(batch, first, last)
    assert list(preview.given) == ["first prompts", "target"]
    assert list(preview.predicted) == ["after the first prompt", "after the last round"]
    columns = {**preview.given, **preview.predicted}
    assert all(len(column) == 2 for column in columns.values())  # the image without masks is left out
    for name, masks in (("target", batch.masks), ("after the first prompt", first), ("after the last round", last)):
        for b, image in enumerate(columns[name]):
            for q in np.flatnonzero(batch.valid[b]):
                assert covers(image, masks[b, q], q), (name, b, q)
    prompts = columns["first prompts"][0]
    assert (prompts[SIDE // 2 :] == 255).all()  # beside the image
    green = (prompts[..., 1] > 200) & (prompts[..., 0] < 100)
    assert green[9 * 5, 10 * 5]
    assert green[28 * 5, 30 * 5 : 60 * 5].all()
    assert not ((prompts[..., 0] > 200) & (prompts[..., 1] < 100)).any()  # clicks of later rounds are not there


def test_what_the_run_started_from_stands_beside_what_it_predicts_now(tmp_path):
    batch = make_batch()
    start, now = np.roll(batch.masks, 5, 3), batch.masks
    save_preview(draw(batch, start, start), tmp_path, 0)
    save_preview(draw(batch, now, now), tmp_path, 20)
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == ["0000000.png", "0000020.png"]
    before, after = (read_image(tmp_path / "predictions" / f"{step:07d}.png") for step in (0, 20))
    assert before.shape[1] == 4 * WIDTH
    assert after.shape[1] == 6 * WIDTH
    np.testing.assert_array_equal(after[:, 2 * WIDTH : 4 * WIDTH], before[:, 2 * WIDTH :])
    np.testing.assert_array_equal(after[:, : 2 * WIDTH], before[:, : 2 * WIDTH])
    assert (after[40:, 4 * WIDTH :] != before[40:, 2 * WIDTH :]).any()
    Image.new("RGB", (50, 50)).save(tmp_path / "predictions/0000000.png")  # of another size
    save_preview(draw(batch, now, now), tmp_path, 20)
    assert read_image(tmp_path / "predictions/0000020.png").shape[1] == 4 * WIDTH


def test_a_detectors_preview_shows_the_target_boxes_and_the_best_detections():
    batch = make_batch()._replace(boxes=np.tile(np.float32([4, 4, 30, 14]), (3, Q, 1)))
    boxes, valid = np.float32([[[8, 4, 30, 14], [0, 0, 60, 60]]] * 3), np.array([[True, False]] * 3)
    found = Detections(boxes, np.ones((3, 2)), np.zeros((3, 2), int), valid, np.ones((3, 2, 28, 28)))
    preview = draw_detections(batch, found)
    for column, left in ((preview.given["target"], 4), (preview.predicted["best detections"], 8)):
        assert len(column) == 2
        ys, xs = np.nonzero((column[0][..., 1] > 200) & (column[0][..., 0] < 100))
        assert (ys.min(), xs.min(), xs.max()) == (20, 5 * left, 150)
