"""A user's mistake is answered in a line; a bug is a traceback, an answer of 500 that is logged, a stopped evaluation.

Each test injects both, side by side.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cases.app import BASE, make_store
from cases.images import make_image
from cases.rating import make_study, write_data
from cases.training import write_examples
from sam_jax import errors
from sam_jax.app.server import create_app
from sam_jax.data.images import find_images
from sam_jax.errors import BadRecord, MissingFile, UserError, WrongType
from sam_jax.evals.click_simulation import ClickRules, simulate_images
from sam_jax.evals.image_runs import score_images
from sam_jax.evals.rating import server as rating_server
from sam_jax.everything.folders import segment_images
from sam_jax.parallel import gather
from sam_jax.web.guard import Access

BUGS = [ValueError("shapes (3, 4) and (5,) do not fit"), TypeError("expected an array"), KeyError("blocks_0")]
bugs = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
KINDS = [UserError, *UserError.__subclasses__()]


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_for_users_is_a_value_error_too_and_goes_through_pickle_whole(kind):
    error = kind("cut off", "a.jpg", 3) if kind is BadRecord else kind("expected a, got b")
    copy = pickle.loads(pickle.dumps(error))  # as from a worker process
    assert type(copy) is kind
    assert str(copy) == str(error) == ("cut off: a.jpg (3)" if kind is BadRecord else "expected a, got b")
    assert isinstance(error, ValueError)


def test_errors_for_users_are_the_built_in_ones_of_their_kind_too():
    assert issubclass(errors.MissingFile, FileNotFoundError)
    assert issubclass(errors.AlreadyExists, FileExistsError)
    assert issubclass(errors.WrongType, TypeError)
    assert issubclass(errors.MissingPackage, ImportError)
    assert issubclass(errors.DownloadFailed, ConnectionError)
    assert issubclass(errors.NonFiniteGradients, FloatingPointError)


def run_with(module: str, function: str, error: str, arguments: list[object]) -> subprocess.CompletedProcess:
    """Runs sam-jax in a process of its own, in which a function raises an error."""
    code = (
        "import sys, sam_jax.errors as errors\n"
        f"import {module} as module\n"
        f"def fail(*_, **__):\n    raise {error}\n"
        f"module.{function} = fail\n"
        "from sam_jax.commands.main import main\n"  # imports what it runs after this
        "sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "module", "function"),
    [
        (["segment", "FOLDER/a.png", "--point", "9,9"], "sam_jax.checkpoints.hub", "load_model"),
        (["train", "small", "--out", "FOLDER/run", "--data.path", "FOLDER"], "sam_jax.data.sources", "open_source"),
        (
            ["eval", "text", "--model", "small", "--data", "FOLDER", "--out", "FOLDER"],
            "sam_jax.checkpoints.hub",
            "load_model",
        ),
    ],
    ids=["segment", "train", "eval"],
)
def test_a_bug_in_a_command_is_a_traceback_and_exit_code_1_a_mistake_a_line_and_exit_code_2(
    tmp_path, arguments, module, function
):
    Image.fromarray(make_image(40, 70)).save(tmp_path / "a.png")
    arguments = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    bug = run_with(module, function, "ValueError('shapes do not fit')", arguments)
    assert bug.returncode == 1, bug.stderr
    assert "Traceback" in bug.stderr
    assert bug.stderr.endswith("ValueError: shapes do not fit\n")
    for error in (
        "errors.MissingFile('nothing at x')",
        "OSError('nothing at x')",
        "errors.NonFiniteGradients('nothing at x')",
    ):
        mistake = run_with(module, function, error, arguments)
        assert mistake.returncode == 2, mistake.stderr
        assert mistake.stderr.endswith("sam-jax: nothing at x\n")
        assert "Traceback" not in mistake.stderr


@bugs
def test_a_bug_behind_the_annotation_page_is_a_500_that_is_logged(tmp_path, tiny_model, monkeypatch, bug):
    store = make_store(tmp_path, 2)
    monkeypatch.setattr("sam_jax.app.session.embed", failing(bug))

    def serve(**options):
        return TestClient(create_app(store, tiny_model, Access(), model_version="tiny"), base_url=BASE, **options)

    with serve(raise_server_exceptions=False) as client:
        store.image(2).path.write_bytes(b"no image")
        broken = client.post("/api/pictures/2/embed")
        assert broken.status_code == 409
        assert broken.json()["error"].startswith("image cannot be decoded: 1.png (expected JPEG")
        store.image(2).path.unlink()
        assert client.post("/api/pictures/2/embed").status_code == 404
        answer = client.post("/api/pictures/1/embed")
        assert (answer.status_code, answer.json()) == (500, {"error": "the server has a bug, its log says where"})
    with serve() as client, pytest.raises(type(bug)):  # it reaches the web server, which logs it
        client.post("/api/pictures/1/embed")


@bugs
def test_a_bug_behind_the_rating_page_is_a_500_that_is_logged(tmp_path, monkeypatch, bug):
    study = make_study(write_data(tmp_path))
    app = rating_server.create_app(study, Access())
    view = "/api/jobs/0/picture.png"
    Path(study.jobs[0].picture).unlink()
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        assert client.get(view).status_code == 409
        monkeypatch.setattr(rating_server, "render", failing(bug))
        assert client.get(view).status_code == 500
    with TestClient(app, base_url=BASE) as client, pytest.raises(type(bug)):
        client.get(view)


class Segmenter:
    """Masks nothing; with a bug it raises that in place of an answer."""

    name = identity = "none"

    def __init__(self, bug: Exception | None = None) -> None:
        self.bug = bug

    def open_session(self, image):
        if self.bug is not None:
            raise self.bug
        self.size = image.shape[:2]
        return self

    def segment(self, clicks):
        return [np.zeros((1, *self.size), bool) for _ in clicks]


@bugs
def test_a_bug_stops_an_evaluation_by_clicks_and_a_bad_image_is_left_out(tmp_path, bug):
    good, broken = write_examples(tmp_path, 2)
    broken.path.write_bytes(b"no image")
    results = list(simulate_images(Segmenter(), [good, broken], ClickRules(1)))
    assert [result.complete for result in results] == [True, False]
    assert results[1].problems[0].startswith("image cannot be decoded: ")
    with pytest.raises(type(bug)):
        list(simulate_images(Segmenter(bug), [good], ClickRules(1)))


@bugs
def test_a_bug_stops_the_scoring_of_images_and_a_bad_one_is_left_out(bug):
    outcomes = {"good": 1, "bad": BadRecord("masks of another size", "b.jpg"), "wrong": bug}

    def score(name: str) -> int:
        if isinstance(outcomes[name], Exception):
            raise outcomes[name]
        return outcomes[name]

    failures: dict[str, str] = {}
    assert score_images(score, {"good": "good", "bad": "bad"}, failures, workers=1, label="x") == [1]
    assert failures == {"bad": "masks of another size: b.jpg"}
    with pytest.raises(type(bug)):
        score_images(score, {"good": "good", "wrong": "wrong"}, failures, workers=1, label="x")


class Generator:
    batch_size = 1

    def __init__(self, check) -> None:
        self.check_image = check

    def generate_batch(self, images, on_empty):
        return [[] for _ in images]


@bugs
def test_a_bug_stops_a_run_over_a_folder_and_a_bad_image_is_left_out(tmp_path, bug):
    for name in ("a.png", "b.png"):
        Image.fromarray(make_image(40, 70)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    files = find_images([tmp_path], tmp_path / "out")
    report = segment_images(Generator(lambda image: image), files, tmp_path / "out", "sa1b", {})
    assert (report.finished, list(report.failures)) == (1, [tmp_path / "b.png"])
    with pytest.raises(type(bug)):
        segment_images(Generator(failing(bug)), files, tmp_path / "other", "sa1b", {})


@pytest.mark.parametrize(
    ("problem", "here", "elsewhere"),
    [
        (MissingFile("nothing at x"), MissingFile, UserError),
        (OSError("disk full"), OSError, UserError),
        *((bug, type(bug), RuntimeError) for bug in BUGS),
    ],
)
def test_what_one_process_meets_ends_the_others_too_as_the_kind_it_is(monkeypatch, problem, here, elsewhere):
    sent = []
    monkeypatch.setattr(gather, "all_gather", lambda value: sent.append(value) or [value])
    with pytest.raises(here), gather.sync_processes():
        raise problem
    monkeypatch.setattr(gather, "all_gather", lambda value: [value, *sent])
    with pytest.raises(elsewhere) as error, gather.sync_processes():
        pass
    assert isinstance(error.value, UserError) == (elsewhere is UserError)
    assert str(problem) in str(error.value)


def test_a_users_mistake_can_be_printed_whatever_is_in_it():
    """Lone surrogates come from JSON, and from names of files that are no UTF-8."""
    errors = [kind("no \ud800 here") for kind in (UserError, WrongType, MissingFile)]
    errors.append(pickle.loads(pickle.dumps(BadRecord("why", "\udcff.jpg", "\ud800"))))
    for error in errors:
        str(error).encode()
    assert str(errors[0]) == "no \\ud800 here"
    assert (errors[-1].where, errors[-1].detail) == ("\\udcff.jpg", "\\ud800")
    assert isinstance(errors[2], FileNotFoundError)
