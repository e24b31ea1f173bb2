"""What the commands of the guides need: their text cut into commands, data, and small stand-ins for published weights
and long trainings."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from cases.bsds import write_ground_truth
from cases.data import sa1b_files, write_tar
from cases.models import SMALL, SMALL_CLIP
from sam_jax.checkpoints import export_checkpoint, save_checkpoint
from sam_jax.clip.network import init_clip_params
from sam_jax.data.shapes import write_shapes
from sam_jax.modeling import init_params
from sam_jax.ops.rle import coco_bbox, decode_rle, encode_rle

ROOT = Path(__file__).parent.parent.parent
MODEL = dataclasses.replace(SMALL, prompt_dim=256, decoder_heads=8, name="custom")  # its config can be guessed
CLIP = dataclasses.replace(SMALL_CLIP, name="clip_l14_336")
STEPS = 10  # of the engine's trainings, which are hundreds
SCALE = 6  # of the images of shapes


def read_commands(page: str) -> list[str]:
    """Returns the commands of a page, a path in the repository, in their order."""
    lines = [line for code in _blocks(page, "") for line in code.splitlines() if line.strip()]
    return [command for line in lines for command in re.sub(r"\s+#\s.*", "", line).split(" && ")]


def read_program(page: str) -> str:
    """Returns the Python blocks of a page as one program: later ones go on from the earlier."""
    return "\n".join(_blocks(page, "python"))


def _blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [code for own, code in found if own == language]


def write_coco(folder: Path, images: str, count: int, seed: int) -> dict:
    """Writes images of coloured shapes to a subfolder and returns what a COCO-format file says of them."""
    content = json.loads(write_shapes(folder / ".small", count, seed).read_text())
    (folder / images).mkdir(parents=True, exist_ok=True)
    for entry in content["images"]:
        with Image.open(folder / ".small" / "images" / entry["file_name"]) as small:
            size = (entry["width"] * SCALE, entry["height"] * SCALE)
            entry["file_name"] = entry["file_name"].replace(".png", ".jpg")
            small.resize(size, Image.Resampling.BICUBIC).save(folder / images / entry["file_name"], quality=95)
        entry["width"], entry["height"] = size
    for annotation in content["annotations"]:
        rle = encode_rle(np.kron(decode_rle(annotation["segmentation"]), np.ones((SCALE, SCALE), bool)))
        area = annotation["area"] * SCALE**2
        annotation |= {"segmentation": rle, "bbox": coco_bbox(rle), "area": area}
    return content


def write_data(folder: Path) -> None:
    """Writes everything that README's commands name and do not make themselves, except downloads."""
    photos = write_coco(folder, "photos", 14, seed=0)
    (folder / "photos.json").write_text(json.dumps(photos))
    os.link(folder / "photos" / "000000.jpg", folder / "photo.jpg")
    (folder / "my_images").mkdir()
    mine = write_coco(folder, "my_images/images", 22, seed=1)
    (folder / "my_images" / "annotations.json").write_text(json.dumps(mine))
    instances = write_coco(folder, "val2017", 2, seed=2)
    for name in ("instances.json", "refs.json"):
        (folder / name).write_text(json.dumps(instances))
    for i in range(2):
        (folder / "sa1b_tars").mkdir(exist_ok=True)
        write_tar(folder / f"sa1b_tars/sa_{i:06}.tar", sa1b_files(range(3 * i, 3 * i + 3)))
    first = instances["images"][0]
    masks = [decode_rle(a["segmentation"]) for a in instances["annotations"] if a["image_id"] == first["id"]]
    picture = Image.open(folder / "val2017" / first["file_name"])
    cells, grabcut = folder / "datasets/bbbc038v1/stage1_train/00", folder / "datasets/GrabCut"
    paths = {cells / "images/00.png": picture, grabcut / "data_GT/0.png": picture}
    paths |= {cells / f"masks/{i}.png": Image.fromarray(mask) for i, mask in enumerate(masks)}
    paths |= {grabcut / "boundary_GT/0.png": Image.fromarray(np.uint8(masks[0]) * 255)}
    for root in (folder / "bsds500", folder / "datasets/bsds500"):
        paths[root / "images/test/0.jpg"] = picture.resize((96, 96))
        outline = np.asarray(Image.fromarray(masks[0]).resize((96, 96)))
        write_ground_truth(root / "groundTruth/test/0.mat", [outline ^ np.roll(outline, 1, 0)] * 2)
    for path, image in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def write_models(folder: Path, published: Path) -> dict[str, dict[str, str]]:
    """Writes the stand-ins of published models to one folder, and to the other the files that README's user has.

    Returns:
        for each stand-in its file name, SHA-256 and config.
    """
    params = init_params(MODEL, jax.random.key(0))
    export_checkpoint(published / "sam_vit_b_01ec64.pth", params, MODEL)
    os.link(published / "sam_vit_b_01ec64.pth", folder / "sam_vit_b_01ec64.pth")
    save_checkpoint(published / "ViT-L-14-336px.pt", init_clip_params(CLIP, jax.random.key(1)), CLIP)
    with_text = dataclasses.replace(MODEL, text_dim=CLIP.embedding_dim, text_encoder=CLIP.name)
    (folder / "runs/text").mkdir(parents=True)
    save_checkpoint(folder / "runs/text/model.safetensors", init_params(with_text, jax.random.key(2)), with_text)
    return {
        name: {
            "file": file,
            "sha256": hashlib.sha256((published / file).read_bytes()).hexdigest(),
            "config": config.to_json(),
        }
        for name, file, config in (
            ("vit_b", "sam_vit_b_01ec64.pth", MODEL),
            ("clip_l14_336", "ViT-L-14-336px.pt", CLIP),
        )
    }


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves a folder over HTTP; gives its address and the list of paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


STAND_INS = '''
"""Publishes small models under the names of large ones, when the package looks for its releases."""
import dataclasses, importlib.util, json, sys

MODELS, ADDRESS = json.loads({models!r}), {address!r}

class Finder:
    def find_spec(self, name, path, target=None):
        if name != "sam_jax.checkpoints.hub":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            for releases in (module.RELEASES, module.CLIP_RELEASES):
                for name in releases.keys() & MODELS.keys():
                    model, old = MODELS[name], releases[name]
                    config, url = type(old.config).from_json(model["config"]), f"{{ADDRESS}}/{{model['file']}}"
                    releases[name] = dataclasses.replace(old, config=config, url=url, sha256=model["sha256"])
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
'''


def install_wheel(folder: Path, models: dict[str, dict[str, str]], address: str) -> dict[str, str]:
    """Builds the package's wheel and installs it into an environment that has what it depends on, and no clone.

    Returns:
        environment variables of commands in it.
    """
    source, wheels, venv = folder / "source", folder / "wheels", folder / "venv"
    source.mkdir()
    for name in ("sam_jax", "configs", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-R", ROOT / name, source], check=True)
    quiet = ["-q", "--disable-pip-version-check"]
    build = ["wheel", *quiet, "--no-deps", "--no-build-isolation", "-w", wheels, source]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = ["install", *quiet, "--no-deps", "--no-index", "--find-links", wheels, "sam_jax"]
    subprocess.run([venv / "bin/python", "-m", "pip", *install], check=True)
    packages = venv / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for name in ("engine_model", "engine_detector"):
        config = packages / f"sam_jax/configs/{name}.py"
        config.write_text(re.sub(r"^        steps=\d+,", f"        steps={STEPS},", config.read_text(), flags=re.M))
    (packages / "stand_ins.py").write_text(STAND_INS.format(models=json.dumps(models), address=address))
    (packages / "stand_ins.pth").write_text("import stand_ins\n")
    inherited = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "zz_dependencies.pth").write_text(f"{inherited}\n")  # its own .pth files, as of a clone, count no more
    outside = {"PYTHONPATH", "VIRTUAL_ENV", "SAM_JAX_CACHE"}
    return {name: value for name, value in os.environ.items() if name not in outside} | {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "JAX_NUM_CPU_DEVICES": "1",
    }
