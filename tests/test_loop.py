"""A run from files to an exported model: it resumes exactly, and never overwrites another run."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from cases.models import SMALL
from cases.training import write_examples
from sam_jax.checkpoints import load_checkpoint
from sam_jax.commands import main as cli
from sam_jax.config import DataConfig
from sam_jax.data.augment import prepare_example, stack_rows
from sam_jax.data.coco import read_coco
from sam_jax.data.examples import Example
from sam_jax.data.loader import make_loader
from sam_jax.errors import UserError
from sam_jax.ops.rle import decode_rle, encode_rle
from sam_jax.training import loop, sam
from sam_jax.training.checkpoints import Checkpoints
from sam_jax.training.export import load_run
from sam_jax.training.loop import train
from sam_jax.training.optimizer import learning_rate_schedule
from sam_jax.training.watch import read_metrics


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run_config):
    run_config = dataclasses.replace(run_config, profile_steps=(2, 3))
    path, step, finished = train(run_config)
    assert (step, finished) == (4, True)
    whole, config = load_checkpoint(path)
    assert config == SMALL
    # As a kill after step 3 leaves it: the checkpoint of step 2 was written while steps 3 and 4 ran.
    shutil.rmtree(run_config.out / "checkpoints" / "4")
    resumed, _ = load_checkpoint(train(run_config, resume=True).path)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    records = read_metrics(run_config.out)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4]
    assert {len(r["iou"]) for r in records if "loss" in r} == {3}
    assert [r["step"] for r in records if "validation_iou" in r] == [0, 4]
    schedule = learning_rate_schedule(run_config.optimizer)
    logged = [r["learning_rate"] for r in records if "loss" in r]
    np.testing.assert_allclose(logged, [schedule(step) for step in range(4)], rtol=1e-6)
    assert all(r["grad_norm"] > 0 for r in records if "loss" in r)
    assert list((run_config.out / "profile").rglob("*.xplane.pb"))
    for name in ("curves.png", "predictions/0000004.png"):
        with Image.open(run_config.out / name) as make_image:
            assert min(make_image.size) >= 64
    assert list((run_config.out / "tensorboard").glob("events*"))
    exported, model, _ = load_run(run_config.out)
    assert model == SMALL
    jax.tree.map(np.testing.assert_array_equal, exported, whole)
    target = run_config.out / "official.pth"
    assert cli.main(["export", str(run_config.out), str(target), "--step", "2"]) == 0
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(target)[0], load_run(run_config.out, 2)[0])
    assert cli.main(["export", str(run_config.out), str(target), "--step", "best", "--overwrite"]) == 0
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(target)[0], whole)  # of all steps the only one scored
    with pytest.raises(FileNotFoundError, match=r"step 3 .*\[2, 4\]"):
        load_run(run_config.out, 3)


def test_a_run_is_not_overwritten_nor_mixed_with_another_model(run_config, monkeypatch):
    train(dataclasses.replace(run_config, steps=1))
    with monkeypatch.context() as patch:
        patch.setattr(sam, "init_params", None)  # refused before a model is made: 20 to 45 s on a CPU
        with pytest.raises(FileExistsError, match="resume"):
            train(run_config)
    other = dataclasses.replace(SMALL, encoder=dataclasses.replace(SMALL.encoder, dim=64))
    with pytest.raises(UserError, match=r"do not fit another model\.encoder\.dim 64"):
        train(dataclasses.replace(run_config, model=other), resume=True)
    with pytest.raises(UserError, match="do not fit another ema-decay"):
        train(dataclasses.replace(run_config, ema_decay=0.9), resume=True)


def test_sigterm_saves_and_the_run_can_go_on(run_config):
    config = dataclasses.replace(run_config, steps=10_000, save_every=10_000, validate_every=10_000)
    metrics = config.out / "metrics.jsonl"

    def stop_after_two_steps():
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):  # the first is of step 0
            stopper.wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Event()
    thread = threading.Thread(target=stop_after_two_steps, daemon=True)  # a training that fails ends the test
    thread.start()
    _, step, finished = train(config)
    thread.join()
    done = int(max(os.listdir(config.out / "checkpoints"), key=int))
    assert 2 <= done < 10_000
    assert (step, finished) == (done, False)
    train(dataclasses.replace(config, steps=done + 1), resume=True)
    assert str(done + 1) in os.listdir(config.out / "checkpoints")


class Watched:
    """A metric that tells when it is read on the host."""

    def __init__(self, value, read):
        self.value, self.read = value, read

    def __array__(self, dtype=None, copy=None):
        self.read()
        return np.asarray(self.value, dtype)


def test_steps_are_waited_for_only_where_they_are_logged_and_transfer_nothing_unasked(run_config, monkeypatch):
    compile_program, read, taken = loop.compile_program, set(), 0
    transfers = False

    def compile_watched(*args):
        program = compile_program(*args)

        def step(state, batch, key):
            nonlocal taken
            taken += 1
            if transfers:
                jax.numpy.square(batch.images)
            state, metrics = program.step(state, batch, key)
            number = taken
            return state, {name: Watched(value, lambda: read.add(number)) for name, value in metrics.items()}

        return program._replace(step=step)

    monkeypatch.setattr(loop, "compile_program", compile_watched)
    config = dataclasses.replace(run_config, steps=5, log_every=3, save_every=2)
    train(config)
    assert (taken, read) == (5, {3})
    transfers = True
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(dataclasses.replace(config, steps=6), resume=True)


def test_the_best_checkpoint_is_kept_besides_the_last_ones(tmp_path):
    state = {"kernel": np.arange(3.0)}
    program = SimpleNamespace(whole=lambda state: state, place=lambda state: state, template=state)
    key = jax.random.key(3)
    with Checkpoints(tmp_path, 2, program) as checkpoints:
        assert checkpoints.latest() is None
        for step, score in enumerate([0.3, 0.9, None, 0.5, math.nan], 1):
            assert checkpoints.is_best(score) == (step < 3)
            checkpoints.save(step, {"kernel": state["kernel"] + step}, key, score, force=False)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "4", "5"]
    with Checkpoints(tmp_path, 2, program) as checkpoints:
        restored = checkpoints.latest()
        assert (restored.step, restored.state["kernel"][0], restored.key) == (5, 5.0, key)
        assert [checkpoints.is_best(score) for score in (0.8, 0.95, None)] == [False, True, False]
        checkpoints.save(6, state, key, 0.95, force=True)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["5", "6"]


def test_batches_are_a_function_of_seed_and_number(tmp_path):
    examples = write_examples(tmp_path)
    config = DataConfig(
        batch_size=3, masks_per_image=3, scale_range=(0.5, 2.0), flip_probability=0.5, colour_jitter=0.2
    )

    def batches(first: int, count: int, seed: int = 0, config: DataConfig = config):
        loader = make_loader(examples, model=SMALL, config=config, loss_size=32, seed=seed, first_batch=first)
        with contextlib.closing(loader):
            return [next(loader) for _ in range(count)]

    whole = batches(0, 4)
    jax.tree.map(np.testing.assert_array_equal, batches(2, 2), whole[2:])
    assert (whole[0].images != whole[1].images).any()
    assert (whole[0].images != batches(0, 1, seed=1)[0].images).any()
    # Two batches of three are one epoch of six: every image once.
    plain = DataConfig(batch_size=3, masks_per_image=3)
    assert len({image.tobytes() for batch in batches(0, 2, config=plain) for image in batch.images}) == 6


@pytest.mark.parametrize("flip", [False, True])
def test_masks_boxes_and_pixels_stay_together_under_scaling_cropping_and_flipping(tmp_path, flip):
    example = write_examples(tmp_path, 1)[0]
    config = DataConfig(
        masks_per_image=3, scale_range=(0.6, 1.6), flip_probability=float(flip), colour_jitter=0.0, min_area=30
    )
    for seed in range(8):
        row = prepare_example(example, np.random.default_rng(seed), 128, config, 128, augment=True)
        (image,), ((h, w),), (masks,), (boxes,), (valid,) = stack_rows([row], 3, 128)[:5]
        assert not image[h:].any()
        assert not image[:, w:].any()
        for mask, box in zip(masks[valid], boxes[valid], strict=True):
            values = image[mask].mean(-1)
            assert np.mean((values > 170) | (values < 60)) > 0.9  # bright rectangle or dark ellipse, but for its rim
            ys, xs = np.nonzero(mask)
            np.testing.assert_allclose(box, [xs.min(), ys.min(), xs.max(), ys.max()])


def test_large_masks_are_dropped(tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "x.png")
    everything, half = np.ones((40, 60), bool), np.ones((40, 60), bool)
    half[:, 30:] = False
    example = Example(tmp_path / "x.png", (40, 60), (encode_rle(everything), encode_rle(half)), "synthetic")
    row = prepare_example(example, np.random.default_rng(0), 64, DataConfig(masks_per_image=4), 32, augment=False)
    assert stack_rows([row], 4, 32).valid.tolist() == [[True, False, False, False]]


def test_coco_files_give_polygons_and_run_lengths_and_leave_crowds_out(tmp_path):
    mask = np.zeros((20, 30), bool)
    mask[5:10, 5:15] = True
    rle = encode_rle(mask)
    annotations = [
        {"image_id": 7, "segmentation": {"size": rle["size"], "counts": rle["counts"]}},
        {"image_id": 7, "segmentation": [[5, 5, 15, 5, 15, 10, 5, 10]], "iscrowd": 0},
        {"image_id": 7, "segmentation": {"size": [20, 30], "counts": [0, 600]}, "iscrowd": 1},
    ]
    content = {"images": [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 30}], "annotations": annotations}
    (tmp_path / "a.json").write_text(json.dumps(content))
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    (example,) = read_coco(tmp_path / "a.json", tmp_path, "test")
    assert len(example.masks) == 2
    for decoded in map(decode_rle, example.masks):
        np.testing.assert_array_equal(decoded, mask)
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(ValueError, match="COCO-format"):
        read_coco(tmp_path / "b.json", tmp_path, "test")
