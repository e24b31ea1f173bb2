"""The programs and commands of the guides run as written: commands in an empty folder with the wheel and no clone."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from cases.readme import ROOT, install_wheel, read_commands, read_program, serving, write_data, write_models
from sam_jax.commands.main import parse
from sam_jax.config_file import load_config
from sam_jax.engine.store import Store

GUIDES = ("prompts", "everything", "export", "convert", "train", "evaluate", "annotate")
PAGES = {name: f"docs/guides/{name}.md" for name in GUIDES}
NOT_HERE = {"sam-jax train vit_h": "takes 256 chips"}


@pytest.mark.parametrize("command", [c for p in PAGES.values() for c in read_commands(p) if c.startswith("sam-jax")])
def test_every_command_parses(command):
    _, name, *rest = shlex.split(command)
    if name in ("train", "eval"):
        load_config([part for part in rest if part != "--resume"], name)
    else:
        parse([name, *rest])


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", PAGES["prompts"], PAGES["everything"], PAGES["export"]])
def test_every_program_runs_as_it_is_written(page, tmp_path):
    shutil.copy(ROOT / "sam_jax" / "assets" / "demo" / "kitten.jpg", tmp_path / "photo.jpg")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    if page == PAGES["export"]:  # its program loads what its commands write
        sam_jax = [sys.executable, "-m", "sam_jax"]
        for command in read_commands(page):
            words = [
                word
                for name in shlex.split(command)
                for word in {"sam-jax": sam_jax, "python": [sys.executable]}.get(name, [name])
            ]
            subprocess.run(words, cwd=tmp_path, env=environment, check=True)
        assert (tmp_path / "mask.png").exists()
    program = [sys.executable, "-c", read_program(page)]
    result = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "savefig" not in program[-1] or list(tmp_path.glob("*.png"))


class Place(NamedTuple):
    """Where commands run."""

    work: Path
    environment: dict[str, str]
    asked: list[str]  # paths of what was downloaded


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the data that the commands name, and the environment of a user who has installed the wheel."""
    root = tmp_path_factory.mktemp("readme")
    work, published = root / "work", root / "published"
    work.mkdir()
    published.mkdir()
    write_data(work)
    models = write_models(work, published)
    with serving(published) as (address, asked):
        environment = install_wheel(root, models, address)
        yield Place(work, environment, asked)


def run(place, command: list[str] | str, codes=(0,)) -> str:
    """Runs a command to its end; gives what it printed."""
    print(f"$ {command if isinstance(command, str) else 'python ...'}", flush=True)
    result = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=place.work,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode in codes, result.stderr[-3000:]
    assert "does not provide the extra" not in result.stderr
    return result.stdout


def start(place, command: str, stdout=None) -> subprocess.Popen:
    print(f"$ {command}", flush=True)
    return subprocess.Popen(shlex.split(command), cwd=place.work, env=place.environment, stdout=stdout, text=True)


def stop(process: subprocess.Popen) -> None:
    """Presses Ctrl-C."""
    process.send_signal(signal.SIGINT)
    assert process.wait(120) in (0, 130)


def train(place, command: str) -> None:
    """Runs a training until it has logged some more of its steps."""
    metrics = place.work / "runs" / command.split()[2] / "metrics.jsonl"

    def steps() -> int:
        return metrics.read_text().count('"loss"') if metrics.exists() else 0

    process, before = start(place, command), steps()
    while steps() <= before:
        assert process.poll() is None
        time.sleep(0.2)
    stop(process)


def open_page(place, command: str) -> tuple[subprocess.Popen, str]:
    process = start(place, command, subprocess.PIPE)
    line = process.stdout.readline()
    assert "Open http" in line, line
    return process, re.search(r"http\S+", line)[0]


def ask(address: str, method: str, path: str, who: str, content: dict | None = None) -> dict:
    body = None if content is None else json.dumps(content).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}api/{path}?{who}", body, headers, method=method)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def rate(place, command: str) -> None:
    """Rates all masks."""
    process, address = open_page(place, command)
    state = ask(address, "POST", "next", "rater=somebody")
    while state["job"] is not None:
        rating = {"job": state["job"], "rating": 5, "seconds": 1.0}
        state = ask(address, "POST", "ratings", "rater=somebody", rating)
    stop(process)


def annotate(place, command: str) -> None:
    """Keeps the true masks of all held-out images and half of the others; of none where that is done."""
    work = place.work
    content = json.loads((work / "photos.json").read_text())
    process, address = open_page(place, command)
    store = Store(work / "fruits")

    def left(split: str) -> int:
        return sum(image.split == split for image in store.images("free"))

    enough = left("train") // 2
    while left("held_out") or left("train") > enough > 2:
        image = ask(address, "POST", "next", "annotator=somebody")["picture"]
        (entry,) = [entry for entry in content["images"] if image["name"].endswith(entry["file_name"])]
        for rank, annotation in enumerate(a for a in content["annotations"] if a["image_id"] == entry["id"]):
            mask = {"segmentation": annotation["segmentation"], "rank": rank, "seconds": 2.0}
            mask["prompts"] = [{"type": "brush", "label": 1, "size": 10, "path": [[9, 9]]}]
            ask(address, "PUT", f"pictures/{image['id']}/masks/{uuid.uuid4().hex}", "annotator=somebody", mask)
        finished = {"outcome": "done", "seconds": 9.0}
        ask(address, "POST", f"pictures/{image['id']}/finish", "annotator=somebody", finished)
    assert ask(address, "GET", "state", "annotator=somebody")["progress"]
    stop(process)


SPECIAL = {"sam-jax train": train, "sam-jax rate serve": rate, "sam-jax annotate": annotate}


def follow(place, name: str) -> None:
    for command in read_commands(PAGES[name]):
        if any(command.startswith(part) for part in NOT_HERE):
            continue
        special = next((act for part, act in SPECIAL.items() if command.startswith(part)), None)
        if special:
            special(place, command)
        else:
            refused = command.startswith("sam-jax engine promote")  # 1: the model is not better, which is an answer
            run(place, command, (0, 1) if refused else (0,))


@pytest.mark.slow
def test_use(place):
    follow(place, "prompts")
    follow(place, "everything")
    work = place.work
    assert (work / "masks" / "photo_overlay.png").exists()
    assert len(list((work / "masks").glob("*.json"))) >= 15
    assert sorted(place.asked) == ["/ViT-L-14-336px.pt", "/sam_vit_b_01ec64.pth"]  # once each


@pytest.mark.slow
def test_convert(place):
    follow(place, "convert")
    assert (place.work / "sam_vit_b.pth").exists()


@pytest.mark.slow
def test_train(place):
    follow(place, "train")
    assert (place.work / "sam.pth").exists()
    assert list((place.work / "sa1b").rglob("dataset_info.json"))


@pytest.mark.slow
def test_evaluate(place):
    work = place.work

    def make_results() -> None:
        results = sorted((work / "runs/eval_instances").glob("*.results.json"))
        for name, path in zip("ab", results[:2], strict=True):
            os.link(path, work / f"{name}.json")

    for command in read_commands(PAGES["evaluate"]):
        if command.startswith("sam-jax rate sample"):
            make_results()
        rate(place, command) if command.startswith("sam-jax rate serve") else run(place, command)
    for name in ("single_point", "noc", "zero_shot", "edges", "proposals", "instances", "text"):
        assert (work / f"runs/eval_{name}/report.md").exists(), name
    assert (work / "rating/report.md").exists()


@pytest.mark.slow
def test_annotate(place):
    follow(place, "annotate")
    assert (place.work / "annotated/manifest.json").exists()
    assert (place.work / "fruits/report/report.md").exists()
