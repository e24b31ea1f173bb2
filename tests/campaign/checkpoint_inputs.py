"""Damaged and hostile checkpoints of every format that is read; programs in them would make a file, named by MARKER."""

import dataclasses
import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from campaign.mutate import mutate_bytes, mutate_json
from sam_jax.checkpoints import export_checkpoint, load_checkpoint, load_everything_options, save_checkpoint
from sam_jax.checkpoints.published import read_published
from sam_jax.config import EverythingOptions, SamConfig, ViTConfig

CONFIG = SamConfig(
    name="least",
    encoder=ViTConfig(
        image_size=32, patch_size=8, dim=8, depth=1, heads=1, window_size=3, global_attention_blocks=(0,)
    ),
    prompt_dim=8,
    decoder_depth=1,
    decoder_heads=1,
    decoder_mlp_dim=8,
    iou_head_hidden_dim=8,
)
CODE = "import os; open(os.environ['MARKER'], 'w').close()"


class Program:
    """Runs when an ordinary unpickler reads it."""

    def __init__(self, how: int) -> None:
        self.how = how

    def __reduce__(self) -> tuple:
        import os
        import subprocess

        system = (os.system, ("touch $MARKER",))
        return (
            system,
            (exec, (CODE,)),
            (eval, (f"exec({CODE!r})",)),
            (subprocess.call, (["sh", "-c", "touch $MARKER"],)),
        )[self.how]


def params_of(config: SamConfig) -> Any:
    """Returns random params without running a program of JAX's."""
    from flax.traverse_util import unflatten_dict

    from sam_jax.checkpoints import expected_shapes

    rng = np.random.default_rng(0)
    shapes = expected_shapes(config)
    return unflatten_dict(
        {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}, sep="/"
    )


def rewrite_zip(data: bytes, ending: str, change: Any) -> bytes:
    """Returns a zip in which one file has other bytes, with the sums of a sound archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(ending) else content)
    return buffer.getvalue()


class Safetensors:
    count, large = 5_000, False

    def prepare(self, folder: Path) -> None:
        path = folder / "least.safetensors"
        save_checkpoint(path, params_of(CONFIG), CONFIG, everything=EverythingOptions(points_per_side=8))
        self.seed = path.read_bytes()

    def run(self, rng: random.Random, folder: Path) -> None:
        (length,) = struct.unpack("<Q", self.seed[:8])
        head = json.loads(self.seed[8 : 8 + length])
        if rng.random() < 0.5:  # what the file says of itself
            key = rng.choice(sorted(head["__metadata__"]))
            head["__metadata__"][key] = mutate_json(head["__metadata__"][key].encode(), rng).decode("utf-8", "replace")
            text = json.dumps(head).encode()
        else:
            text = mutate_json(self.seed[8 : 8 + length], rng)
        data = struct.pack("<Q", len(text)) + text + self.seed[8 + length :]
        if rng.random() < 0.2:
            data = mutate_bytes(self.seed, rng)
        path = folder / "damaged.safetensors"
        path.write_bytes(data)
        load_checkpoint(path)
        load_everything_options(path)


class Pickled:
    """What the three formats of pickles have in common."""

    suffix, large = "", False
    seeds: list[bytes]
    program: str  # ending of the file in a zip that holds the pickle; "": the file itself is one

    def run(self, rng: random.Random, folder: Path) -> None:
        data = rng.choice(self.seeds)
        if self.program and data.startswith(b"PK") and rng.random() < 0.7:
            data = rewrite_zip(data, self.program, lambda content: mutate_bytes(content, rng))
        elif rng.random() < 0.95:
            data = mutate_bytes(data, rng, self.seeds)
        path = folder / f"damaged{self.suffix}"
        path.write_bytes(data)
        self.read(path)

    def read(self, path: Path) -> None:
        read_published(path)


class Pytorch(Pickled):
    count, suffix, program = 5_000, ".pth", "data.pkl"

    def read(self, path: Path) -> None:
        load_checkpoint(path)

    def prepare(self, folder: Path) -> None:
        import torch

        export_checkpoint(folder / "least.pth", params_of(CONFIG), CONFIG)
        state = torch.load(folder / "least.pth", weights_only=True)
        self.seeds = [(folder / "least.pth").read_bytes()]
        contents: list[Any] = [state, {"model": state, "epoch": 3}, {1: state, "config": [1]}, list(state.values())]
        contents += [{**state, "a": Program(how)} for how in range(4)]
        for content in contents:
            for zipped in (True, False):
                buffer = io.BytesIO()
                torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
                self.seeds.append(buffer.getvalue())


class TorchScript(Pickled):
    count, suffix, program = 4_000, ".pt", "data.pkl"

    def prepare(self, folder: Path) -> None:
        import torch

        module = torch.nn.Module()
        for i, name in enumerate(("visual", "transformer")):
            module.add_module(name, torch.nn.Linear(3, 2 + i))
        module.forward = lambda x: x
        script = torch.jit.trace_module(
            torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)), {"forward": torch.zeros(1, 4)}
        )
        buffer = io.BytesIO()
        torch.jit.save(script, buffer)
        sound = buffer.getvalue()
        bombs = [pickle.dumps({"a": Program(how)}, 2) for how in range(4)]
        self.seeds = [sound] * 4 + [rewrite_zip(sound, "data.pkl", lambda _, bomb=bomb: bomb) for bomb in bombs]


class Pickle(Pickled):
    count, suffix, program = 5_000, ".pkl", ""

    def prepare(self, folder: Path) -> None:
        state = {"backbone.net.pos_embed": np.ones((1, 5, 8), np.float32), "b": np.zeros(3), "c": np.arange(4)}
        contents: list[Any] = [state, {"model": state, "iteration": 3}, {"model": {**state, "x": "text"}}]
        contents += [{"model": {**state, "a": Program(how)}} for how in range(4)]
        self.seeds = [pickle.dumps(content, protocol) for content in contents for protocol in (2, 4)]


class HuggingFace:
    count, large = 3_000, False

    def prepare(self, folder: Path) -> None:
        export_checkpoint(folder / "sound", params_of(CONFIG), CONFIG)
        self.files = {path.name: path.read_bytes() for path in (folder / "sound").iterdir()}

    def run(self, rng: random.Random, folder: Path) -> None:
        damaged = folder / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        damaged.mkdir()
        name = rng.choice(sorted(self.files))
        for other, data in self.files.items():
            if other == name:
                data = mutate_json(data, rng) if other.endswith(".json") else mutate_bytes(data, rng)
            (damaged / other).write_bytes(data)
        if rng.random() < 0.05:
            (damaged / name).unlink()
        load_checkpoint(damaged)


class Orbax:
    """The last checkpoint of a training run, and the run's record."""

    count, large = 5_000, False

    def prepare(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        from campaign.train_config import get_config
        from sam_jax.training.checkpoints import checksum, open_checkpoints
        from sam_jax.training.run import RECORD, claim_folder

        config = dataclasses.replace(get_config(), out=folder / "run")
        claim_folder(config.out, config, resume=False)
        params = params_of(config.model)
        state = {"params": params, "frozen": {}, "ema": None}
        data = {"batches": 2, "checksum": checksum(state)}
        with open_checkpoints(config.out / "checkpoints") as manager:
            for step in (2, 4):
                items = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(data)}
                manager.save(step, args=ocp.args.Composite(**items), metrics={"score": 0.5})
        self.record = RECORD
        self.files = {p.relative_to(config.out): p.read_bytes() for p in config.out.rglob("*") if p.is_file()}
        self.sound = flatten_dict(params, sep="/")

    def run(self, rng: random.Random, folder: Path) -> None:
        from sam_jax.training.export import load_run

        run = folder / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        name = rng.choice(sorted(self.files))
        for other, data in self.files.items():
            if other == name:
                if rng.random() < 0.1:
                    continue
                as_json = data[:1] == b"{" and rng.random() < 0.7
                data = mutate_json(data, rng) if as_json else mutate_bytes(data, rng)
            (run / other).parent.mkdir(parents=True, exist_ok=True)
            (run / other).write_bytes(data)
        params, _, _ = load_run(run)
        if name.name != self.record:  # what is given out is what was saved, or nothing
            flat = flatten_dict(params, sep="/")
            assert flat.keys() == self.sound.keys()
            for path, value in flat.items():
                np.testing.assert_array_equal(value, self.sound[path])
