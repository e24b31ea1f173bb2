"""Several evaluations as one, two processes as one, and two methods mask by mask."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cases.bsds import write_ground_truth
from cases.lvis import SIZE, write_case
from cases.processes import parallel_options, run_two
from sam_jax.commands import main as cli
from sam_jax.config_file import load_config
from sam_jax.errors import MissingFile, UserError
from sam_jax.evals import suite
from sam_jax.evals.compare import CompareConfig, compare
from sam_jax.evals.report import EvalReport
from sam_jax.evals.single_point import SinglePointConfig
from sam_jax.evals.suite import SuiteConfig


@dataclasses.dataclass(frozen=True)
class Task:
    out: Path
    data: Path = Path("d")
    model: str = "?"
    problem: str = ""
    missing: bool = False

    def evaluate(self):
        RUNS.append(self)
        if self.problem == "missing":
            raise FileNotFoundError(f"nothing at {self.data}")
        if self.problem:
            raise UserError(self.problem)
        return EvalReport(
            f"Task {self.out.name}", "| a |\n", {"n": 1} | ({"missing": {"x": "y"}} if self.missing else {})
        )


RUNS: list[Task] = []


@pytest.fixture
def make_suite(tmp_path, monkeypatch):
    RUNS.clear()
    monkeypatch.setattr(suite, "load_model", lambda name: name)
    monkeypatch.setattr(suite, "model_identity", lambda model: f"identity of {model}")

    def make(*tasks, model="tiny", **fields):
        return SuiteConfig(tasks, tmp_path / "data", tmp_path / "out", model, **fields)

    return make


def test_a_suite_runs_what_it_can_and_says_what_is_missing_or_wrong(make_suite, tmp_path):
    tasks = Task(Path("good")), Task(Path("absent"), problem="missing"), Task(Path("broken"), problem="bad file")
    report = make_suite(*tasks, sources={"absent": "example.org"}).evaluate()
    assert (RUNS[0].out, RUNS[0].data, RUNS[0].model) == (tmp_path / "out/good", tmp_path / "data/d", "tiny")
    assert report.results["tasks"]["good"]["results"] == {"n": 1}
    assert "## good\n\nTask good.\n\n| a |" in report.table
    assert f"- absent: missing. nothing at {tmp_path / 'data/d'}. Get the data from example.org" in report.table
    assert "- broken: failed. UserError: bad file" in report.table
    assert report.failed
    assert not make_suite(*tasks[:2]).evaluate().failed


def test_a_suite_goes_on_and_does_again_what_depends_on_something_else(make_suite):
    tasks = Task(Path("a")), Task(Path("b"), problem="bad file"), Task(Path("c"), missing=True)
    first = make_suite(*tasks).evaluate()
    RUNS.clear()
    assert make_suite(*tasks).evaluate() == first
    assert [task.out.name for task in RUNS] == ["b", "c"]  # c was without a data set
    RUNS.clear()
    make_suite(*tasks, model="other", only=("a",)).evaluate()
    make_suite(Task(Path("a"), data=Path("other"))).evaluate()
    assert len(RUNS) == 2


def test_a_suite_names_unknown_and_colliding_tasks(make_suite):
    with pytest.raises(ValueError, match=r"unknown tasks \['z'\]; known are a"):
        make_suite(Task(Path("a")), only=("z",)).evaluate()
    with pytest.raises(ValueError, match="different out"):
        make_suite(Task(Path("a")), Task(Path("x/a"))).evaluate()


@pytest.mark.parametrize("most", [None, 0, 3])
def test_a_suite_limits_the_images_of_all_tasks(make_suite, most):
    @dataclasses.dataclass(frozen=True)
    class LimitedTask(Task):
        max_images: int = 7

    make_suite(LimitedTask(Path("a")), Task(Path("b")), max_images=most).evaluate()
    assert RUNS[0].max_images == (7 if most is None else most)


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_a_suite_without_any_data_is_an_error_with_a_line_for_each_task(make_suite, names):
    tasks = [Task(Path(name), problem="missing") for name in names]
    with pytest.raises(FileNotFoundError, match=r"nothing to evaluate on") as caught:
        make_suite(*tasks).evaluate()
    assert len(str(caught.value).splitlines()) == 1 + len(names)
    assert make_suite(*tasks, Task(Path("c"), problem="bad file")).evaluate().failed
    with pytest.raises(FileNotFoundError):
        make_suite(*tasks, Task(Path("c")), only=names).evaluate()


def test_the_shipped_suite_has_a_place_and_a_source_for_every_task(tmp_path, capsys):
    from configs.eval_zero_shot import get_config

    config = dataclasses.replace(get_config(), data=tmp_path, out=tmp_path / "out")
    with pytest.raises(MissingFile) as caught:
        config.evaluate()
    first, *lines = str(caught.value).splitlines()
    assert first == f"nothing to evaluate on in {tmp_path}:"
    names = ("single_point", "single_point_small", "edges", "proposals", "instances", "clicks")
    assert tuple(line.strip().partition(":")[0] for line in lines) == names
    assert "(and 22 more)" in lines[0]
    assert all("Get " in line for line in lines)
    assert cli.main(["eval", "zero_shot", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    written, told = capsys.readouterr()
    assert sum(not line.startswith("zero-shot: ") for line in told.splitlines()) == 1 + len(names)  # that is the bar
    assert not written


def write_data(root: Path, images: int = 7) -> None:
    """Writes a few bright squares in BBBC038v1's layout."""
    for i in range(images):
        folder = root / f"bbbc038v1/stage1_train/{i:02}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        image = np.full((40, 50, 3), 30, np.uint8)
        for j in range(1 + i % 3):
            mask = np.zeros((40, 50), np.uint8)
            mask[5 + j : 15 + 2 * j, 12 * j + i : 12 * j + i + 9] = 255
            image[mask > 0] = 90 + 20 * i
            Image.fromarray(mask).save(folder / f"masks/{j}.png")
        Image.fromarray(image).save(folder / f"images/{i:02}.png")


def points(root: Path, out: str, *methods: str) -> SinglePointConfig:
    return SinglePointConfig(root, root / out, "small", ("bbbc038v1",), methods, 0, 0, clicks=3, workers=1)


def test_two_processes_make_the_report_of_one(tmp_path):
    write_data(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "bbbc038v1/stage1_train/03/images/03.png")  # of another size
    expected = points(tmp_path, "one", "disc").evaluate()
    errors = in_two_processes(
        *("configs/eval_single_point.py", "--data", str(tmp_path), "--max-masks", "0", "--out", str(tmp_path / "two")),
        *("--methods", "disc", "--datasets", "bbbc038v1", "--clicks", "3"),
    )
    assert ["/4 [" in errors[0], "/3 [" in errors[1]] == [True, True], errors
    assert json.loads((tmp_path / "two/report.json").read_text()) == expected.results
    assert expected.results["left_out"]["disc"]["bbbc038v1"][0].startswith(
        "stage1_train/03/images/03: masks of another"
    )
    lines = [(tmp_path / f"{name}/disc.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert sorted(lines[0]) == sorted(lines[1])
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["disc.jsonl", "report.json", "report.md"]


SUITE = """
from pathlib import Path
from sam_jax.evals.edges import EdgesConfig
from sam_jax.evals.instances import InstancesConfig
from sam_jax.evals.proposals import ProposalsConfig
from sam_jax.evals.suite import SuiteConfig

def get_config():
    file = Path("annotations.json")
    return SuiteConfig(data=Path("."), tasks=(
        EdgesConfig(out=Path("edges"), data=Path("."), methods=("Sobel", "human")),
        ProposalsConfig(out=Path("proposals"), annotations=file, images=Path("images"), methods=("Felzenszwalb",)),
        InstancesConfig(out=Path("instances"), annotations=file, images=Path("images"), methods=("box",)),
    ))
"""
METHODS = {"edges": "Sobel", "proposals": "Felzenszwalb", "instances": "box"}


def test_processes_share_the_images_of_edges_proposals_and_instances(tmp_path):
    write_case(tmp_path, num_images=3, seed=1)
    rng = np.random.default_rng(0)
    entries = json.loads((tmp_path / "annotations.json").read_text())["images"]
    names = [entry["coco_url"].split("/")[-1] for entry in entries]
    for i, name in enumerate(names):
        noise = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(SIZE[::-1])
        for path in (tmp_path / f"images/val2017/{name}", tmp_path / f"images/test/{i}.jpg"):
            path.parent.mkdir(parents=True, exist_ok=True)
            noise.save(path)
        write_ground_truth(tmp_path / f"groundTruth/test/{i}.mat", [np.eye(*SIZE, k=9 * i, dtype=bool)] * 2)
    (tmp_path / f"images/val2017/{names[1]}").unlink()  # the second process finds that it is missing
    (tmp_path / "suite.py").write_text(SUITE)
    arguments = [str(tmp_path / "suite.py"), "--data", str(tmp_path), "--out"]
    expected = load_config([*arguments, str(tmp_path / "one")], "eval").evaluate()
    errors = in_two_processes(*arguments, str(tmp_path / "two"))
    assert json.loads((tmp_path / "two/report.json").read_text()) == expected.results
    tasks = expected.results["tasks"]
    assert [tasks[name]["results"][method]["pictures"] for name, method in METHODS.items()] == [3, 2, 2]
    for label in ("Sobel: detect", "Sobel: score", "Felzenszwalb: predict", "box: predict"):
        assert [re.search(rf"{label}.*?/(\d) \[", error)[1] for error in errors] == ["2", "1"], label


def in_two_processes(*arguments: str) -> list[str]:
    """Runs eval.py in two processes and returns what either writes to stderr."""
    script = [str(Path(__file__).parents[1] / "eval.py"), *arguments]
    return run_two(lambda address, process: [*script, *parallel_options(address, process)])


def test_one_process_goes_on_where_two_were_stopped(tmp_path):
    write_data(tmp_path)
    whole = points(tmp_path, "whole", "disc").evaluate()
    header, *lines = (tmp_path / "whole/disc.jsonl").read_text().splitlines()
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped/disc.part-0.jsonl").write_text("\n".join([header, *lines[0:4:2]]) + "\n")
    (tmp_path / "stopped/disc.part-1.jsonl").write_text("\n".join([header, *lines[1:4:2], lines[5][:30]]))
    for i in range(4):  # these are done and not looked at again
        (tmp_path / f"bbbc038v1/stage1_train/{i:02}/images/{i:02}.png").write_bytes(b"")
    assert points(tmp_path, "stopped", "disc").evaluate() == whole
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["disc.jsonl"]


def records(path: Path, segmenter: str, images: dict[str, list[tuple[float, float]]], clicks: int = 1) -> Path:
    header = {"segmenter": segmenter, "rules": {"clicks": clicks}}
    lines = [
        {
            "dataset": dataset,
            "picture": f"{i}",
            "problems": [],
            "masks": [{"mask": 0, "area": 9, "iou": [iou] * clicks, "best": best}],
        }
        for dataset, rows in images.items()
        for i, (iou, best) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [header, *lines]))
    return path


def test_two_methods_are_compared_mask_by_mask_on_what_they_share(tmp_path):
    first = records(tmp_path / "sam.jsonl", "a", {"ppdls": [(0.5, 0.9), (0.7, 0.7)], "gtea": [(0.2, 0.6)], "x": []})
    second = records(tmp_path / "ritm.jsonl", "b", {"ppdls": [(0.4, 0), (0.8, 0), (0.9, 0)], "gtea": [(0.5, 0)]})
    ppdls, gtea = compare(first, second)
    assert (ppdls.dataset, ppdls.masks, ppdls.first_better, ppdls.second_better) == ("ppdls", 2, 1, 1)
    assert (ppdls.mean, ppdls.best) == (pytest.approx(0), pytest.approx(20))
    assert ppdls.low == pytest.approx(-10)
    assert ppdls.high == pytest.approx(10)
    assert (gtea.mean, gtea.low, gtea.high, gtea.best) == pytest.approx((-30, -30, -30, 10))
    report = CompareConfig(first, second, tmp_path / "out").evaluate()
    assert "| gtea | 1 | -30.0 | -30.0 to -30.0 | +10.0 | 0 | 1 | -21.4 |" in report.table
    assert "| mean of 2 datasets | 3 | -15.0 | | +15.0 | | | |" in report.table
    with Image.open(tmp_path / "out/differences.png") as image:
        assert image.size[0] > 400


def test_records_that_can_t_be_compared_say_why(tmp_path):
    first = records(tmp_path / "a.jsonl", "a", {"x": [(0.5, 0.9)]})
    with pytest.raises(ValueError, match="expected records of one evaluation"):
        compare(first, records(tmp_path / "b.jsonl", "b", {"x": [(0.5, 0.9)]}, clicks=2))
    with pytest.raises(ValueError, match="no mask in common"):
        compare(first, records(tmp_path / "b.jsonl", "b", {"y": [(0.5, 0.9)]}))
    with pytest.raises(ValueError, match="expected a number of clicks from 1 to 1, got 5"):
        compare(first, first, clicks=5)
    with pytest.raises(FileNotFoundError, match=r"expected records at .*c.jsonl"):
        compare(first, tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ValueError, match="a protocol, then a line per image"):
        compare(first, tmp_path / "d.jsonl")
