"""The human study: a fair sample, a page that keeps every rating, tests against scipy; all of it through HTTP."""

import http.client
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from lvis_cases import SIZE, write_case
from PIL import Image

from sam_jax import cli
from sam_jax.evals.rating.report import compare, report_ratings
from sam_jax.evals.rating.server import RatingServer
from sam_jax.evals.rating.study import Job, Study, sample_study, write_study
from sam_jax.evals.rating.views import VIEWS, render
from sam_jax.evals.truth import read_truth
from sam_jax.ops.rle import decode_rle, encode_rle, rle_area

FULL = encode_rle(np.ones(SIZE, bool))


@pytest.fixture
def data(tmp_path):
    """A truth with pictures, and two models' masks: one for every annotated box, one for all but the first."""
    truth_file, _ = write_case(tmp_path, pictures=4, seed=2)
    (tmp_path / "images").mkdir()
    content = json.loads(truth_file.read_text())
    for picture in content["images"]:
        Image.new("RGB", SIZE[::-1], (90, 120, 60)).save(tmp_path / "images" / picture["coco_url"].split("/")[-1])
    rows = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "score": 0.5,
            "prompt_bbox": a["bbox"],
            "segmentation": FULL,
        }
        for a in content["annotations"]
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps(rows[1:]))
    return tmp_path


def sources(data):
    return {"model <b>a</b>": data / "a.json", "b": data / "b.json", "truth": data / "annotations.json"}


@pytest.fixture
def study(data):
    truth = read_truth(data / "annotations.json")
    write_study(data / "study", sample_study(truth, sources(data), masks=4, seed=0))
    return Study(data / "study")


@pytest.fixture
def server(study):
    with RatingServer(study) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def request(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, json.loads(content) if answer.getheader("Content-Type") == "application/json" else content


def test_the_sample_has_every_source_of_each_object_shuffled_by_its_seed(data):
    truth = read_truth(data / "annotations.json")
    one = sample_study(truth, sources(data), masks=4, seed=0)
    assert one == sample_study(truth, sources(data), masks=4, seed=0) != sample_study(truth, sources(data), 4, seed=1)
    jobs = [Job(**job) for job in one["jobs"]]
    assert sorted((job.object, job.source) for job in jobs) == sorted((o, s) for o in range(4) for s in sources(data))
    assert [job.object for job in jobs] != sorted(job.object for job in jobs)
    for number in range(4):
        assert len({(job.picture, job.box) for job in jobs if job.object == number}) == 1
    annotations = json.loads((data / "annotations.json").read_text())["annotations"]
    first, *rest = ([*a["bbox"]] for a in annotations)
    everything = [Job(**job) for job in sample_study(truth, sources(data), masks=1000, seed=0)["jobs"]]
    boxes = [list(job.box) for job in everything if job.source == "truth"]
    assert first not in boxes  # b has no mask of it
    assert all(box in rest for box in boxes)


def test_objects_without_a_large_mask_are_not_drawn(data):
    truth = read_truth(data / "annotations.json")
    pair = {"truth": data / "annotations.json", "same": data / "same.json"}
    rows = [
        o | {"image_id": p.id, "score": 1.0} for p in truth.pictures.values() for o in p.objects()
    ]  # a detector's: bbox stands for the prompt
    (data / "same.json").write_text(json.dumps(rows))
    areas = [rle_area(job["segmentation"]) for job in sample_study(truth, pair, 1000, seed=0)["jobs"]]
    assert min(areas) >= 576
    assert sum(rle_area(r["segmentation"]) >= 576 for r in rows) * 2 == len(areas) < 2 * len(rows)


def test_sources_that_do_not_fit_are_refused(data):
    truth = read_truth(data / "annotations.json")
    with pytest.raises(ValueError, match="at least two sources"):
        sample_study(truth, {"a": data / "a.json"}, 4, 0)
    rows = json.loads((data / "a.json").read_text())
    (data / "c.json").write_text(json.dumps([row | {"prompt_bbox": [0, 0, 1, 1]} for row in rows]))
    with pytest.raises(ValueError, match=r"got none among a: .*, c: .* 0 in common; .* the same boxes or points"):
        sample_study(truth, {"a": data / "a.json", "c": data / "c.json"}, 4, 0)
    rows[0].pop("prompt_bbox")
    (data / "c.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="expected prompt_bbox or bbox"):
        sample_study(truth, {"a": data / "a.json", "c": data / "c.json"}, 4, 0)


def test_a_study_with_ratings_is_not_overwritten_by_another(data, study):
    truth = read_truth(data / "annotations.json")
    study.rate({"job": 0, "rating": 5})
    write_study(study.folder, sample_study(truth, sources(data), masks=4, seed=0))
    with pytest.raises(ValueError, match="another study with ratings"):
        write_study(study.folder, sample_study(truth, sources(data), masks=4, seed=1))
    assert Study(study.folder).ratings[0].rating == 5


def test_the_page_rates_all_jobs_in_order_and_keeps_each_rating_at_once(server, study):
    _, state = request(server, "GET", "/api/state")
    assert state == {"job": 0, "jobs": 12, "rated": 0, "rating": None, "prompt": "box"}
    for number in range(12):
        assert state["job"] == number
        answer, state = request(
            server, "POST", "/api/ratings", {"job": number, "rating": number % 10 + 1, "seconds": 2.5}
        )
        assert answer.status == 200
        assert Study(study.folder).ratings[number].rating == number % 10 + 1  # as another process would see it
    assert state == {"job": None, "jobs": 12, "rated": 12}
    _, earlier = request(server, "GET", "/api/state?job=3")
    assert earlier["rating"] == 4
    request(server, "POST", "/api/ratings", {"job": 3, "rating": 10})
    assert Study(study.folder).ratings[3].rating == 10
    assert len((study.folder / "ratings.jsonl").read_text().splitlines()) == 13  # nothing is lost either


def test_the_page_tells_nothing_of_the_source(server, study):
    answer, page = request(server, "GET", "/")
    assert answer.getheader("Content-Type").startswith("text/html")
    assert "default-src 'none'" in answer.getheader("Content-Security-Policy")
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert b"innerHTML" not in page
    texts = [page.decode(), json.dumps([request(server, "GET", f"/api/state?job={i}")[1] for i in range(12)])]
    for text in texts:
        assert not any(source in text for source in ("model <b>a</b>", "truth"))
        assert str(study.folder) not in text
    assert b"http" not in page.replace(b"httpx", b"")  # it loads nothing from elsewhere


def test_every_view_is_a_picture(server):
    for view in VIEWS:
        answer, content = request(server, "GET", f"/api/jobs/0/{view}.png")
        assert (answer.status, answer.getheader("Content-Type")) == (200, "image/png")
        assert content[:8] == b"\x89PNG\r\n\x1a\n"


def test_views_show_the_mask_where_it_is(data, tmp_path):
    mask = np.zeros(SIZE, bool)
    mask[60:80, 50:90] = True
    picture = next((data / "images").iterdir())
    path = tmp_path / "shown.png"

    def shown(view, **prompt):
        job = Job(str(picture), encode_rle(mask), prompt.get("box"), prompt.get("point"), 0, "")
        path.write_bytes(render(job, view))
        return np.asarray(Image.open(path)).astype(int)

    alone = shown("mask", box=(50, 60, 40, 20))
    assert alone.shape == (640, 800, 3)  # small pictures are enlarged
    small = np.asarray(Image.fromarray(alone.astype(np.uint8)).resize(SIZE[::-1], Image.Resampling.NEAREST)).astype(int)
    yellow = (small[..., 0] > 200) & (small[..., 2] < 100)
    inside = np.zeros(SIZE, bool)
    inside[63:77, 53:87] = True
    assert yellow[inside].all()
    assert not yellow[~mask].any()
    assert shown("overlay")[350, 400, 0] > shown("picture")[350, 400, 0] + 50
    near = shown("zoom_overlay", point=(70.0, 70.0))
    assert near.shape[1] / near.shape[0] == pytest.approx(
        60 / 40, abs=0.05
    )  # the mask and a quarter of its longer side
    dot = shown("picture", point=(70.0, 70.0))[376, 376]
    assert dot[2] > dot[0] + 100
    empty = Job(str(picture), encode_rle(np.zeros(SIZE, bool)), (0.0, 0.0, 5.0, 5.0), None, 0, "")
    assert render(empty, "zoom").startswith(b"\x89PNG")  # a model may find nothing
    with pytest.raises(ValueError, match="picture of the mask's size"):
        render(Job(str(picture), encode_rle(np.ones((4, 4), bool)), None, None, 0, ""), "picture")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"job": 0, "rating": 0}, 400),
        ({"job": 0, "rating": 11}, 400),
        ({"job": 0, "rating": 5.0}, 400),
        ({"job": 0, "rating": True}, 400),
        ({"job": 0, "rating": "5"}, 400),
        ({"job": -1, "rating": 5}, 400),
        ({"job": 12, "rating": 5}, 400),
        ({"job": True, "rating": 5}, 400),
        ({"rating": 5}, 400),
        ({"job": 0, "rating": 5, "seconds": -1}, 400),
        ({"job": 0, "rating": 5, "seconds": float("nan")}, 400),
        ({"job": 0, "rating": 5, "source": "b"}, 400),
        ([0, 5], 400),
        (b"\xff{", 400),
        (b"[" * 4000, 400),
        (b" " * 5000, 413),
    ],
)
def test_what_is_no_rating_is_refused_and_not_kept(server, study, body, status):
    answer, content = request(server, "POST", "/api/ratings", body, **{"Content-Type": "application/json"})
    assert answer.status == status
    assert "expected" in content["error"]
    assert not (study.folder / "ratings.jsonl").exists()


def test_other_sites_paths_and_kinds_are_refused(server, study):
    good = {"job": 0, "rating": 5}
    port = server.server_port
    assert server.server_address[0] == "127.0.0.1"
    assert request(server, "GET", "/", Host="evil.example")[0].status == 403
    assert request(server, "POST", "/api/ratings", good, Origin="http://evil.example")[0].status == 403
    assert (
        request(server, "POST", "/api/ratings", json.dumps(good).encode(), **{"Content-Type": "text/plain"})[0].status
        == 415
    )
    assert request(server, "POST", "/api/state", good)[0].status == 404
    for path in (
        "/api/jobs/12/mask.png",
        "/api/jobs/0/other.png",
        "/api/jobs/-1/mask.png",
        "/../study.json",
        "/study.json",
    ):
        assert request(server, "GET", path)[0].status == 404, path
    assert request(server, "GET", "/api/state?job=99999999999")[0].status == 404
    assert request(server, "DELETE", "/api/ratings")[0].status == 501
    assert not study.ratings
    assert request(server, "POST", "/api/ratings", good, Origin=f"http://localhost:{port}")[0].status == 200


def test_a_picture_that_is_gone_is_an_error_of_that_job_alone(server, study):
    Path(study.jobs[0].picture).unlink()
    answer, content = request(server, "GET", "/api/jobs/0/picture.png")
    assert answer.status == 400
    assert "expected a picture" in content["error"]
    other = next(i for i, job in enumerate(study.jobs) if job.picture != study.jobs[0].picture)
    assert request(server, "GET", f"/api/jobs/{other}/picture.png")[0].status == 200


def test_a_torn_last_line_is_dropped_and_another_bad_line_named(study):
    study.rate({"job": 0, "rating": 5})
    study.rate({"job": 1, "rating": 6})
    path = study.folder / "ratings.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"job": 2, "rat')
    again = Study(study.folder)
    assert sorted(again.ratings) == [0, 1]
    again.rate({"job": 2, "rating": 7})
    assert sorted(Study(study.folder).ratings) == [0, 1, 2]
    path.write_text("nonsense\n" + whole)
    with pytest.raises(ValueError, match=r"line 1 of .*ratings.jsonl is no rating"):
        Study(study.folder)


def test_ratings_of_many_threads_are_all_whole(study):
    threads = [threading.Thread(target=study.rate, args=({"job": i % 12, "rating": 1 + i % 10},)) for i in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((study.folder / "ratings.jsonl").read_text().splitlines()) == 48
    assert Study(study.folder).ratings == study.ratings


def test_means_intervals_and_paired_tests_equal_scipy_whatever_the_order(study):
    rng = np.random.default_rng(0)
    given = rng.integers(1, 11, len(study.jobs)).tolist()
    for i, rating in enumerate(given):
        study.rate({"job": i, "rating": rating})
    report = report_ratings(study)
    by = {(job.source, job.object): rating for job, rating in zip(study.jobs, given, strict=True)}
    for source, row in report.results["sources"].items():
        values = [by[source, o] for o in range(4)]
        low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
        assert (row["mean"] - row["half_width_95"], row["mean"] + row["half_width_95"]) == pytest.approx((low, high))
        assert sum(row["counts"]) == row["ratings"] == 4
    for row in report.results["pairs"]:
        first, second = ([by[row[name], o] for o in range(4)] for name in ("first", "second"))
        assert row["p"] == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue)
        assert row["interval_99"][0] <= row["difference"] <= row["interval_99"][1]
    assert len(report.results["pairs"]) == 3
    assert "| truth | 4 |" in report.table


def test_only_objects_that_both_have_rated_are_compared(study):
    kept = [i for i, job in enumerate(study.jobs) if job.object < 2 or job.source == "b"]
    for i in kept:
        study.rate({"job": i, "rating": 8 if study.jobs[i].source == "truth" else 6})
    pairs = {(row["first"], row["second"]): row for row in report_ratings(study).results["pairs"]}
    assert pairs["b", "truth"]["objects"] == 2
    assert pairs["b", "truth"]["difference"] == -2
    assert pairs["b", "truth"]["p"] is None  # all alike: no test can be made


def test_the_bootstrap_interval_is_as_wide_as_theory_says():
    differences = np.random.default_rng(0).normal(0.5, 1, 400)
    low, high = compare(differences)["interval_99"]
    assert high - low == pytest.approx(2 * 2.576 * 1 / 20, rel=0.1)
    assert compare(np.zeros(0)) == {"objects": 0, "difference": None, "p": None, "interval_99": None}


def test_the_command_samples_serves_and_reports(data, capsys):
    def run(*arguments):
        return cli.main(["rate", *map(str, arguments)])

    out, truth = data / "study", data / "annotations.json"
    assert run("report", out) == 2
    assert "make one with sam-jax rate sample" in capsys.readouterr().err
    assert run("sample", "--annotations", truth, "--source", f"a={data / 'a.json'}", "--out", out) == 2
    assert run("sample", "--annotations", truth, "--source", "a", "--out", out) == 2
    options = ["--source", f"a={data / 'a.json'}", "--source", f"truth={truth}", "--masks", 3, "--out", out]
    assert run("sample", "--annotations", truth, *options) == 0
    assert run("report", out) == 2
    assert "expected ratings" in capsys.readouterr().err
    command = [sys.executable, "-m", "sam_jax.cli", "rate", "serve", str(out), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split("Open ")[1].split()[0]
            port = int(url.rstrip("/").rpartition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            for job in range(6):
                body = json.dumps({"job": job, "rating": 1 + job})
                connection.request("POST", "/api/ratings", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                assert json.loads(answer.read())["rated"] == job + 1
            assert run("serve", out, "--port", 0) == 2  # one page at a time
            assert "being rated by another" in capsys.readouterr().err
        finally:
            process.kill()
    assert run("report", out) == 0
    assert "6 of 6 masks rated" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["sources"]["a"]["ratings"] == 3


def test_masks_of_the_truth_are_those_of_the_file(study):
    truth = {
        json.dumps(o["segmentation"])
        for p in read_truth(study.folder.parent / "annotations.json").pictures.values()
        for o in p.objects()
    }
    for job in study.jobs:
        assert (json.dumps(job.segmentation) in truth) == (job.source == "truth")
        assert decode_rle(job.segmentation).shape == SIZE
