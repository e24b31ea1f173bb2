"""Runs all zero-shot evaluations of the paper whose data is in one folder, with one model, in one report.

sam-jax eval zero_shot --model NAME|PATH --data FOLDER
sam-jax eval zero_shot --model vit_h --data FOLDER --only single_point edges --max-images 100

FOLDER holds a folder per data set of data/zero_shot/registry.py, bsds500, and for proposals and instances
lvis/lvis_v1_val.json and coco/annotations/instances_val2017.json with the images in coco/val2017; a detector's boxes
for the latter in detections/coco.json. What is missing is named with the way to get it; the same command goes on.
"""

from pathlib import Path

from sam_jax.config_file import REQUIRED
from sam_jax.data.zero_shot import PAPER_DATASETS
from sam_jax.evals.edges import EdgesConfig
from sam_jax.evals.instances import InstancesConfig
from sam_jax.evals.noc import NocConfig
from sam_jax.evals.proposals import ProposalsConfig
from sam_jax.evals.single_point import SinglePointConfig
from sam_jax.evals.suite import SuiteConfig

COCO_VAL = Path("coco/annotations/instances_val2017.json")


def get_config() -> SuiteConfig:
    points = SinglePointConfig(
        out=Path("single_point"),
        data=Path(),
        datasets=tuple(PAPER_DATASETS),
        methods=("sam",),
        max_images=0,
        max_masks=0,
        clicks=9,
    )
    small = SinglePointConfig(
        out=Path("single_point_small"), data=Path(), datasets=("coco_small", "dsb2018", "grabcut20"), methods=("sam",)
    )
    return SuiteConfig(
        data=REQUIRED,
        tasks=(
            points,
            small,
            EdgesConfig(out=Path("edges"), data=Path("bsds500")),
            ProposalsConfig(out=Path("proposals"), annotations=Path("lvis/lvis_v1_val.json"), images=Path("coco")),
            InstancesConfig(
                out=Path("instances"),
                annotations=COCO_VAL,
                images=Path("coco/val2017"),
                boxes=Path("detections/coco.json"),
                methods=("sam",),
            ),
            NocConfig(out=Path("clicks"), data=Path(), methods=("sam",)),
        ),
        sources={
            "edges": "github.com/BIDS/BSDS500, folder BSDS500/data, as bsds500",
            "proposals": "lvisdataset.org (lvis_v1_val.json, as lvis) and cocodataset.org (the images, as coco)",
            "instances": "cocodataset.org (annotations and images, as coco); the boxes: sam-jax detect",
        },
    )
