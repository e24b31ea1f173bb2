"""Writes the part of a COCO-format file whose images have `coco_split` SPLIT: coco_split.py FILE SPLIT OUT.

    python benchmarks/coco_split.py coco_small/instances.json val2017 val2017.json
    sam-jax eval instances --annotations val2017.json --images coco_small/images

The field tells which of COCO's own parts an image was taken from, in files that hold images of several.
"""

import json
import sys
from pathlib import Path

from sam_jax.files import write_atomically

if __name__ == "__main__":
    source, split, target = sys.argv[1:]
    content = json.loads(Path(source).read_text())
    content["images"] = [image for image in content["images"] if image["coco_split"] == split]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    write_atomically(Path(target), json.dumps(content))
    print(f"{len(kept)} images with {len(content['annotations'])} objects, in {target}")
