"""The output formats: what one image's masks become, the smallest ones too, and what all images share at the end."""

import csv
import json
import re
from pathlib import PurePosixPath

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from sam_jax.everything.formats import FORMATS, AnnotatedImage
from sam_jax.everything.formats.geojson import pixel_polygons
from sam_jax.ops.regions import mask_polygon
from sam_jax.ops.rle import coco_bbox, encode_rle, rle_area, rle_iou, sa1b_bbox

SIZE = (24, 32)


def make_mask(*rectangles: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    for x0, y0, x1, y1 in rectangles:
        mask[y0:y1, x0:x1] = True
    return mask


PIXEL, RECTANGLE, PARTS = make_mask((5, 7, 6, 8)), make_mask((2, 3, 12, 9)), make_mask((1, 1, 4, 4), (20, 10, 30, 22))


def make_record(mask: np.ndarray, name: str | None = None) -> dict:
    rle = encode_rle(mask)
    scores = {"predicted_iou": 0.9, "stability_score": 0.95}
    places = {"bbox": sa1b_bbox(rle), "point_coords": [[5.0, 7.0]], "crop_box": [0, 0, SIZE[1], SIZE[0]]}
    return {"segmentation": rle, "area": rle_area(rle), **scores, **places} | ({"name": name} if name else {})


def annotate(*masks: np.ndarray, name: str = "deep/a.jpg", names: tuple[str | None, ...] = ()) -> AnnotatedImage:
    records = [make_record(mask, text) for mask, text in zip(masks, names or [None] * len(masks), strict=True)]
    return AnnotatedImage(PurePosixPath(name), name, 7, SIZE, records, lambda: np.zeros((*SIZE, 3), np.uint8))


def rasterize(line: str) -> np.ndarray:
    """Draws the mask of a line of labels, as Ultralytics' trainer does."""
    points = np.array(line.split()[1:], float).reshape(-1, 2) * SIZE[::-1]
    return cv2.fillPoly(np.zeros(SIZE, np.uint8), [points.astype(np.int32)], 1).astype(bool)


def test_the_sa1b_writer_has_boxes_between_the_outermost_pixels(tmp_path):
    FORMATS["sa1b"].save(tmp_path, annotate(PIXEL, RECTANGLE))
    content = json.loads((tmp_path / "deep" / "a.json").read_text())
    assert content["image"] == {"image_id": 7, "file_name": "deep/a.jpg", "height": 24, "width": 32}
    assert [(a["id"], a["bbox"]) for a in content["annotations"]] == [(0, [5, 7, 0, 0]), (1, [2, 3, 9, 5])]
    assert all(isinstance(number, float) for a in content["annotations"] for number in a["bbox"] + a["crop_box"])


def test_the_coco_writer_has_boxes_that_pycocotools_finds_too(tmp_path):
    form = FORMATS["coco"]
    form.save(tmp_path, annotate(PIXEL, RECTANGLE, names=("cup", None)), ("object", "cup"))
    names = [(3, PurePosixPath("nothing.jpg")), (9, PurePosixPath("deep/a.jpg"))]
    form.finish(tmp_path, names, ("object", "cup"))
    coco = COCO(tmp_path / "instances.json")
    assert [(image["id"], image["file_name"]) for image in coco.dataset["images"]] == [(9, "deep/a.jpg")]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[9]))
    assert [a["bbox"] for a in annotations] == [[5, 7, 1, 1], [2, 3, 10, 6]]
    assert [coco.loadCats([a["category_id"]])[0]["name"] for a in annotations] == ["cup", "object"]
    assert [coco.annToMask(a).sum() for a in annotations] == [1, 60]


def test_the_png_writer_leaves_cells_empty_for_what_a_mask_does_not_have(tmp_path):
    annotated = annotate(PIXEL, RECTANGLE)
    annotated.records[1].update(point_coords=[], predicted_iou=None, stability_score=None)
    FORMATS["png"].save(tmp_path, annotated)
    with (tmp_path / "deep" / "a.masks" / "metadata.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["bbox_w"], first["point_input_x"], first["predicted_iou"]) == ("0.0", "5.0", "0.9")
    assert (second["bbox_w"], second["point_input_x"], second["predicted_iou"]) == ("9.0", "", "")
    mask = np.asarray(Image.open(tmp_path / "deep" / "a.masks" / "0.png"))
    np.testing.assert_array_equal(mask == 255, PIXEL)


def test_the_yolo_writer_has_a_polygon_per_mask_and_names_the_classes(tmp_path):
    form = FORMATS["yolo"]
    masks = (PIXEL, np.zeros(SIZE, bool), RECTANGLE, PARTS)
    form.save(tmp_path, annotate(*masks, names=(None, None, 'a "cup"', None)), ("object", 'a "cup"'))
    form.finish(tmp_path, [(1, PurePosixPath("deep/a.jpg"))], ("object", 'a "cup"'))
    lines = (tmp_path / "labels" / "deep" / "a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "0"]  # an empty mask has no polygon
    assert all(re.fullmatch(r"\d+( 0\.\d{6}){6,}", line) and len(line.split()) % 2 for line in lines)
    np.testing.assert_array_equal(rasterize(lines[0]), PIXEL)
    np.testing.assert_array_equal(rasterize(lines[1]), RECTANGLE)
    assert rasterize(lines[2])[PARTS].all()
    data = (tmp_path / "data.yaml").read_text()
    assert data.splitlines()[1:] == ["train: images", "val: images", "names:", '  0: "object"', r'  1: "a \"cup\""']


def test_the_labelme_writer_has_polygons_that_give_the_masks_again(tmp_path):
    ring = make_mask((4, 4, 20, 20))
    ring[9:14, 9:14] = False
    masks = (PIXEL, np.zeros(SIZE, bool), RECTANGLE, PARTS, ring)
    FORMATS["labelme"].save(tmp_path, annotate(*masks, names=(None, None, "cup", None, None)))
    content = json.loads((tmp_path / "deep" / "a.json").read_text())
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("a.jpg", *SIZE)
    shapes = content["shapes"]
    assert [shape["label"] for shape in shapes] == ["object", "cup", "object", "object", "object"]
    assert [shape["group_id"] for shape in shapes] == [None, None, 3, 3, None]
    drawn = []
    for shape in shapes:  # as LabelMe draws a polygon
        assert len(shape["points"]) >= 3
        picture = Image.new("L", SIZE[::-1])
        ImageDraw.Draw(picture).polygon([tuple(point) for point in shape["points"]], fill=1, outline=1)
        drawn.append(np.asarray(picture) > 0)
    for found, mask in zip((*drawn[:2], drawn[2] | drawn[3], drawn[4]), (PIXEL, RECTANGLE, PARTS, ring), strict=True):
        assert (found & mask).sum() / (found | mask).sum() > 0.95


def test_the_geojson_writer_has_a_feature_per_mask(tmp_path):
    FORMATS["geojson"].save(tmp_path, annotate(PIXEL, np.zeros(SIZE, bool), PARTS, names=(None, None, "cup")))
    content = json.loads((tmp_path / "deep" / "a.geojson").read_text())
    pixel, parts = content["features"]
    assert content["type"] == "FeatureCollection"
    assert parts["properties"] == {"name": "cup", "predicted_iou": 0.9}
    ((ring,),) = pixel["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    assert sorted(ring[1:]) == [[5, 7], [5, 8], [6, 7], [6, 8]]
    assert [len(polygon) for polygon in parts["geometry"]["coordinates"]] == [1, 1]


@given(data=st.data(), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_edges_of_pixels_hold_exactly_the_pixels_of_a_mask(data, size):
    pixels = st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1])
    mask = np.array(data.draw(pixels)).reshape(size)
    centres = np.stack(np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5), -1).reshape(-1, 2)
    found = np.zeros(mask.size, bool)
    for polygon in pixel_polygons(mask):
        for ring in polygon:
            found ^= Path(ring).contains_points(centres)
            steps = np.diff(ring, axis=0)
            assert (np.count_nonzero(steps, axis=1) == 1).all()  # along edges, never across a pixel
    np.testing.assert_array_equal(found.reshape(size), mask)


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_without_masks_has_a_result_in_every_format(tmp_path, format):
    form = FORMATS[format]
    form.save(tmp_path, annotate())
    form.finish(tmp_path, [(1, PurePosixPath("deep/a.jpg"))])
    assert form.target(tmp_path, PurePosixPath("deep/a.jpg")).exists()


@given(data=st.data(), size=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_a_polygon_goes_around_every_part_and_every_hole(data, size):
    pixels = st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1])
    mask = np.array(data.draw(pixels)).reshape(size)
    polygon = mask_polygon(mask)
    if not mask.any():
        assert not len(polygon)
        return
    drawn = cv2.fillPoly(np.zeros(size, np.uint8), [polygon.astype(np.int32)], 1).astype(bool)
    assert drawn[mask].all()
    number, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if number == 2 and len(outlines) == 1:
        np.testing.assert_array_equal(drawn, mask)


def test_a_ring_keeps_its_hole():
    ring = make_mask((4, 4, 20, 20))
    ring[9:14, 9:14] = False
    drawn = cv2.fillPoly(np.zeros(SIZE, np.uint8), [mask_polygon(ring).astype(np.int32)], 1).astype(bool)
    np.testing.assert_array_equal(drawn, ring)


def test_boxes_of_both_conventions_differ_by_a_pixel_and_two_empty_masks_have_nothing_in_common():
    for mask in (PIXEL, RECTANGLE, PARTS):
        x, y, width, height = coco_bbox(encode_rle(mask))
        assert sa1b_bbox(encode_rle(mask)) == [x, y, width - 1, height - 1]
    empty = encode_rle(np.zeros(SIZE, bool))
    assert coco_bbox(empty) == sa1b_bbox(empty) == [0, 0, 0, 0]
    assert rle_iou(empty, empty) == 0
    assert rle_iou(encode_rle(PIXEL), encode_rle(PIXEL)) == 1
