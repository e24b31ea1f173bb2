"""Fine-tuning as a new user does it: a COCO-format folder, a checkpoint, one command; killed, it goes on."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cases.models import SMALL, TRAINED
from cases.processes import parallel_options, start_two
from cases.training import write_examples
from sam_jax.checkpoints import load_checkpoint, load_everything_options, save_checkpoint
from sam_jax.commands import main as cli
from sam_jax.config import EverythingOptions
from sam_jax.modeling import init_params
from sam_jax.training.watch import read_metrics

ROOT = Path(__file__).parent.parent


@pytest.fixture
def command(tmp_path) -> list[str]:
    """Arguments of train.py: small rounds and a small model, on 24 images in COCO format."""
    folder = tmp_path / "my_pictures"
    (folder / "images").mkdir(parents=True)
    examples = write_examples(folder / "images", 24)
    images = [
        {"id": i, "file_name": example.path.name, "height": example.size[0], "width": example.size[1]}
        for i, example in enumerate(examples)
    ]
    annotations = [
        {"id": 100 * i + j, "image_id": i, "category_id": 1, "segmentation": rle, "iscrowd": 0}
        for i, example in enumerate(examples)
        for j, rle in enumerate(example.masks)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    params, own = init_params(SMALL, jax.random.key(0)), EverythingOptions(pred_iou_thresh=0.4, crop_n_layers=1)
    save_checkpoint(tmp_path / "start.safetensors", params, SMALL, everything=own)
    options = {
        "out": tmp_path / "run",
        "data.path": folder,
        "init-from": tmp_path / "start.safetensors",
        "loss.size": 32,
        "prompts.point-rounds": 1,
        "prompts.refine-rounds": 0,
        "validation-batches": 1,
        "parallel.data": 1,
        "log-every": 1,
        "save-every": 1,
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def test_one_command_trains_the_decoder_on_a_coco_folder(command, tmp_path, capsys):
    arguments = [str(ROOT / "configs/finetune_coco.py"), *command, "--steps", "3", "--everything.crop-n-layers", "2"]
    assert cli.main(["train", *arguments]) == 0
    tuned, model = load_checkpoint(tmp_path / "run" / "model.safetensors")
    start, _ = load_checkpoint(tmp_path / "start.safetensors")
    assert model == SMALL
    kept = load_everything_options(tmp_path / "run" / "model.safetensors")  # the start's, but for what was asked for
    assert kept == EverythingOptions(pred_iou_thresh=0.4, crop_n_layers=2)
    exported = tmp_path / "exported.safetensors"
    changes = ["--everything.pred-iou-thresh", "0.6", "--dtype", "float16"]
    assert cli.main(["export", str(tmp_path / "run"), str(exported), *changes]) == 0
    assert load_everything_options(exported) == EverythingOptions(pred_iou_thresh=0.6, crop_n_layers=2)
    assert exported.stat().st_size < 0.6 * (tmp_path / "run" / "model.safetensors").stat().st_size
    jax.tree.map(np.testing.assert_array_equal, tuned["image_encoder"], start["image_encoder"])
    assert (tuned["mask_decoder"]["iou_token"] != start["mask_decoder"]["iou_token"]).any()
    embeddings = list((tmp_path / "run" / "embeddings").glob("*.npy"))
    assert len(embeddings) == 22  # two of 24 are for validation
    assert np.load(embeddings[0]).shape == (8, 8, 32)

    assert cli.main(["train", *arguments]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main(["train", *arguments, "--data.flip-probability", "0.5", "--resume", "--steps", "4"]) == 2
    assert "cache-embeddings" in capsys.readouterr().err
    assert cli.main(["train", *arguments, "--init-from", str(TRAINED), "--resume", "--steps", "4"]) == 2
    assert "another model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", *arguments, "--optimizer.lerning-rate", "1"])
    assert "learning-rate" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_its_last_whole_checkpoint(command, tmp_path):
    arguments = [str(ROOT / "configs/finetune_coco.py"), *command]
    checkpoints = tmp_path / "run" / "checkpoints"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments], env=environment)

    def saved() -> list[int]:
        return sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit())

    while process.poll() is None and (not saved() or saved()[-1] < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # saves follow one another: most likely in the middle of one
    process.wait()
    last = saved()[-1]
    assert cli.main(["train", *arguments, "--resume", "--steps", str(last + 2)]) == 0
    steps = [record["step"] for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert steps == list(range(1, last + 3))
    assert saved()[-1] == last + 2


@pytest.mark.slow
def test_two_processes_train_as_one_stop_together_and_go_on_as_one(command, tmp_path):
    arguments = [str(ROOT / "configs/finetune_full.py"), *command, "--data.batch-size", "4", "--parallel.data", "4"]
    alone = tmp_path / "alone"
    assert cli.main(["train", *arguments, "--out", str(alone), "--steps", "3"]) == 0

    def start(*more: str) -> list[subprocess.Popen]:
        script = [str(ROOT / "train.py"), *arguments, *more]
        return start_two(lambda address, process: [*script, *parallel_options(address, process)], devices=2)

    processes = start("--steps", "3")
    assert [process.wait(600) for process in processes] == [0, 0]
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(compare, *(load_checkpoint(run / "model.safetensors")[0] for run in (tmp_path / "run", alone)))
    assert [record["step"] for record in read_metrics(tmp_path / "run") if "loss" in record] == [1, 2, 3]

    processes = start("--steps", "10000", "--resume")
    while len(read_metrics(tmp_path / "run")) < 7:  # steps 1 to 5, and validation at 0 and 3
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].terminate()  # the one that does not write
    assert [process.wait(600) for process in processes] == [0, 0]
    last = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert 5 <= last < 10_000
    assert cli.main(["train", *arguments, "--resume", "--steps", str(last + 1)]) == 0
