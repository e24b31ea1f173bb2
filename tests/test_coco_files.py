"""What people bring as COCO JSON: every kind of value in every field, for each reader; never a traceback."""

import contextlib
import json

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from sam_jax.data.coco import CocoSource
from sam_jax.data.phrases import read_phrases
from sam_jax.errors import BadRecord, UserError
from sam_jax.evals.ground_truth import read_ground_truth
from sam_jax.ops.rle import counts_from_rle, decode_rle

H, W = 40, 60
SQUARE = [10, 10, 30, 10, 30, 25, 10, 25]  # 300 pixels
COUNTS = [410, *[15, 25] * 19, 15, H * W - 410 - 40 * 19 - 15]
WRONG = [None, True, 7, -1, 0, 1.5, 10**400, float("inf"), float("nan"), "", "aaaaa", "\0", "\ud800", "x" * 300, [], {}]
WRONG += [[1], ["1", "2"], [None] * 4, [10**400] * 4, {"size": ["40", "60"], "counts": "0"}, 200_000_000]
FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}


def content(segmentation=(SQUARE,), image=(), annotation=()):
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": H, "width": W} | dict(image),
            {"id": 2, "file_name": "b.jpg", "height": H, "width": W},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation} | dict(annotation),
            {"id": 2, "image_id": 2, "category_id": 1, "segmentation": [SQUARE]},
        ],
        "categories": [{"id": 1, "name": "x"}],
    }


def write(folder, data, names=("a.jpg", "b.jpg")):
    for annotation in data["annotations"]:
        annotation.setdefault("bbox", [10, 10, 20, 15])
        annotation.setdefault("area", 300)
        annotation.setdefault("iscrowd", 0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (W, H)).save(folder / name)
    (folder / "annotations.json").write_text(json.dumps(data))
    return folder / "annotations.json"


def train(path):
    """The areas of each image's masks; None: a bad record."""
    source, found = CocoSource(path, None, "test"), []
    for i in range(len(source)):
        try:
            found.append([int(decode_rle(mask).sum()) for mask in source[i].masks])
        except BadRecord:
            found.append(None)
    return found


def evaluate(path):
    found = []
    for image in read_ground_truth(path).images.values():
        try:
            found.append([int(decode_rle(o["segmentation"]).sum()) for o in image.objects()])
        except BadRecord:
            found.append(None)
    return found


def phrases(path):
    return [[int(decode_rle(mask).sum()) for mask in row.example.masks] for row in read_phrases(path)]


@pytest.mark.parametrize("reader", [train, evaluate, phrases])
@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in FIELDS.items() for field in fields])
def test_no_value_in_any_field_is_a_traceback(tmp_path, kind, field, reader):
    for value in WRONG:
        data = content()
        data[kind][0][field] = value
        path = write(tmp_path, data)
        with contextlib.suppress(UserError):
            found = reader(path)
            assert [300] in found, value  # the sound image is read
        data[kind][0].pop(field)
        with contextlib.suppress(UserError):
            reader(write(tmp_path, data))


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        [SQUARE, [40, 30, 50, 35]],  # the second is a line
        [SQUARE, [20, 12, 50, 12, 50, 30]],
        [[-50, -50, 500, -50, 500, 300, -50, 300]],
        [[0, 0, 5000, 2500, 0, 20]],
        [[str(number) for number in SQUARE]],
        {"size": [H, W], "counts": COUNTS},
        pycocotools.mask.frPyObjects({"size": [H, W], "counts": COUNTS}, H, W),
        [{"size": [H, W], "counts": COUNTS}],
    ],
)
def test_every_form_of_a_mask_is_read_as_pycocotools_reads_it(tmp_path, segmentation):
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
        expected, segmentation = segmentation, segmentation | {"counts": segmentation["counts"].decode()}
    else:
        expected = pycocotools.mask.frPyObjects(segmentation, H, W)
    if isinstance(expected, list):
        expected = pycocotools.mask.merge(expected)
    path = write(tmp_path, content(segmentation))
    area = int(pycocotools.mask.area(expected))
    assert train(path) == evaluate(path) == [[area], [300]]
    mask = decode_rle(CocoSource(path, None, "test")[0].masks[0])
    np.testing.assert_array_equal(mask, pycocotools.mask.decode(expected))


@pytest.mark.parametrize(
    "segmentation",
    [
        *(None, "", [], [[]], 7, SQUARE, [[10, 10, 30, 25]], [[[10, 10], [30, 10], [30, 25], [10, 25]]]),
        [[[10, 10], [20, 10], [30, 10], [30, 25], [20, 25], [10, 25]]],
        *([[None] * 6], [[10**400] * 6], [[1e9] * 6], [[0, 0, 1e7, 1e7, 0, 1e7]], [SQUARE, 7], [[1.0] * 7]),
        {"size": ["40", "60"], "counts": "0"},
        {"size": [1000000000, "aaaaa"], "counts": "0"},
        {"size": [W, H], "counts": COUNTS},
        {"size": [H, W], "counts": [2**63 - 1, 2**63 - 1, 2, H * W]},
        {"size": [H, W], "counts": "zz~"},
        {"counts": COUNTS},
    ],
)
def test_an_object_that_is_none_is_left_out_and_told_and_the_image_is_read(tmp_path, segmentation, caplog):
    data = content()
    data["annotations"].append({"id": 3, "image_id": 1, "category_id": 1, "segmentation": segmentation})
    path = write(tmp_path, data)
    assert train(path) == [[300], [300]]
    assert "left out of" in caplog.text
    assert "annotation 3" in caplog.text
    assert evaluate(path) == [[300], [300]]
    assert any("annotation 3" in str(problem) for problem in read_ground_truth(path).problems)
    data["annotations"] = data["annotations"][1:]  # the only object of its image
    assert evaluate(write(tmp_path, data)) == [[300]]
    assert train(path) == [None, [300]]


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind in ("images", "annotations") for field in FIELDS[kind] if field != "category_id"],
)
def test_training_and_evaluation_read_the_same_objects_and_count_the_others_or_refuse_the_file(tmp_path, kind, field):
    for value in [*WRONG, ...]:
        data = content()
        data[kind][0][field] = value
        if value is ...:
            del data[kind][0][field]
        path = write(tmp_path, data)
        if value is ... and field in data[kind][0]:  # which `write` has filled in
            del data[kind][0][field]
            path.write_text(json.dumps(data))
        if (kind, field) == ("images", "id") and isinstance(value, str):  # which are numbers in an evaluation
            with pytest.raises(UserError, match="expected numbers as ids"):
                read_ground_truth(path)
            continue
        ground_truth = read_ground_truth(path)
        objects = [[o for o in image.objects() if not o["iscrowd"]] for image in ground_truth.images.values()]
        areas = [[int(decode_rle(o["segmentation"]).sum()) for o in of_image] for of_image in objects]
        found = [sorted(filter(None, of_image)) for of_image in areas]
        assert [of_image for of_image in found if of_image] == [of_image for of_image in train(path) if of_image], value
        read = sum(map(len, areas)) + len(ground_truth.problems)
        assert read >= 2 or data["annotations"][0].get("iscrowd"), value  # none is missing without a word


@pytest.mark.parametrize("field", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_lists_of_categories_of_lvis_that_are_none_leave_the_image_out(tmp_path, field):
    for value in (7, "aa", [[1]], [None], {"a": 1}, [1.5], True):
        path = write(tmp_path, content(image={field: value}))
        assert evaluate(path) == train(path) == [[300]], value
    assert evaluate(write(tmp_path, content(image={field: None}))) == [[300], [300]]


def test_a_box_that_is_not_there_is_that_of_the_mask(tmp_path):
    for box in (None, [], [1, 2, 3], "aaaa", [float("nan")] * 4):
        (image, _) = read_ground_truth(write(tmp_path, content(annotation={"bbox": box}))).images.values()
        assert image.objects()[0]["bbox"] == [10, 10, 20, 15]


def test_bad_entries_are_left_out_and_counted_by_reason(tmp_path, caplog):
    data = content(image={"file_name": 7})
    data["annotations"].append({"id": 3, "image_id": "2", "category_id": 1, "segmentation": [SQUARE]})
    path = write(tmp_path, data)
    source = CocoSource(path, None, "test")
    assert train(path) == [[300]]
    reasons = [problem.reason for problem in source.problems]
    assert reasons.count("entry of images cannot be used") == 1
    assert reasons.count("annotation of no image of the file") == 2
    assert "2 x annotation of no image of the file" in caplog.text
    assert evaluate(path) == [[300]]
    assert [problem.reason for problem in read_ground_truth(path).problems] == reasons
    data["annotations"] = [a | {"image_id": 9} for a in data["annotations"]]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"none on 1 images.*3 x annotation of no image of the file.*image_id 9"):
        read_ground_truth(path)


@pytest.mark.parametrize("size", [(200_000_000, 200_000_000), (1e7, 1e7), ("40", "60"), (0, 60)])
def test_an_image_above_the_pixel_limit_never_reaches_pycocotools(tmp_path, size):
    h, w = size
    path = write(tmp_path, content([[0, 0, 1e7, 0, 1e7, 1e7]], image={"height": h, "width": w}))
    assert train(path) == [None, [300]]


@pytest.mark.parametrize("name", ["images\\a.jpg", "C:\\data\\images\\a.jpg", "images/a.jpg", "other/a.jpg"])
def test_paths_of_windows_are_found(tmp_path, name):
    path = write(tmp_path, content(image={"file_name": name}), ("images/a.jpg", "images/b.jpg"))
    assert train(path) == evaluate(path) == [[300], [300]]
    assert CocoSource(path, None, "test")[0].image().shape == (H, W, 3)


def test_sizes_of_run_lengths_are_whole_numbers():
    for size in (["96", "128"], [1000000000, "aaaaa"], [1.0, 2.0], [-1, -2], 7, [10**400, 1]):
        with pytest.raises(UserError, match="expected COCO run lengths"):
            counts_from_rle({"size": size, "counts": "0"})
