"""Values of configs are checked by type and bounds, by name, before anything is built of them."""

import dataclasses
import importlib
import pkgutil
import sqlite3
from pathlib import Path

import pytest

from sam_jax.bounds import CheckedFields, count_tensors, field_types, unbounded
from sam_jax.checkpoints import expected_shapes
from sam_jax.clip.config import CLIP_B32
from sam_jax.commands.main import main
from sam_jax.config import (
    SMALL,
    VIT_B,
    DataConfig,
    FinetuneConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    PromptConfig,
    TextConfig,
    TrainConfig,
)
from sam_jax.data.loader import check_batch_fits
from sam_jax.detection.config import DETECTORS
from sam_jax.engine.store import FILE, Store
from sam_jax.errors import UserError
from sam_jax.everything.config import MaskGeneratorConfig
from sam_jax.everything.options import GeneratorOptions
from sam_jax.training.detector.config import SamplingConfig


def options():
    """Yields every class of configs and of commands' options."""
    modules = [importlib.import_module("sam_jax.config")]
    for package in ("clip", "ritm", "detection", "evals", "commands", "everything", "training.detector"):
        path = importlib.import_module(f"sam_jax.{package}").__path__
        modules += [importlib.import_module(f"sam_jax.{package}.{found.name}") for found in pkgutil.iter_modules(path)]
    for module in modules:
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        for value in classes:
            named = value.__name__.endswith(("Config", "Options")) or issubclass(value, CheckedFields)
            command = ".commands." in module.__name__ and hasattr(value, "run")
            if value.__module__ == module.__name__ and dataclasses.is_dataclass(value) and (named or command):
                yield value


def test_every_number_of_every_config_and_command_has_bounds():
    found = list(options())
    assert len(found) > 40
    for config in found:
        numbers = [name for name, annotation in field_types(config).items() if unbounded(annotation)]
        assert not numbers, (config, numbers)
        if any("Within(" in str(annotation) for annotation in field_types(config).values()):
            assert issubclass(config, CheckedFields), config


@pytest.mark.parametrize(
    "config", [SMALL, VIT_B, CLIP_B32, DETECTORS["mask_rcnn_vitdet_b"], DETECTORS["cascade_mask_rcnn_vitdet_b_lvis"]]
)
def test_no_model_has_fewer_tensors_than_its_layers_say(config):
    assert 0.5 < count_tensors(config) / len(expected_shapes(config)) <= 1


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (DataConfig, {"batch_size": 0, "masks_per_image": 0, "workers": -1, "flip_probability": 1.5, "min_area": -1}),
        (DataConfig, {"batch_size": 10**9, "masks_per_image": 2.0, "worker_processes": 10**6, "max_bad_fraction": 2}),
        (DataConfig, {"scale_range": (2.0, 1.0), "colour_jitter": float("nan"), "dataset_weights": (1.0, -1.0)}),
        (DataConfig, {"scale_range": (0.0, 1.0), "mosaic_probability": -0.1, "format": "zip", "repeat_masks": 1}),
        (PromptConfig, {"point_rounds": -1, "box_probability": 2.0, "box_noise": -1.0, "refine_rounds": 10**9}),
        (TextConfig, {"probability": -1.0, "expansion": (0.5, 2.0), "hide_probability": float("nan")}),
        (TextConfig, {"expansion": (3.0, 2.0), "clip": 3}),
        (LossConfig, {"size": 0, "focal": float("inf"), "focal_alpha": 2.0, "focal_gamma": -1.0, "dice": -1.0}),
        (OptimizerConfig, {"learning_rate": -1.0, "betas": (0.9, 1.0), "layer_decay": 0.0, "epsilon": 0.0}),
        (OptimizerConfig, {"clip_norm": 0.0, "warmup_steps": -1, "decay_steps": (-1,), "weight_decay": float("nan")}),
        (FinetuneConfig, {"trainable": "(", "lora_targets": "[", "lora_rank": -1, "cache_views": -1, "cache_gb": 0.0}),
        (ParallelConfig, {"data": -1, "fsdp": 0, "mode": "tpu", "processes": 0, "process": -1}),
        (SamplingConfig, {"anchors": 0, "anchor_ious": (0.7, 0.3), "box_positives": 1.5}),
        (MaskGeneratorConfig, {"points_per_side": 10**6, "crop_n_layers": 60, "pred_iou_thresh": float("nan")}),
        (MaskGeneratorConfig, {"points_per_batch": 10**9, "nms_seed": -1, "output_mode": "png", "max_masks": -1}),
        (GeneratorOptions, {"images_per_device": 0, "stability_score_thresh": 2.0, "devices": "none"}),
    ],
)
def test_bad_values_are_refused_by_name(config, changes):
    for name, value in changes.items():
        with pytest.raises(UserError, match=name):
            config(**{name: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", "-5"),
        ("seed", "-1"),
        ("log-every", "0"),
        ("drop-path", "1.0"),
        ("ema-decay", "1.0"),
        ("accumulate", "0"),
        ("keep-checkpoints", "0"),
        ("validation-batches", "1000000000"),
        ("profile-steps", "5 3"),
        ("data.masks-per-image", "0"),
        ("data.batch-size", "1000000000"),
        ("finetune.trainable", "("),
        ("optimizer.learning-rate", "nan"),
        ("model.decoder-depth", "-1"),
        ("model.encoder.image-size", "1000000000"),
    ],
)
def test_a_bad_option_of_training_ends_the_command_before_work_starts(tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main(["train", "small", "--out", str(tmp_path / "run"), "--data.path", "x", f"--{option}", *value.split()])
    assert stop.value.code == 2
    assert option.rpartition(".")[2].replace("-", "_") in "".join(capsys.readouterr()).replace("-", "_")
    assert not list(tmp_path.iterdir())


def test_a_batch_larger_than_the_memory_is_refused():
    check_batch_fits(DataConfig(batch_size=64), 1024)
    with pytest.raises(UserError, match=r"data\.batch-size that fits into memory, got 65,536"):
        check_batch_fits(DataConfig(batch_size=65_536), 8192)


def test_a_field_of_a_users_config_file_is_checked_too():
    with pytest.raises(UserError, match="drop_path"):
        dataclasses.replace(TrainConfig(out="runs/x"), drop_path="0.4")  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "other"), [("runs/x", 7), ("a b/c", b"runs")])
def test_a_path_may_be_given_as_text(text, other):
    config = TrainConfig(out=text, data=DataConfig(path=text))  # type: ignore[arg-type]
    assert (config.out, config.data.path, config.init_from) == (Path(text), Path(text), None)
    assert TrainConfig(out=text, init_from="small").init_from == "small"  # type: ignore[arg-type]  # a name or a path
    with pytest.raises(UserError, match="expected out to be a path, got"):
        TrainConfig(out=other)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected path to be a path"):
        DataConfig(path=other)  # type: ignore[arg-type]


def test_a_damaged_store_is_refused_before_it_is_used(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    Store(folder).add_images(tmp_path, [f"{i}.jpg" for i in range(500)])
    file = folder / FILE
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    good = file.read_bytes()
    for data in (
        good[: len(good) // 2],
        good[:4096] + b"\xff" * (len(good) - 4096),
        b"\xff" * 100 + good[100:],
        good[:50],
    ):
        for ending in ("", "-wal", "-shm"):
            (folder / f"{FILE}{ending}").unlink(missing_ok=True)
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"engine\.sqlite"):
            Store(folder)
