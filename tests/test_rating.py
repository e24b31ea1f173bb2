"""The human study: a fair sample, a page that keeps every rating, tests against scipy; all of it through HTTP."""

import json
import threading
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import scipy.stats
from fastapi.testclient import TestClient
from PIL import Image

from cases.app import BASE, start
from cases.lvis import SIZE
from cases.rating import make_study, sources, write_data
from sam_jax.commands import main as cli
from sam_jax.evals.ground_truth import read_ground_truth
from sam_jax.evals.rating import study as study_module
from sam_jax.evals.rating.report import compare, report_ratings
from sam_jax.evals.rating.server import create_app
from sam_jax.evals.rating.study import Rating, RatingJob, Study, sample_study, write_study
from sam_jax.evals.rating.views import VIEWS, render
from sam_jax.ops.rle import decode_rle, encode_rle, rle_area
from sam_jax.web.guard import Access

ADA, BOB = {"rater": "Ada"}, {"rater": "Bob"}


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


@pytest.fixture
def study(data):
    return make_study(data)


@pytest.fixture
def client(study):
    with TestClient(create_app(study, Access()), base_url=BASE) as client:
        yield client


def test_the_sample_has_every_source_of_each_object_shuffled_by_its_seed(data):
    ground_truth = read_ground_truth(data / "annotations.json")
    one = sample_study(ground_truth, sources(data), masks=4, seed=0)
    assert (
        one
        == sample_study(ground_truth, sources(data), masks=4, seed=0)
        != sample_study(ground_truth, sources(data), 4, seed=1)
    )
    jobs = [RatingJob(**job) for job in one["jobs"]]
    assert sorted((job.object, job.source) for job in jobs) == sorted((o, s) for o in range(4) for s in sources(data))
    assert [job.object for job in jobs] != sorted(job.object for job in jobs)
    for number in range(4):
        assert len({(job.picture, job.box) for job in jobs if job.object == number}) == 1
    annotations = json.loads((data / "annotations.json").read_text())["annotations"]
    first, *rest = ([*a["bbox"]] for a in annotations)
    everything = [RatingJob(**job) for job in sample_study(ground_truth, sources(data), masks=1000, seed=0)["jobs"]]
    boxes = [list(job.box) for job in everything if job.source == "truth"]
    assert first not in boxes  # b has no mask of it
    assert all(box in rest for box in boxes)


def test_objects_without_a_large_mask_are_not_drawn(data):
    ground_truth = read_ground_truth(data / "annotations.json")
    pair = {"truth": data / "annotations.json", "same": data / "same.json"}
    rows = [
        o | {"image_id": image.id, "score": 1.0} for image in ground_truth.images.values() for o in image.objects()
    ]  # a detector's: bbox stands for the prompt
    (data / "same.json").write_text(json.dumps(rows))
    areas = [rle_area(job["segmentation"]) for job in sample_study(ground_truth, pair, 1000, seed=0)["jobs"]]
    assert min(areas) >= 576
    assert sum(rle_area(r["segmentation"]) >= 576 for r in rows) * 2 == len(areas) < 2 * len(rows)


def test_sources_that_do_not_fit_are_refused(data):
    ground_truth = read_ground_truth(data / "annotations.json")
    with pytest.raises(ValueError, match="at least two sources"):
        sample_study(ground_truth, {"a": data / "a.json"}, 4, 0)
    rows = json.loads((data / "a.json").read_text())
    (data / "c.json").write_text(json.dumps([row | {"prompt_bbox": [0, 0, 1, 1]} for row in rows]))
    with pytest.raises(ValueError, match=r"got none among a: .*, c: .* 0 in common; .* the same boxes or points"):
        sample_study(ground_truth, {"a": data / "a.json", "c": data / "c.json"}, 4, 0)
    rows[0].pop("prompt_bbox")
    (data / "c.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="expected prompt_bbox or bbox"):
        sample_study(ground_truth, {"a": data / "a.json", "c": data / "c.json"}, 4, 0)


def test_a_study_with_ratings_is_not_overwritten_by_another(data, study):
    ground_truth = read_ground_truth(data / "annotations.json")
    study.rate(Rating(0, 5))
    write_study(study.folder, sample_study(ground_truth, sources(data), masks=4, seed=0))
    with pytest.raises(ValueError, match="another study with ratings"):
        write_study(study.folder, sample_study(ground_truth, sources(data), masks=4, seed=1))
    assert Study(study.folder).ratings[0].rating == 5


def test_the_page_rates_all_jobs_in_order_and_keeps_each_rating_at_once(client, study):
    state = client.post("/api/next", params=ADA).json()
    assert state == {"job": 0, "jobs": 12, "rated": 0, "rating": None, "prompt": "box", "previous": None}
    for number in range(12):
        assert state["job"] == number
        rating = {"job": number, "rating": number % 10 + 1, "seconds": 2.5}
        answer = client.post("/api/ratings", params=ADA, json=rating)
        assert answer.status_code == 200
        state = answer.json()
        kept = Study(study.folder).ratings[number]  # as another process would see it
        assert kept == Rating(number, number % 10 + 1, 2.5, "Ada")
    assert state == {"job": None, "jobs": 12, "rated": 12, "rating": None, "prompt": None, "previous": 11}
    earlier = client.get("/api/jobs/3", params=ADA).json()
    assert (earlier["rating"], earlier["previous"]) == (4, 2)
    client.post("/api/ratings", params=ADA, json={"job": 3, "rating": 10})
    assert Study(study.folder).ratings[3].rating == 10
    assert len((study.folder / "ratings.jsonl").read_text().splitlines()) == 13  # nothing is lost either


def test_each_mask_is_rated_by_one_person(client, study, monkeypatch):
    assert client.post("/api/next", params=ADA).json()["job"] == 0
    assert client.post("/api/next", params=BOB).json()["job"] == 1
    assert client.post("/api/next", params=ADA).json()["job"] == 0  # after a reload
    assert client.post("/api/ratings", params=ADA, json={"job": 0, "rating": 5}).json()["job"] == 2
    assert client.post("/api/ratings", params=BOB, json={"job": 1, "rating": 6}).json()["job"] == 3
    assert client.get("/api/jobs/0", params=BOB).status_code == 404
    refused = client.post("/api/ratings", params=BOB, json={"job": 0, "rating": 1})
    assert refused.status_code == 409
    assert "mask 1 has been rated by somebody else" in refused.json()["error"]
    assert Study(study.folder).ratings[0] == Rating(0, 5, None, "Ada")
    for job in range(4, 12):
        client.post("/api/ratings", params=ADA, json={"job": job, "rating": 5})
    client.post("/api/ratings", params=ADA, json={"job": 2, "rating": 5})
    rest = client.post("/api/next", params=ADA).json()
    assert (rest["job"], rest["rated"]) == (None, 11)  # Bob looks at the last one
    monkeypatch.setattr(study_module, "CLAIM_SECONDS", 0)
    assert client.post("/api/next", params=ADA).json()["job"] == 3  # no longer


def test_the_page_tells_nothing_of_the_source(client, study):
    texts = [client.post("/api/next", params=ADA).text]
    for job in range(12):
        texts.append(client.post("/api/ratings", params=ADA, json={"job": job, "rating": 5}).text)
        answer = client.get(f"/api/jobs/{job}", params=ADA)
        texts += [answer.text, str(answer.headers)]
        assert set(answer.json()) == {"job", "jobs", "rated", "rating", "prompt", "previous"}
        texts += [str(client.get(f"/api/jobs/{job}/{view}.png").headers) for view in VIEWS]
    for path in ("/", "/assets/main.js", "/assets/style.css", "/api/openapi.json"):
        answer = client.get(path)
        assert answer.status_code == 200
        texts.append(answer.text)
    for text in texts:
        assert not any(word in text for word in ("model <b>a</b>", "truth", str(study.folder.parent)))
        assert not any(Path(job.picture).name in text for job in study.jobs)


def test_every_view_is_an_image(client):
    for view in VIEWS:
        answer = client.get(f"/api/jobs/0/{view}.png")
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
        assert answer.content[:8] == b"\x89PNG\r\n\x1a\n"


def test_views_show_the_mask_where_it_is(data, tmp_path):
    mask = np.zeros(SIZE, bool)
    mask[60:80, 50:90] = True
    picture = next((data / "images").iterdir())
    path = tmp_path / "shown.png"

    def shown(view, **prompt):
        job = RatingJob(str(picture), encode_rle(mask), prompt.get("box"), prompt.get("point"), 0, "")
        path.write_bytes(render(job, view))
        return np.asarray(Image.open(path)).astype(int)

    alone = shown("mask", box=(50, 60, 40, 20))
    assert alone.shape == (640, 800, 3)  # small images are enlarged
    small = np.asarray(Image.fromarray(alone.astype(np.uint8)).resize(SIZE[::-1], Image.Resampling.NEAREST)).astype(int)
    yellow = (small[..., 0] > 200) & (small[..., 2] < 100)
    inside = np.zeros(SIZE, bool)
    inside[63:77, 53:87] = True
    assert yellow[inside].all()
    assert not yellow[~mask].any()
    assert shown("overlay")[350, 400, 0] > shown("picture")[350, 400, 0] + 50
    overlay, row = shown("overlay"), slice(310, 325)  # the mask begins at row 320
    column = overlay[row, 400].tolist()
    assert [255, 255, 255] in column[:10]  # an outline outside it
    assert [255, 0, 0] in column[10:]  # and one inside
    boxed = shown("overlay", box=(50, 60, 40, 20))
    np.testing.assert_array_equal(boxed[322:424, 269:477], overlay[322:424, 269:477])  # the box hides nothing of it
    near = shown("zoom_overlay", point=(70.0, 70.0))
    assert near.shape[1] / near.shape[0] == pytest.approx(
        60 / 40, abs=0.05
    )  # the mask and a quarter of its longer side
    dot = shown("picture", point=(70.0, 70.0))[376, 376]
    assert dot[2] > dot[0] + 100
    empty = RatingJob(str(picture), encode_rle(np.zeros(SIZE, bool)), (0.0, 0.0, 5.0, 5.0), None, 0, "")
    assert render(empty, "zoom").startswith(b"\x89PNG")  # a model may find nothing
    with pytest.raises(ValueError, match="image of the mask's size"):
        render(RatingJob(str(picture), encode_rle(np.ones((4, 4), bool)), None, None, 0, ""), "picture")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"job": 0, "rating": 0}, 422),
        ({"job": 0, "rating": 11}, 422),
        ({"job": 0, "rating": 5.0}, 422),
        ({"job": 0, "rating": True}, 422),
        ({"job": 0, "rating": "5"}, 422),
        ({"job": -1, "rating": 5}, 409),
        ({"job": 12, "rating": 5}, 409),
        ({"job": True, "rating": 5}, 422),
        ({"rating": 5}, 422),
        ({"job": 0, "rating": 5, "seconds": -1}, 422),
        ({"job": 0, "rating": 5, "seconds": float("nan")}, 422),
        ({"job": 0, "rating": 5, "source": "b"}, 422),
        ({"job": 0, "rating": 5, "rater": "Eve"}, 422),
        ([0, 5], 422),
        (b"\xff{", 400),
        (b"[" * 4000, 400),
        (b" " * 5000, 413),
    ],
)
def test_what_is_no_rating_is_refused_and_not_kept(client, study, body, status):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/api/ratings", params=ADA, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]
    assert not (study.folder / "ratings.jsonl").exists()


def test_other_sites_paths_and_kinds_are_refused(client, study):
    good = {"job": 0, "rating": 5}
    foreign = {"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}
    for headers in foreign:
        assert client.post("/api/ratings", params=ADA, json=good, headers=headers).status_code == 403, headers
    plain = {"Content-Type": "text/plain"}  # what another site's form may send
    assert client.post("/api/ratings", params=ADA, content=json.dumps(good), headers=plain).status_code == 422
    assert client.post("/api/ratings", json=good).status_code == 422  # nobody's
    assert client.post("/api/ratings", params={"rater": "<b>"}, json=good).status_code == 422
    for path in ("12/mask.png", "0/other.png", "-1/mask.png", "..%2f..%2fstudy.json", "99999999999999999999/mask.png"):
        assert client.get(f"/api/jobs/{path}").status_code in (404, 422), path
    for path in ("/study.json", "/assets/../study.json", "/assets/..%2findex.html", "/docs"):
        assert client.get(path).status_code == 404, path
    assert not study.ratings
    headers = client.get("/").headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]


def test_raters_of_other_machines_need_the_token(study):
    token = "a" * 24
    client = TestClient(create_app(study, Access("0.0.0.0", token)), base_url="http://box.example:8008")
    for path in ("/", "/assets/main.js", "/api/jobs/0/mask.png"):
        assert client.get(path).status_code == 401
    assert client.post("/api/next", params=ADA).status_code == 401
    assert client.get(f"/?token={token}").status_code == 200
    assert client.post("/api/next", params=ADA).json()["job"] == 0


def test_an_image_that_is_gone_is_an_error_of_that_job_alone_and_keeps_a_study_from_being_served(client, study):
    study.check_images()
    gone = Path(study.jobs[0].picture)
    gone.unlink()
    answer = client.get("/api/jobs/0/picture.png")
    assert answer.status_code == 409
    assert str(gone.parent) not in answer.text
    other = next(i for i, job in enumerate(study.jobs) if job.picture != study.jobs[0].picture)
    assert client.get(f"/api/jobs/{other}/picture.png").status_code == 200
    with pytest.raises(ValueError, match="expected an image at"):
        study.check_images()
    Image.new("RGB", (4, 4)).save(gone)
    with pytest.raises(ValueError, match="mask's size"):
        study.check_images()


def test_a_torn_last_line_is_dropped_and_another_bad_line_named(study):
    study.rate(Rating(0, 5))
    study.rate(Rating(1, 6))
    path = study.folder / "ratings.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"job": 2, "rat')
    again = Study(study.folder)
    assert sorted(again.ratings) == [0, 1]
    again.rate(Rating(2, 7))
    assert sorted(Study(study.folder).ratings) == [0, 1, 2]
    path.write_text("nonsense\n" + whole)
    with pytest.raises(ValueError, match=r"line 1 of .*ratings.jsonl is no rating"):
        Study(study.folder)


def test_ratings_of_many_threads_are_all_whole(study):
    threads = [threading.Thread(target=study.rate, args=(Rating(i % 12, 1 + i % 10),)) for i in range(48)]
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
        study.rate(Rating(i, rating))
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
        study.rate(Rating(i, 8 if study.jobs[i].source == "truth" else 6))
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

    out, ground_truth = data / "study", data / "annotations.json"
    assert run("report", out) == 2
    assert "make one with sam-jax rate sample" in capsys.readouterr().err
    assert run("sample", "--annotations", ground_truth, "--source", f"a={data / 'a.json'}", "--out", out) == 2
    assert run("sample", "--annotations", ground_truth, "--source", "a", "--out", out) == 2
    options = ["--source", f"a={data / 'a.json'}", "--source", f"truth={ground_truth}", "--masks", 3, "--out", out]
    assert run("sample", "--annotations", ground_truth, *options) == 0
    assert run("report", out) == 2
    assert "expected ratings" in capsys.readouterr().err
    process, address = start("rate", "serve", str(out), "--port", "0")
    try:
        assert address.startswith("http://127.0.0.1:")
        for job in range(6):
            answer = httpx.post(
                f"{address}api/ratings", params=ADA, json={"job": job, "rating": 1 + job, "seconds": 30}, timeout=20
            )
            assert answer.json()["rated"] == job + 1
        assert run("serve", out, "--port", 0) == 2  # one server at a time
        assert "being rated by another" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
    assert run("report", out) == 0
    assert "6 of 6 masks rated by 1, in 30 s each" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["sources"]["a"]["ratings"] == 3


def test_masks_of_the_truth_are_those_of_the_file(study):
    ground_truth = {
        json.dumps(o["segmentation"])
        for image in read_ground_truth(study.folder.parent / "annotations.json").images.values()
        for o in image.objects()
    }
    for job in study.jobs:
        assert (json.dumps(job.segmentation) in ground_truth) == (job.source == "truth")
        assert decode_rle(job.segmentation).shape == SIZE
