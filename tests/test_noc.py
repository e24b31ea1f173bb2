"""Numbers of clicks by hand, and the folders of interactive segmentation."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.interactive import InteractiveSource
from sam_jax.evals.baselines import Disc
from sam_jax.evals.noc import NocConfig, clicks_needed, count_clicks, run, summarize
from sam_jax.evals.records import sum_counts
from sam_jax.ops.rle import decode_rle

SIZE = (40, 60)


def rectangle(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


OBJECT, VOID = rectangle(10, 10, 30, 20), rectangle(30, 10, 34, 20)


def write(root, images, masks, names=("a", "b"), values=(255, 128)):
    (root / images).mkdir(parents=True)
    (root / masks).mkdir()
    for name in names:
        make_image = np.full((*SIZE, 3), 60, np.uint8)
        make_image[OBJECT] = 200
        Image.fromarray(make_image).save(root / images / f"{name}.jpg")
        ground_truth = OBJECT * np.uint8(values[0]) + VOID * np.uint8(values[1])
        Image.fromarray(ground_truth).save(root / masks / f"{name}.png")


class Growing:
    """The first k clicks give `steps` in turn, then always the last; the void is wrongly object throughout."""

    identity = "growing"

    def __init__(self, *steps, name="growing"):
        self.steps, self.name = steps, name

    def open_session(self, image):
        calls = iter([*self.steps, *[self.steps[-1]] * 20])

        class Session:
            def segment(_, clicks):
                return [(next(calls) | VOID)[None] for _ in clicks]

        return Session()


def test_clicks_are_counted_from_the_first_and_at_most_all():
    assert clicks_needed([0.5, 0.85, 0.84, 0.9], 0.85) == 2
    assert clicks_needed([0.5, 0.85], 0.9) is None
    objects = [{"iou": [0.8, 0.9, 0.9]}, {"iou": [0.1, 0.82, 0.87]}]
    summary = summarize([sum_counts([count_clicks(record)]) for record in objects], most=3)
    assert (summary["noc@80"], summary["noc@85"], summary["noc@90"]) == (1.5, 2.5, 2.5)
    assert summary["intervals"]["noc@80"] == [1, 2]
    assert (summary["failed@80"], summary["failed@85"], summary["failed@90"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("images", "masks", "graded"),
    [("data_GT", "boundary_GT", True), ("images", "masks", True), ("img", "gt", False)],
)
def test_folders_are_read_with_their_void(tmp_path, images, masks, graded):
    write(tmp_path, images, masks, values=(255, 128) if graded else (38, 0))
    source = InteractiveSource(tmp_path, "x", graded=graded)
    assert len(source) == 2
    example = source[0]
    np.testing.assert_array_equal(decode_rle(example.masks[0]), OBJECT)
    assert example.image().shape == (*SIZE, 3)
    assert (example.ignore is None) == (not graded)
    if graded:
        np.testing.assert_array_equal(decode_rle(example.ignore), VOID)


def test_an_evaluation_by_hand_stops_at_the_highest_target_and_ignores_the_void(tmp_path):
    write(tmp_path / "GrabCut", "data_GT", "boundary_GT", names=("a", "b", "c"))
    (tmp_path / "GrabCut/boundary_GT/c.png").unlink()
    config = NocConfig(out=tmp_path / "out", data=tmp_path, methods=("growing", "stuck"), workers=1)
    methods = {  # 17 of 20 columns are .85, 18 are .90
        "growing": Growing(rectangle(10, 10, 20, 20), rectangle(10, 10, 27, 20), rectangle(10, 10, 28, 20)),
        "stuck": Growing(rectangle(10, 10, 27, 20), name="stuck"),
    }
    report = run(config, lambda method, zoom: methods[method])
    growing, stuck = (report.results["methods"][m]["GrabCut"] for m in ("growing", "stuck"))
    assert [growing[f"noc@{t}"] for t in (80, 85, 90)] == [2, 2, 3]
    assert [stuck[f"noc@{t}"] for t in (80, 85, 90)] == [1, 1, 20]
    assert (growing["failed@90"], stuck["failed@90"], stuck["masks"]) == (0, 2, 2)
    row = (
        "| GrabCut | stuck | 2 | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 20.00 [20.00, 20.00] | 0 | 0 | 2 | measured |"
    )
    assert row in report.table
    assert "| GrabCut | RITM HRNet32, COCO+LVIS | | | 1.46 | 1.56 | | | | published |" in report.table
    assert "- growing, GrabCut: no mask: " in report.table
    assert "Get Berkeley from the release page" in report.table
    assert set(report.results["missing"]) == {"Berkeley", "DAVIS", "grabcut20", "photographs"}
    assert (tmp_path / "out/GrabCut/growing.jsonl").exists()


def test_ritm_sees_davis_larger(tmp_path):
    write(tmp_path / "GrabCut", "data_GT", "boundary_GT")
    write(tmp_path / "DAVIS", "img", "gt", values=(255, 0))
    asked = []
    config = NocConfig(out=tmp_path / "out", data=tmp_path, methods=("ritm:x", "disc"), clicks=2)
    run(config, lambda method, zoom: asked.append((method, zoom.side)) or Disc())
    assert asked == [("ritm:x", 400), ("ritm:x", 600), ("disc", 400)]


def test_folders_that_are_not_there_or_empty_say_what_was_expected(tmp_path):
    config = NocConfig(out=tmp_path / "out", data=tmp_path, datasets=("Berkeley",))
    with pytest.raises(FileNotFoundError, match=r"expected images and masks in .*Berkeley, as data_GT/ with bound"):
        run(config, lambda method, zoom: Disc())
    write(tmp_path / "Berkeley", "images", "masks", names=())
    with pytest.raises(FileNotFoundError, match=r"no image of .*images has a mask of its name in"):
        InteractiveSource(tmp_path / "Berkeley", "Berkeley")
    with pytest.raises(ValueError, match=r"unknown datasets \['SBD'\]"):
        run(dataclasses.replace(config, datasets=("SBD",)), lambda method, zoom: Disc())
