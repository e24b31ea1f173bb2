"""Every data set of the paper is read from its published layout, here with one or two images of a few pixels."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from sam_jax.data.zero_shot import DATASETS, OTHER_DATASETS, PAPER_DATASETS
from sam_jax.errors import BadRecord
from sam_jax.evals.click_runs import sample_examples
from sam_jax.ops.rle import decode_rle

H, W = 12, 16
BOXES = {1: (1, 2, 6, 7), 2: (8, 3, 13, 9)}  # number of an object -> x0, y0, x1, y1


def mask(*numbers: int) -> np.ndarray:
    found = np.zeros((H, W), bool)
    for number in numbers:
        x0, y0, x1, y1 = BOXES[number]
        found[y0:y1, x0:x1] = True
    return found


def labels(values: dict[int, int]) -> np.ndarray:
    """Draws a map in which each object, by its number, has a value."""
    found = np.zeros((H, W), np.int32)
    for number, value in values.items():
        found[mask(number)] = value
    return found


def save(path: Path, pixels: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((H, W, 3), 90, np.uint8) if pixels is None else pixels).save(path)


def save_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def polygon(number: int) -> list[list[int]]:
    """Returns corners [x, y] that pycocotools fills to the box."""
    x0, y0, x1, y1 = BOXES[number]
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def rle(number: int, compressed: bool = True) -> dict:
    encoded = pycocotools.mask.encode(np.asfortranarray(mask(number).astype(np.uint8)))
    if compressed:
        return {"size": [H, W], "counts": encoded["counts"].decode()}
    flat = mask(number).T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [H, W], "counts": np.diff([0, *edges, H * W]).tolist()}


def coco(name: str, **entry) -> dict:
    outlines = [[[number for point in polygon(1) for number in point]], rle(2)]
    return {
        "images": [{"id": 5, "file_name": name, "height": H, "width": W, **entry}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 1, "segmentation": s, "iscrowd": 0} for i, s in enumerate(outlines)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def write_coco(json_path: str, image: str, name: str | None = None):
    def write(root: Path) -> None:
        save(root / image)
        save_json(root / json_path, coco(name or Path(image).name))

    return write


def write_ppdls(root):
    for folder, name in (("Ara2012", "ara2012_plant001"), ("Tobacco", "tobacco_plant001"), ("Ara2013-Canon", "other")):
        save(root / "Plant" / folder / f"{name}_rgb.png")
        palette = Image.fromarray(labels({1: 1, 2: 27}).astype(np.uint8)).convert("P")
        palette.save(root / "Plant" / folder / f"{name}_label.png")


def write_bbbc(root):
    for number in BOXES:
        save(root / f"stage1_train/abc/masks/{number}.png", mask(number).astype(np.uint8) * 255)
    save(root / "stage1_train/abc/images/abc.png")


def write_doors(root):
    part = root / "Regression/Te1_5000_b_2022-08-02 11.16.00"
    save(part / "img/000001.png")
    save(part / "Rock_all/000001.png", mask(1, 2).astype(np.uint8) * 255)
    save(root / "Regression/Tr_17000_b_2022/img/000001.png")  # training: not taken


def via(name: str, numbered: bool) -> dict:
    shapes = [
        {"name": "polygon", "all_points_x": [x for x, _ in polygon(i)], "all_points_y": [y for _, y in polygon(i)]}
        for i in BOXES
    ]
    regions = [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes]
    return {f"{name}123": {"filename": name, "size": 123, "regions": dict(enumerate(regions)) if numbered else regions}}


def write_ndd20(root):
    for part in ("ABOVE", "BELOW"):
        save(root / part / "1.jpg")
        save_json(root / f"{part}_LABELS.json", via("1.jpg", numbered=False))


def write_streets(root):
    save(root / "vehicleannotations/images/view-1.jpg")
    save_json(root / "vehicleannotations/annotations/vehicle-annotations.json", via("view-1.jpg", numbered=True))


def write_ade20k(root):
    stem = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_00000001"
    save(stem.with_suffix(".jpg"))
    objects, parts = np.zeros((2, H, W, 3), np.uint8)
    objects[mask(1)] = (10, 7, 1)
    objects[mask(2)] = (10, 7, 2)  # the same class, another object
    parts[2:4, 1:4] = (20, 3, 1)
    save(Path(f"{stem}_seg.png"), objects)
    save(Path(f"{stem}_parts_1.png"), parts)


def write_ovis(root):
    names = ["video/img_0000001.jpg", "video/img_0000002.jpg", "video/img_0000003.jpg"]
    for name in names:
        save(root / "train" / name)
    save_json(
        root / "annotations_train.json",
        {
            "videos": [{"id": 3, "file_names": names, "height": H, "width": W}],
            "annotations": [
                {"id": 1, "video_id": 3, "segmentations": [rle(1, compressed=False), None, None], "iscrowd": 0},
                {"id": 2, "video_id": 3, "segmentations": [rle(2), None, rle(2)], "iscrowd": 0},
            ],
        },
    )


def write_hypersim(root):
    for scene in ("ai_001_001", "ai_020_001", "ai_056_001"):  # only the first is of the paper's volumes
        save(root / scene / "images/scene_cam_00_final_preview/frame.0000.tonemap.jpg")
        maps = root / scene / "images/scene_cam_00_geometry_hdf5/frame.0000.semantic_instance.hdf5"
        maps.parent.mkdir(parents=True)
        values = labels({1: 4, 2: 9}).astype(np.int16)
        values[values == 0] = -1
        with h5py.File(maps, "w") as file:
            file["dataset"] = values


def write_visor(root):
    base = root / "GroundTruth-SparseAnnotations"
    name = "P01_107_frame_0000000140.jpg"
    save(base / f"rgb_frames/val/P01/P01_107/{name}")
    annotations = [{"id": "a", "name": "hand", "segments": [polygon(1)]}, {"id": "b", "segments": [polygon(2)]}]
    frame = {"image": {"name": name, "video": "P01_107", "image_path": "x"}, "annotations": annotations}
    save_json(base / "annotations/val/P01_107.json", {"video_annotations": [frame]})


def write_plittersdorf(root):
    for i, part in enumerate(("train", "val", "test")):
        save(root / f"images/{i}.jpg")
        save_json(root / f"{part}.json", coco(f"{i}.jpg"))


def write_egohos(root):
    for name in ("ego4d_1", "thu_read_1", "epic_1"):
        save(root / f"train/image/{name}.jpg")
        save(root / f"train/label/{name}.png", labels({1: 2, 2: 5}).astype(np.uint8))


def write_ibd(root):
    colours = np.zeros((H, W, 3), np.uint8)
    colours[mask(1)], colours[mask(2)] = (255, 0, 0), (255, 0, 9)
    save(root / "train/a.png")
    save(root / "train_labels/a.png", colours)


def write_woodscape(root):
    save(root / "rgb_images/00000_FV.png")
    annotation = [{"tags": [tag], "segmentation": polygon(i)} for i, tag in ((1, "car"), (2, "void"), (2, "person"))]
    content = {"00000_FV.json": {"image_height": H, "image_width": W, "annotation": annotation}}
    save_json(root / "instance_annotations/00000_FV.json", content)


def write_cityscapes(root):
    """Writes a car, road as one segment, and, to be left out, a group of persons (24) and the ego vehicle (1)."""
    values = labels({1: 26001, 2: 7})
    values[0], values[-1] = 24, 1
    save(root / "leftImg8bit/val/ulm/ulm_000000_000001_leftImg8bit.png")
    save(root / "gtFine/val/ulm/ulm_000000_000001_gtFine_instanceIds.png", values.astype(np.uint16))


def write_dram(root):
    values = labels({1: 15, 2: 3})
    values[0] = 255
    save(root / "test/unseen/rococo/someone/1.jpg")
    save(root / "labels/unseen/rococo/someone/1.png", values.astype(np.uint8))


def write_gtea(root):
    save(root / "GTEA/Images/S1_Cheese_C1_0000000001.jpg")
    save(root / "GTEA/Masks/S1_Cheese_C1_0000000001.png", mask(1, 2).astype(np.uint8) * 255)


LAYOUTS = {  # name -> (writer, images, masks)
    "ppdls": (write_ppdls, 2, 4),
    "bbbc038v1": (write_bbbc, 1, 2),
    "doors": (write_doors, 1, 1),
    "timberseg": (write_coco("prescaled/coco_annotation.json", "prescaled/images/1.png"), 1, 2),
    "ndd20": (write_ndd20, 2, 4),
    "lvis": (
        write_coco("lvis_v0.5_val.json", "val2017/000000000139.jpg", "COCO_val2014_000000000139.jpg"),
        1,
        2,
    ),
    "streets": (write_streets, 1, 2),
    "zerowaste": (
        write_coco("splits_final_deblurred/train/labels.json", "splits_final_deblurred/train/data/a.PNG"),
        1,
        2,
    ),
    "ishape": (
        write_coco("wire/val/coco_format-mask_encoding=rle-instances_2017.json", "wire/val/image/00000.jpg"),
        1,
        2,
    ),
    "ade20k": (write_ade20k, 1, 3),
    "ovis": (write_ovis, 2, 3),
    "hypersim": (write_hypersim, 1, 2),
    "ndispark": (write_coco("ndis_park/train/train_coco_annotations.json", "ndis_park/train/imgs/60_1.jpg"), 1, 2),
    "visor": (write_visor, 1, 2),
    "plittersdorf": (write_plittersdorf, 3, 6),
    "egohos": (write_egohos, 2, 4),
    "ibd": (write_ibd, 1, 2),
    "woodscape": (write_woodscape, 1, 2),
    "cityscapes": (write_cityscapes, 1, 2),
    "pidray": (write_coco("pidray/annotations/xray_test_hard.json", "pidray/hard/xray_hard00001.png"), 1, 2),
    "dram": (write_dram, 1, 2),
    "trashcan": (
        write_coco("dataset/instance_version/instances_train_trashcan.json", "dataset/instance_version/train/v.jpg"),
        1,
        2,
    ),
    "gtea": (write_gtea, 1, 2),
}


def test_the_registry_is_the_papers_table():
    assert set(PAPER_DATASETS) <= set(LAYOUTS) <= set(DATASETS)
    assert len(PAPER_DATASETS) == 23
    assert sum(d.images for d in PAPER_DATASETS.values()) == 40_188
    assert sum(d.masks for d in PAPER_DATASETS.values()) == 172_653
    assert np.mean([d.difference for d in PAPER_DATASETS.values()]) == pytest.approx(9.24, abs=0.005)
    assert sum(d.difference > 0 for d in PAPER_DATASETS.values()) == 16
    assert not set(OTHER_DATASETS) & set(PAPER_DATASETS)
    # What was sampled has about 10,000 masks.
    assert all(9_000 < d.masks < 11_000 for d in PAPER_DATASETS.values() if d.sampled)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_read(name, tmp_path):
    write, images, masks = LAYOUTS[name]
    write(tmp_path / name)
    source = DATASETS[name].open(tmp_path, name)
    sample = sample_examples(source, folder=tmp_path / name)
    assert not sample.problems
    assert len(sample.examples) == images  # names do not collide
    assert sum(len(e.masks) for e in sample.examples.values()) == masks
    example = next(iter(sample.examples.values()))
    assert example.image().shape == (H, W, 3)
    assert (example.size, example.dataset) == ((H, W), name)
    decoded = [decode_rle(m) for m in example.masks]
    expected = [mask(1, 2)] if name == "doors" else [mask(1), mask(2)]
    for truth in expected:
        assert any((truth == found).all() for found in decoded), name


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_data_set_says_how_to_get_it(name, tmp_path):
    dataset = DATASETS[name]
    where = f"^{re.escape(dataset.title)} is not in {re.escape(str(tmp_path / name))}"
    with pytest.raises(FileNotFoundError, match=where) as raised:
        dataset.open(tmp_path, name)
    assert f"Get it from {dataset.source} (licence: {dataset.licence}" in str(raised.value)
    assert dataset.licence
    assert dataset.checked or "in part a guess" in str(raised.value)


def test_missing_maps_and_masks_of_another_size_are_named(tmp_path):
    write_ade20k(tmp_path / "ade20k")
    folder = next((tmp_path / "ade20k").rglob("*.jpg")).parent
    save(folder / "ADE_val_00000001_parts_1.png", np.ones((3, 4, 3), np.uint8))
    source = DATASETS["ade20k"].open(tmp_path, "ade20k")
    with pytest.raises(BadRecord, match=r"masks of another size: .*parts_1.png \(\(3, 4\), the first map \(12, 16\)"):
        source[0]
    save(folder / "ADE_val_00000002.jpg")
    with pytest.raises(BadRecord, match=r"map cannot be decoded: .*00000002_seg.png"):
        DATASETS["ade20k"].open(tmp_path, "ade20k")[1]
    for path in folder.glob("*_seg.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no maps beside the images"):
        DATASETS["ade20k"].open(tmp_path, "ade20k")


def test_ids_of_images_that_occur_twice_are_named(tmp_path):
    content = coco("a.jpg")
    content["images"] *= 2
    save(tmp_path / "lvis/val2017/a.jpg")
    save_json(tmp_path / "lvis/lvis_v0.5_val.json", content)
    with pytest.raises(ValueError, match=r"expected different ids of images in .*val.json, got 1 .* such as 5"):
        DATASETS["lvis"].open(tmp_path, "lvis")


def test_files_of_another_format_say_what_was_expected(tmp_path):
    save_json(tmp_path / "streets/vehicleannotations/annotations/vehicle-annotations.json", {"a": {"filename": "b"}})
    with pytest.raises(ValueError, match=r"expected outlines in .* as via_polygons takes them: KeyError 'regions'"):
        DATASETS["streets"].open(tmp_path, "streets")
    save_json(tmp_path / "ovis/annotations_train.json", {"videos": [{}], "annotations": []})
    with pytest.raises(ValueError, match="expected YouTube-VIS's format"):
        DATASETS["ovis"].open(tmp_path, "ovis")


def test_lvis_file_names_of_either_version(tmp_path):
    save(tmp_path / "lvis/val2017/000000000139.jpg")
    content = coco("x")
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000000000139.jpg"
    save_json(tmp_path / "lvis/lvis_v0.5_val.json", content)
    assert DATASETS["lvis"].open(tmp_path, "lvis")[0].path == tmp_path / "lvis/val2017/000000000139.jpg"


def test_the_set_in_the_repository_is_read_and_every_photograph_has_its_author():
    examples = Path(__file__).parent.parent / "examples"
    text = (examples / "README.md").read_text()
    for name, images, masks in (("photographs", 7, 43), ("dsb2018", 5, 94)):
        source = DATASETS[name].open(examples, name)
        sample = sample_examples(source, folder=examples / name)
        assert not sample.problems
        assert len(sample.examples) == images
        assert sum(len(e.masks) for e in sample.examples.values()) == masks
        assert all(e.image().shape[:2] == e.size for e in sample.examples.values())
    for path in (examples / "photographs/images").iterdir():
        assert f"| `{path.name}` | " in text
    assert sum(path.stat().st_size for path in examples.rglob("*") if path.is_file()) < 1_000_000
