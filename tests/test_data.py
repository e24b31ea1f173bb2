"""Readers of training data: every format gives the same examples, and what cannot be used is named."""

import dataclasses
import json
import pickle
import re
from pathlib import PurePosixPath

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from cases.data import (
    check,
    coco_json,
    encoded,
    make_image,
    sa1b_files,
    sa1b_json,
    write_files,
    write_images,
    write_tar,
)
from sam_jax import read_image
from sam_jax.config import DataConfig
from sam_jax.data.bad_records import BadRecords
from sam_jax.data.coco import NAME, CocoSource, find_coco_files, read_coco_file
from sam_jax.data.examples import Example
from sam_jax.data.folders import LabelSource, MaskSource
from sam_jax.data.sa1b import Sa1bSource, find_sa1b
from sam_jax.data.sources import detect_format, open_source, open_splits
from sam_jax.errors import BadRecord, UserError
from sam_jax.everything.formats import FORMATS, AnnotatedImage
from sam_jax.ops.rle import decode_rle, encode_rle


def open_train(path, format="auto", images=None, label_values="auto"):
    format = detect_format(path, format, images)
    return open_splits(path, format, images, label_values)["train"]


def number_of(example: Example) -> int:
    return int(example.name.rpartition("/")[2].removeprefix("sa_"))


# SA-1B.


@pytest.mark.parametrize("inside", ["", "./", "images/deeper/"])
def test_tars_are_read_in_place_wherever_the_entries_lie(tmp_path, inside):
    write_tar(tmp_path / "part" / "sa_000000.tar", sa1b_files(range(3)), inside)
    write_tar(tmp_path / "sa_000001.tar", sa1b_files(range(3, 5)), inside)
    source = pickle.loads(pickle.dumps(open_train(tmp_path)))
    assert sorted(number_of(source[i]) for i in range(len(source))) == [0, 1, 2, 3, 4]
    for i in range(len(source)):
        check(source[i], number_of(source[i]))


def test_one_tar_and_a_folder_of_files_are_sa_1b_too(tmp_path):
    tar = write_tar(tmp_path / "sa.tar", sa1b_files(range(2)))
    check(open_train(tar)[1], 1)
    folder = write_files(tmp_path / "files" / "deeper", sa1b_files(range(2))).parent
    source = open_train(folder)
    assert len(source) == 2
    check(source[1], 1)


@pytest.mark.parametrize("format", ["sa1b", "coco", "png"])
def test_results_of_everything_mode_are_training_data_with_their_images_elsewhere(tmp_path, format):
    photos, out = tmp_path / "photos", tmp_path / "out"
    names = [PurePosixPath(f"a/{i}.jpg") for i in range(2)]
    write_images(photos / "a", range(2))
    for i, name in enumerate(names):
        image, masks = make_image(i)
        records = [
            {
                **{"segmentation": encode_rle(mask), "area": int(mask.sum()), "bbox": [0, 0, 1, 1]},
                **{"point_coords": [[1.0, 1.0]], "predicted_iou": 0.9, "stability_score": 0.9},
                "crop_box": [0, 0, *image.shape[1::-1]],
            }
            for mask in masks
        ]
        annotated = AnnotatedImage(name, str(name), i, image.shape[:2], records, lambda: image)  # noqa: B023
        FORMATS[format].save(out, annotated)
    FORMATS[format].finish(out, list(enumerate(names, start=1)))
    (out / "everything.settings.json").write_text("{}")
    with pytest.raises((ValueError, FileNotFoundError), match=r"looked for|--data\.images"):
        open_train(out)
    source = open_train(out, images=photos)
    assert len(source) == 2
    for i in range(2):
        check(source[i], i)


def test_a_truncated_tar_gives_what_is_whole_and_says_where_it_ends(tmp_path):
    path = write_tar(tmp_path / "sa.tar", sa1b_files(range(3)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    source = Sa1bSource([path])
    assert 1 <= len(source) < 3
    check(source[0], 0)
    assert any("cut off" in p.reason or "to its end" in p.reason for p in source.problems)
    path.write_bytes(b"not a tar at all" * 100)
    assert [p.reason for p in Sa1bSource([path]).problems] == ["tar cannot be read to its end"]


def replaced(content: dict, **annotation) -> bytes:
    content["annotations"] = [{**content["annotations"][0], **annotation}]
    return json.dumps(content).encode()


def bad_sa1b(kind: str) -> dict[str, bytes]:
    files = sa1b_files(range(1))
    image, masks = make_image(0)
    content = sa1b_json(0, masks)
    if kind == "JSON cannot be read":
        files["sa_0.json"] = files["sa_0.json"][:100]
    elif kind == "JSON of another kind":
        files["sa_0.json"] = b"[1, 2]"
    elif kind == "no masks":
        files["sa_0.json"] = replaced(content, segmentation=encode_rle(np.zeros((60, 90), bool)))
    elif kind == "masks of another size":
        files["sa_0.json"] = replaced(content, segmentation=encode_rle(np.ones((90, 60), bool)))
    elif kind == "run lengths cannot be read":
        files["sa_0.json"] = replaced(
            content, segmentation={"size": [60, 90], "counts": encode_rle(masks[0])["counts"][:-3]}
        )
    elif kind == "image cannot be decoded":
        files["sa_0.jpg"] = encoded(image)[:-400]
    return files


@pytest.mark.parametrize(
    "kind",
    [
        *("JSON cannot be read", "JSON of another kind", "no masks", "masks of another size"),
        *("run lengths cannot be read", "image cannot be decoded"),
    ],
)
@pytest.mark.parametrize("in_tar", [True, False])
def test_a_bad_record_is_named_by_its_kind_and_file(tmp_path, kind, in_tar):
    if in_tar:
        source = Sa1bSource([write_tar(tmp_path / "sa.tar", bad_sa1b(kind))])
    else:
        source = Sa1bSource(pairs=find_sa1b(write_files(tmp_path, bad_sa1b(kind)))[1])
    with pytest.raises(BadRecord, match="sa_0") as caught:
        source[0].pil_image()
    assert caught.value.reason == kind
    assert pickle.loads(pickle.dumps(caught.value)).reason == kind


BAD_MASKS = [
    *(None, 7, "", [], {}, [[1, 2, 3, 4, 5, 6]], {"size": [60, 90], "counts": "zz~"}, {"size": [60, 90]}),
    *({"size": [90, 60], "counts": [5400]}, {"size": ["60", "90"], "counts": "0"}, {"size": [60, 90], "counts": [10]}),
    {"size": [60, 90], "counts": [-1, 5401]},
]


@pytest.mark.parametrize("segmentation", BAD_MASKS)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_bad_mask_of_sa1b_is_left_out_and_the_image_is_read(tmp_path, segmentation, at):
    files = sa1b_files(range(1))
    content = json.loads(files["sa_0.json"])
    content["annotations"].insert(at, {"segmentation": segmentation})
    files["sa_0.json"] = json.dumps(content).encode()
    example = Sa1bSource([write_tar(tmp_path / "sa.tar", files)])[0]
    check(example, 0)
    (problem,) = example.left_out
    assert problem.where.endswith(f"sa_0.jpg, mask {at}")


@pytest.mark.parametrize("annotation", [None, 7, "text", [], {}, {"bbox": [0, 0, 1, 1]}])
def test_entries_of_sa1b_that_are_no_masks_are_left_out(tmp_path, annotation):
    files = sa1b_files(range(1))
    content = json.loads(files["sa_0.json"])
    content["annotations"].append(annotation)
    files["sa_0.json"] = json.dumps(content).encode()
    example = Sa1bSource(pairs=find_sa1b(write_files(tmp_path, files))[1])[0]
    check(example, 0)
    assert [problem.reason for problem in example.left_out] == ["annotation without a segmentation"]


@pytest.mark.parametrize("bad", [b"", b"no image", "cut", "small", "colours"])
def test_one_bad_file_of_a_folder_of_masks_is_left_out_and_the_image_is_read(tmp_path, bad):
    image, masks = make_image(0)
    small = {"small": np.ones((9, 9), bool), "colours": image}
    wrong = encoded(small[bad], "PNG") if bad in small else encoded(masks[0], "PNG")[:-40] if bad == "cut" else bad
    files = {"0.jpg": encoded(image), "0.masks/0.png": wrong}
    files |= {f"0.masks/{1 + i}.png": encoded(mask, "PNG") for i, mask in enumerate(masks)}
    example = MaskSource(tmp_path, write_files(tmp_path, files))[0]
    check(example, 0)
    assert len(example.left_out) == 1
    assert "0.png" in str(example.left_out[0])


def test_images_of_another_size_than_their_masks_are_bad_but_exif_turned_ones_are_not(tmp_path):
    image, masks = make_image(0)
    example = Example(tmp_path / "0.jpg", image.shape[:2], tuple(map(encode_rle, masks)), "test")
    Image.fromarray(image[:-1]).save(example.path)
    with pytest.raises(BadRecord, match="another size"):
        example.pil_image()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    Image.fromarray(np.rot90(image)).save(example.path, exif=exif, quality=95)
    check(example, 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "CMYK"])
def test_images_of_any_mode_are_seen_as_at_inference(tmp_path, mode):
    image, masks = make_image(0)
    path = tmp_path / ("0.tif" if mode == "CMYK" else "0.png")
    if mode == "I;16":
        Image.fromarray(image[..., 0].astype(np.uint16) * 256).save(path)
    elif mode == "RGBA":
        Image.fromarray(np.dstack([image, 255 - image[..., 0]])).save(path)
    else:
        Image.fromarray(image).convert(mode).save(path)
    example = Example(path, image.shape[:2], tuple(map(encode_rle, masks)), "test")
    np.testing.assert_array_equal(example.image(), read_image(path))


# COCO.


def polygons(mask):
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [contour.reshape(-1).tolist() for contour in contours]


def plain_counts(mask):
    return {"size": list(mask.shape), "counts": [len(list(run)) for run in runs(mask)]}


def runs(mask):
    values = mask.T.reshape(-1)
    borders = np.flatnonzero(np.diff(values.astype(int))) + 1
    parts = np.split(values, borders)
    return parts if not values[0] else [[], *parts]


@pytest.mark.parametrize("segmentation", [encode_rle, plain_counts])
def test_compressed_and_plain_run_lengths_of_coco_files_are_the_same_masks(tmp_path, segmentation):
    write_images(tmp_path / "images", range(2))
    (tmp_path / "annotations.json").write_text(json.dumps(coco_json(range(2), segmentation)))
    source = open_train(tmp_path)
    assert len(source) == 2
    for i in range(2):
        check(source[i], i)


def test_polygons_of_coco_files_are_drawn_as_pycocotools_does(tmp_path):
    write_images(tmp_path, range(1))
    (tmp_path / "annotations.json").write_text(json.dumps(coco_json(range(1), polygons)))
    example = open_train(tmp_path)[0]
    for rle, mask in zip(example.masks, make_image(0)[1], strict=True):
        expected = pycocotools.mask.decode(pycocotools.mask.frPyObjects(polygons(mask), *mask.shape)).any(-1)
        np.testing.assert_array_equal(decode_rle(rle), expected)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations.json", ""),
        ("instances.json", "images"),
        ("annotations/whatever.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("_annotations.coco.json", ""),
        ("train/_annotations.coco.json", "train"),
        ("train/annotations.json", "train"),
        ("train/annotations.json", "train/images"),
    ],
)
def test_the_usual_places_of_coco_files_and_images_are_known(tmp_path, annotations, images):
    write_images(tmp_path / images, range(3))
    write_files(tmp_path, {annotations: json.dumps(coco_json(range(3))).encode()})
    write_files(tmp_path / "annotations", {"captions_train2017.json": b"{}"})
    check(open_train(tmp_path)[2], 2)
    train, validation = open_source(DataConfig(tmp_path))
    assert (len(train), len(validation)) == (2, 1)


def test_a_validation_file_is_the_validation_part(tmp_path):
    for part, numbers in (("train2017", range(3)), ("val2017", range(3, 5))):
        write_images(tmp_path / part, numbers)
        write_files(tmp_path, {f"annotations/instances_{part}.json": json.dumps(coco_json(numbers)).encode()})
    write_files(tmp_path, {"annotations/instances_test2017.json": b"{}"})
    train, validation = open_source(DataConfig(tmp_path))
    assert [number_of(train[i]) for i in range(len(train))] == [0, 1, 2]
    assert [number_of(validation[i]) for i in range(len(validation))] == [3, 4]


@pytest.mark.parametrize("name", ["_annotations.coco.json", "annotations.json"])
@pytest.mark.parametrize("validation", ["valid", "val"])
def test_a_folder_for_each_part_says_which_part_it_is(tmp_path, name, validation):
    write_files(tmp_path, {f"{part}/{name}": b"{}" for part in ("train", validation, "test")})
    write_files(tmp_path / "train", {"images/annotations.json": b"{}"})
    found = {"train": [tmp_path / "train" / name], "validation": [tmp_path / validation / name]}
    assert find_coco_files(tmp_path) == found


def test_coco_files_without_their_images_or_of_another_kind_are_explained(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco_json(range(1))))
    with pytest.raises(FileNotFoundError, match=r"0\.jpg.*--data\.images"):
        open_train(tmp_path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="COCO-format"):
        open_train(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("annotations"), "list 'annotations'"),
        (lambda c: c["images"].append(c["images"][0]), "different ids of images .* 1 more than once"),
        (lambda c: c["images"].append(7), "an object for images, number 1, in .*, got 7"),
        (lambda c: c["images"][0].update(id=[1]), r"id of images, number 0, .* a number or a text, got \[1\]"),
        (
            lambda c: c["images"][0].update(file_name=3),
            "file_name of images, .* a text that names a file, got 3",
        ),
        (lambda c: c["images"][0].update(height="60"), "height of images, number 0, .* whole number of pixels, got 60"),
        (lambda c: c["annotations"][1].pop("image_id"), "image_id for annotations, number 1, .* which has only"),
        (lambda c: c["annotations"][1].update(image_id=99), "annotation of no image of the file: .*99"),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_said_with_the_entry(tmp_path, edit, message):
    content, path = coco_json(range(1)), tmp_path / "annotations.json"
    fields = {"images": ("id", NAME, "height"), "annotations": ("image_id",)}
    path.write_text(json.dumps(content))
    assert read_coco_file(path, fields).problems == ()
    edit(content)
    path.write_text(json.dumps(content))
    try:
        said = "\n".join(map(str, read_coco_file(path, fields).problems))
    except UserError as error:
        said = str(error)
    assert re.search(message, said)


def test_images_are_found_by_the_last_part_of_their_names_too_as_lvis_has_them(tmp_path):
    write_images(tmp_path, range(1))
    content = coco_json(range(1))
    content["images"][0]["coco_url"] = f"http://images.example/val2017/{content['images'][0].pop('file_name')}"
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    check(open_train(tmp_path / "annotations.json")[0], 0)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [60, 90], "counts": [10, 10**9]},
        {"size": [60, 90], "counts": "zz~"},
        [[1, 2, "x", 3, 4, 5]],
        7,
        [[1.0] * 7],
    ],
)
def test_segmentations_that_make_no_sense_are_bad_records(tmp_path, segmentation):
    write_images(tmp_path, range(1))
    (tmp_path / "annotations.json").write_text(json.dumps(coco_json(range(1), lambda mask: segmentation)))
    with pytest.raises(BadRecord, match="cannot be read"):
        CocoSource(tmp_path / "annotations.json", None, "test")[0]


# Label maps and masks.


def label_map(number: int) -> np.ndarray:
    rectangle, ellipse = make_image(number)[1]
    return (3 * rectangle + 700 * ellipse).astype(np.uint16)


@pytest.mark.parametrize("folder", ["labels", "masks"])
def test_values_of_label_maps_are_masks_in_8_and_16_bit(tmp_path, folder):
    write_images(tmp_path / "images", range(2))
    (tmp_path / folder).mkdir()
    Image.fromarray(label_map(0)).save(tmp_path / folder / "0.png")
    Image.fromarray(np.minimum(label_map(1), 200).astype(np.uint8)).save(tmp_path / folder / "1.png")
    source = open_train(tmp_path)
    assert len(source) == 2
    check(source[0], 0)
    check(source[1], 1)


@pytest.mark.parametrize("name", ["{}", "{}.masks"])
def test_a_folder_of_masks_for_each_image(tmp_path, name):
    write_images(tmp_path / "images", range(2))
    for number in range(2):
        for i, mask in enumerate(make_image(number)[1]):
            path = tmp_path / "masks" / name.format(number) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    check(open_train(tmp_path)[1], 1)
    if name != "{}":  # as `sam-jax everything --format png` leaves them, away from the images
        check(open_train(tmp_path / "masks", images=tmp_path / "images")[1], 1)


def test_maps_of_classes_are_refused_until_the_user_says_what_they_are(tmp_path):
    write_images(tmp_path / "images", range(1))
    (tmp_path / "labels").mkdir()
    path = tmp_path / "labels" / "0.png"
    rectangle, ellipse = make_image(0)[1]
    of_classes = (rectangle | ellipse).astype(np.uint8)  # one class in two places
    with_void = of_classes.copy()
    with_void[0] = 255
    for labels, message in ((of_classes, "scattered"), (with_void, "255")):
        Image.fromarray(labels).save(path)
        with pytest.raises(ValueError, match=f"{message}.*--label-values classes"):
            open_train(tmp_path)
        check(open_train(tmp_path, label_values="classes")[0], 0)
        assert len(open_train(tmp_path, label_values="instances")[0].masks) == len(np.unique(labels)) - 1
    colours = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(colours).save(path)
    with pytest.raises(ValueError, match="colours"):
        open_train(tmp_path)
    with pytest.raises(BadRecord, match="colours"):
        LabelSource(tmp_path / "images", tmp_path / "labels", "instances")[0]


# All of them.


def test_a_folder_without_masks_is_told_what_was_looked_for(tmp_path):
    write_images(tmp_path, range(1))
    with pytest.raises(ValueError, match=r"looked for(.|\n)*tar files(.|\n)*annotations\.json(.|\n)*labels/"):
        open_source(DataConfig(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"--data\.path"):
        open_source(DataConfig(tmp_path / "nowhere"))


def test_images_that_are_held_out_are_not_trained_on(tmp_path):
    write_tar(tmp_path / "sa.tar", sa1b_files(range(45)))
    train, validation = open_source(DataConfig(tmp_path))
    names = [[source[i].name for i in range(len(source))] for source in (train, validation)]
    assert [len(part) for part in names] == [42, 3]
    assert len({*names[0], *names[1]}) == 45
    with pytest.raises(IndexError):
        train[42]


def test_too_many_bad_records_stop_with_the_reasons():
    few = BadRecords(0.01)
    for i in range(2000):
        few.count(BadRecord("no masks", i) if i % 200 == 0 else None)
    assert (few.bad, few.reasons) == (10, {"no masks": 10})
    many = BadRecords(0.01)
    for i in range(20):
        many.count(BadRecord("no masks", f"file {i}") if i % 2 == 0 else None)
    with pytest.raises(ValueError, match=r"11 of 21 .*no masks: 11.*file 20"):
        many.count(BadRecord("no masks", "file 20"))
    tolerant = BadRecords(1.0)
    for i in range(99):
        tolerant.count(BadRecord("gone", i))
    with pytest.raises(ValueError, match="100 of them in a row"):
        tolerant.count(BadRecord("gone", 99))


def test_a_bad_record_that_comes_again_each_epoch_is_told_once(caplog):
    records = BadRecords(1.0)
    problems = [BadRecord("image is damaged", name) for name in ("a", "b")]
    for _ in range(9):
        records.count(None)
        for problem in problems:
            records.count(problem)
    assert records.bad == 18
    assert [record.message for record in caplog.records] == [
        "left out, 1 so far: image is damaged: a",
        "left out, 2 so far: image is damaged: b",
        "left out, 16 so far: image is damaged: b",
    ]


def test_examples_are_as_light_as_their_fields(tmp_path):
    source = Sa1bSource([write_tar(tmp_path / "sa.tar", sa1b_files(range(1)))])
    example = source[0]
    assert example.encoded is None
    assert example.read() == sa1b_files(range(1))["sa_0.jpg"]
    with pytest.raises(BadRecord, match="cut off"):
        dataclasses.replace(example, span=(example.span[0], 10**6)).read()
