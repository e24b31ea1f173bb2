"""The commands that write, each on small inputs: what they are given, and what they must have made in the end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign.checkpoint_inputs import CONFIG, params_of

HERE = Path(__file__).parent
SEGMENT = ["--preset", "official", "--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]


class Command:
    """A command in a folder, whose inputs lie in `in` and whose results in `out`. All paths are in that folder.

    Methods run in processes of their own, which end afterwards.
    """

    def __init__(self, name: str, *arguments: str, compared: Callable[[Path], Any] | None = None) -> None:
        self.name, self.arguments = name, arguments
        self._compared = compared

    def prepare(self, folder: Path) -> None:
        """Makes the inputs, and what an earlier command has left."""
        (folder / "in").mkdir(parents=True)

    def run(self, folder: Path) -> int:
        """Runs the command; returns its exit code."""
        from sam_jax.commands.main import main

        return main([part.replace("FOLDER", str(folder)) for part in self.arguments])

    def result(self, folder: Path) -> Any:
        """Returns what is compared with the result of an uninterrupted run; raises where there is none."""
        return self._compared(folder) if self._compared else files_of(folder / "out")

    def intact(self, folder: Path) -> None:
        """Raises if something is lost or half there, after a command that was killed or found no space."""


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files that are not hidden."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in paths.items()
        if not any(part.startswith(".") for part in name.parts)
    }


class Convert(Command):
    """Replaces a checkpoint by another: there is the old one or the new one at any time."""

    def prepare(self, folder: Path) -> None:
        from sam_jax.checkpoints import export_checkpoint, save_checkpoint

        super().prepare(folder)
        params = params_of(CONFIG)
        save_checkpoint(folder / "in" / "new.safetensors", params, CONFIG)
        params["mask_decoder"]["iou_token"] = params["mask_decoder"]["iou_token"] + 1
        (folder / "out").mkdir()
        export_checkpoint(self.target(folder), params, CONFIG)

    def target(self, folder: Path) -> Path:
        return Path(self.arguments[2].replace("FOLDER", str(folder)))

    def result(self, folder: Path) -> Any:
        from flax.traverse_util import flatten_dict

        from sam_jax.checkpoints import load_checkpoint

        params, config = load_checkpoint(self.target(folder))
        flat = flatten_dict(params, sep="/")
        return {name: flat[name].tobytes() for name in sorted(flat)}, config.to_json(), sorted(files_of(folder / "out"))

    def intact(self, folder: Path) -> None:
        self.result(folder)


class Prepare(Command):
    """Prepares tars like SA-1B's, or a COCO-format file."""

    def prepare(self, folder: Path) -> None:
        from cases.data import coco_json, sa1b_files, write_images, write_tar

        super().prepare(folder)
        if "FOLDER/in/tars" in self.arguments:
            for i in range(2):
                write_tar(folder / "in" / "tars" / f"sa_{i}.tar", sa1b_files(range(2 * i, 2 * i + 2)))
        else:
            write_images(folder / "in", range(3))
            (folder / "in" / "annotations.json").write_text(json.dumps(coco_json(range(3))))

    def result(self, folder: Path) -> Any:
        from sam_jax.data.prepared import PreparedSource

        found = []
        for path in sorted((folder / "out").glob("sam_*/*")):
            source = PreparedSource(path, "train")
            examples = [source[i] for i in range(len(source))]
            found.append([(example.name, example.encoded, example.size, example.masks) for example in examples])
        return found, sorted(str(p.relative_to(folder)) for p in (folder / "out").glob("sam_*/*/*")), self.left(folder)

    @staticmethod
    def left(folder: Path) -> list[str]:
        return [path.name for path in (folder / "out").glob(".partial*")]

    def intact(self, folder: Path) -> None:
        if list((folder / "out").glob("sam_*/*")):  # what has its last name is whole
            self.result(folder)


class Segment(Command):
    """Segments everything in a few images, to files or to tars."""

    def prepare(self, folder: Path) -> None:
        from PIL import Image

        from cases.everything import make_image
        from sam_jax.checkpoints import save_checkpoint

        super().prepare(folder)
        (folder / "in" / "images").mkdir()
        save_checkpoint(folder / "in" / "model.safetensors", params_of(CONFIG), CONFIG)
        for i in range(3):
            Image.fromarray(make_image()[: 90 + 5 * i : 2, i:120:2]).save(folder / "in" / "images" / f"{i}.png")

    def intact(self, folder: Path) -> None:
        for path in (folder / "out").rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.suffix == ".json" and not hidden:
                json.loads(path.read_text())


class Train(Command):
    """Trains for four steps with a checkpoint after the second; the same command, with --resume, goes on."""

    def prepare(self, folder: Path) -> None:
        from cases.data import coco_json, write_images

        super().prepare(folder)
        write_images(folder / "in", range(6))
        (folder / "in" / "annotations.json").write_text(json.dumps(coco_json(range(6))))
        shutil.copy(HERE / "train_config.py", folder / "in" / "train_config.py")

    def result(self, folder: Path) -> Any:
        from sam_jax.training.watch import read_metrics

        out = folder / "out"
        measured = ("second", "memory", "wait", "utilisation")  # by the clock
        records = [
            {name: value for name, value in record.items() if not any(word in name for word in measured)}
            for record in read_metrics(out)
        ]
        steps = sorted(path.name for path in (out / "checkpoints").iterdir() if path.name.isdigit())
        return (out / "model.safetensors").read_bytes(), records, steps

    def intact(self, folder: Path) -> None:
        from sam_jax.checkpoints import load_checkpoint

        if (folder / "out" / "model.safetensors").exists():
            load_checkpoint(folder / "out" / "model.safetensors")


class TrainOnViews(Train):
    """Trains the decoder on views of the images that are encoded before, two to a file."""

    def run(self, folder: Path) -> int:
        from sam_jax.data import cached_views

        cached_views.FILE_BYTES = 2 * VIEW_BYTES
        return super().run(folder)

    def result(self, folder: Path) -> Any:
        views = files_of(folder / "out" / "views")
        assert len(views) == 6, sorted(views)  # five of two views each, and what they were made with
        return super().result(folder), views


class Export(Command):
    """Exports what people have drawn into a new folder, which is whole or not there: once there, it is refused."""

    def prepare(self, folder: Path) -> None:
        from cases.app import SIZE, mask_message, write_images
        from sam_jax.engine.records import MaskRecord
        from sam_jax.engine.store import Store

        super().prepare(folder)
        write_images(folder / "in" / "images", 3)
        store = Store(folder / "in" / "project")
        store.add_images(folder / "in" / "images", [f"{i}.png" for i in range(3)])
        for image in store.images():
            store.set_size(image.id, SIZE[1], SIZE[0])
            for i in range(2):
                rle = mask_message(box=(i, i, 30 + i, 40))["segmentation"]
                store.save_mask(MaskRecord(f"{image.id}{i}", image.id, "Ada", rle))

    def result(self, folder: Path) -> Any:
        return files_of(folder / "out" / "masks")


class Annotate(Command):
    """Saves masks, and finishes images, through the page's application; what was acknowledged must be there."""

    def prepare(self, folder: Path) -> None:
        from cases.app import write_images

        super().prepare(folder)
        write_images(folder / "in", 2)

    def run(self, folder: Path) -> int:
        from sam_jax.errors import EXPECTED_ERRORS

        try:
            return self._save_all(folder)
        except EXPECTED_ERRORS as error:  # as a command answers them
            print(error)
            return 2

    @staticmethod
    def _save_all(folder: Path) -> int:
        from fastapi.testclient import TestClient

        from cases.app import BASE, mask_message
        from sam_jax.app.server import create_app
        from sam_jax.engine.store import Store
        from sam_jax.model import Sam
        from sam_jax.web.guard import Access

        store = Store(folder / "out")
        store.add_images(folder / "in", ["0.png", "1.png"])
        app = create_app(store, Sam(CONFIG, params_of(CONFIG)), Access(), model_version="least")
        client, who, failed = TestClient(app, base_url=BASE), {"annotator": "Ada"}, 0
        for picture in (1, 2):
            store.set_size(picture, 80, 60)
            for i in range(6):
                name = f"m{picture}{i}"
                message = mask_message(box=(i, i, 30 + i, 40), name=name)
                answer = client.put(f"/api/pictures/{picture}/masks/{name}", params=who, json=message)
                if answer.status_code != 200:
                    print(answer.text)
                    failed += 1
                else:
                    with (folder / "acknowledged").open("a") as file:
                        file.write(f"{picture} {name}\n")
            client.delete(f"/api/masks/m{picture}5", params=who)
            finish = {"outcome": "done", "seconds": 3.0}
            client.post(f"/api/pictures/{picture}/finish", params=who, json=finish)
        return 2 if failed else 0

    def result(self, folder: Path) -> Any:
        from sam_jax.engine.store import Store

        store = Store(folder / "out")
        return [[(mask.id, mask.name, str(mask.segmentation)) for mask in store.masks(i)] for i in (1, 2)]

    def intact(self, folder: Path) -> None:
        from sam_jax.engine.store import Store

        if not (folder / "acknowledged").exists():
            return
        store = Store(folder / "out")
        for line in (folder / "acknowledged").read_text().splitlines():
            picture, name = line.split()
            assert store.history(name), f"lost {name} of image {picture}"


VIEW_BYTES = 2 * 4 * 4 * 8  # of the maps of one: float16, a cell per patch
TRAIN = ("train", "FOLDER/in/train_config.py", "--data.path", "FOLDER/in", "--out", "FOLDER/out", "--resume")
VIEWS = ("--finetune.trainable", "^(?!image_encoder/)", "--finetune.cache-views", "2")
PROJECT = ("engine", "export", "FOLDER/in/project", "--out", "FOLDER/out/masks")
MODEL = ("--model", "FOLDER/in/model.safetensors")
IMAGES = ("FOLDER/in/images", "--out", "FOLDER/out", *MODEL, *SEGMENT)
NEW = "FOLDER/in/new.safetensors"
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Convert("convert-ours", "convert", NEW, "FOLDER/out/model.safetensors", "--overwrite"),
        Convert("convert-pytorch", "convert", NEW, "FOLDER/out/model.pth", "--overwrite"),
        Convert("convert-huggingface", "convert", NEW, "FOLDER/out/model", "--overwrite"),
        Prepare("prepare-sa1b", "prepare", "FOLDER/in/tars", "--out", "FOLDER/out"),
        Prepare("prepare-coco", "prepare", "FOLDER/in", "--out", "FOLDER/out"),
        Segment("everything-sa1b", "everything", *IMAGES),
        Segment("everything-coco", "everything", *IMAGES, "--format", "coco"),
        Segment("everything-png", "everything", *IMAGES, "--format", "png"),
        Segment("engine-run", "engine", "run", *IMAGES, "--shards", "2"),
        Segment("segment", "segment", "FOLDER/in/images/0.png", "--point", "20,20", "--out", "FOLDER/out", *MODEL),
        Train("train", *TRAIN),
        TrainOnViews("train-views", *TRAIN, *VIEWS),
        Export("engine-export-coco", *PROJECT),
        Export("engine-export-yolo", *PROJECT, "--format", "yolo"),
        Annotate("annotate"),
    )
}
