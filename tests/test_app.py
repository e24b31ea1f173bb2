"""The server of the annotation page: predictions, saved masks and exports; also when the server is killed."""

import threading
from io import BytesIO
from zipfile import ZipFile

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools.coco import COCO

import sam_jax
from cases.app import BASE, SIZE, make_store, mask_message, serve, write_images
from sam_jax.app import session as session_file
from sam_jax.app.server import create_app
from sam_jax.commands import main as cli
from sam_jax.data.sa1b import Sa1bSource
from sam_jax.engine.records import MaskRecord
from sam_jax.engine.store import Store
from sam_jax.everything.formats import FORMATS
from sam_jax.ops.rle import decode_rle, encode_rle
from sam_jax.web.guard import Access

ADA, BOB = {"annotator": "Ada"}, {"annotator": "Bob"}
CLICK = {"points": [{"x": 40, "y": 30, "label": 1}]}


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4)


@pytest.fixture
def client(store, tiny_model):
    with TestClient(create_app(store, tiny_model, Access(), model_version="tiny"), base_url=BASE) as client:
        yield client


def test_a_click_gives_the_masks_of_the_predictor_and_a_second_goes_on_from_them(client, tiny_model, store):
    opened = client.post("/api/next", params=ADA).json()
    assert opened["masks"] == []
    assert len(opened["upcoming"]) == 2
    path = f"/api/pictures/{opened['picture']['id']}/predict"
    first = client.post(path, json=CLICK).json()
    predictor = sam_jax.SamPredictor(tiny_model)
    predictor.set_image(sam_jax.read_image(store.image(1).path))
    points, labels = np.array([[40, 30]]), np.array([1])
    masks, iou, logits = predictor.predict(points, labels)
    assert first["best"] == 1 + iou.argmax()
    for answer, mask, score in zip(first["masks"][1:], masks, iou, strict=True):
        assert (decode_rle(answer["segmentation"]) != mask).mean() < 1e-3  # sums in another order: borders may differ
        assert answer["area"] == decode_rle(answer["segmentation"]).sum()
        assert answer["predicted_iou"] == pytest.approx(score, abs=1e-3)
        assert 0 <= answer["stability_score"] <= 1

    more = {"points": [*CLICK["points"], {"x": 5, "y": 5, "label": 0}], "previous": {"id": first["id"], "mask": 2}}
    second = client.post(path, json=more).json()
    points, labels = np.array([[40, 30], [5, 5]]), np.array([1, 0])
    fed_back, iou, _ = predictor.predict(points, labels, mask_input=logits[1:2], multimask_output=False)
    assert second["best"] == 0  # clicks together leave no doubt: the single mask
    assert (decode_rle(second["masks"][0]["segmentation"]) != fed_back[0]).mean() < 1e-3
    assert second["masks"][0]["predicted_iou"] == pytest.approx(iou[0], abs=1e-3)
    # A forgotten answer is no error: the clicks alone count.
    alone = client.post(path, json=more | {"previous": {"id": "0" * 16, "mask": 2}}).json()
    _, iou, _ = predictor.predict(points, labels, multimask_output=False)
    assert alone["masks"][0]["predicted_iou"] == pytest.approx(iou[0], abs=1e-3)


def test_masks_equal_those_of_the_compiled_way_on_every_shape_of_image(tiny_model):
    S = tiny_model.config.low_res_size
    logits = np.random.default_rng(0).normal(-1, 1, (5, S, S)).astype(np.float32)
    logits[1] = -5  # nothing
    logits[2] = 5  # everything
    logits[3, :, S // 2 :] = -9
    logits[4] = np.where(np.arange(S)[:, None] > S - 3, 3, -3)  # in the padding of wide images alone
    for size in ((60, 80), (45, 17), (9, 200)):
        expected = np.asarray(sam_jax.predictor.to_original_frame(logits, size, tiny_model.config))
        for plane, mask in zip(logits, expected, strict=True):
            rle, area, _ = session_file._to_rle(plane, size, tiny_model.config)
            assert (decode_rle(rle) != mask).mean() < 2e-3
            assert area == decode_rle(rle).sum()


def test_a_mask_saved_again_under_its_id_is_one_mask_with_a_history(client, store):
    image_id = client.post("/api/next", params=ADA).json()["picture"]["id"]
    path = f"/api/pictures/{image_id}/masks/{'a' * 32}"
    prompts = [{"type": "point", "x": 40, "y": 30, "label": 1}, {"type": "box", "x0": 1, "y0": 2, "x1": 30, "y1": 40}]
    prompts.append({"type": "brush", "label": 0, "size": 5, "path": [[1, 2], [3.5, 4]]})
    message = mask_message(name="tee <b>cup</b>", prompts=prompts, predicted_iou=0.8)
    for _ in range(3):  # a retry whose answer was lost
        assert client.put(path, params=ADA, json=message).status_code == 200
    assert client.put(path, params=ADA, json=message | {"name": "cup", "rank": 1}).status_code == 200
    (mask,) = client.get(f"/api/pictures/{image_id}").json()["masks"]
    assert (mask["name"], mask["rank"], mask["model"], mask["annotator"]) == ("cup", 1, "tiny", "Ada")
    assert mask["prompts"] == prompts
    history = client.get(f"/api/masks/{'a' * 32}/history").json()
    assert [step["record"]["name"] for step in history] == ["tee <b>cup</b>", "cup"]
    assert client.delete(f"/api/masks/{'a' * 32}", params=ADA).status_code == 200
    assert client.delete(f"/api/masks/{'a' * 32}", params=ADA).status_code == 200
    assert store.masks(image_id) == []
    assert client.post(f"/api/masks/{'a' * 32}/restore", params=ADA).json()["name"] == "cup"
    assert len(store.masks(image_id)) == 1


def test_every_annotator_has_images_of_their_own(client):
    first, other = (client.post("/api/next", params=who).json()["picture"]["id"] for who in (ADA, BOB))
    assert first != other
    assert client.post("/api/next", params=ADA).json()["picture"]["id"] == first  # the one that is open
    answer = client.put(f"/api/pictures/{first}/masks/m", params=BOB, json=mask_message())
    assert answer.status_code == 409
    assert "Bob" in answer.json()["error"]
    assert client.post(f"/api/pictures/{first}/finish", params=BOB, json={}).status_code == 409
    skipped = {"outcome": "skipped", "seconds": 3}
    assert client.post(f"/api/pictures/{first}/finish", params=ADA, json=skipped).status_code == 200
    third = client.post("/api/next", params=ADA).json()["picture"]["id"]
    assert third not in (first, other)
    for _ in range(2):  # again: the answer was lost
        assert client.post(f"/api/pictures/{third}/finish", params=ADA, json={}).status_code == 200
    assert client.get("/api/state", params=ADA).json()["progress"] == {"pictures": 4, "done": 1, "done_by_me": 1}
    seen = None
    for expected in (third, first, None):
        before = {} if seen is None else {"before": seen}
        shown = client.get("/api/back", params=ADA | before).json()["picture"]
        seen = shown and shown["id"]
        assert seen == expected
    fourth = client.post("/api/next", params=ADA).json()["picture"]["id"]
    strip = client.get("/api/strip", params=ADA).json()["pictures"]
    expected = [(first, "skipped"), (third, "done"), (fourth, "open")]
    assert [(image["id"], image["state"]) for image in strip][:3] == expected
    assert client.post(f"/api/pictures/{third}/take", params=BOB).status_code == 409
    assert client.post(f"/api/pictures/{third}/take", params=ADA).status_code == 200
    assert client.get(f"/api/pictures/{third}").json()["picture"]["state"] == "open"
    assert client.get(f"/api/pictures/{third}/thumbnail").content[:2] == b"\xff\xd8"


def test_classes_are_the_categories_of_exports_in_their_order(client, store):
    assert client.put("/api/classes", params=ADA, json={"names": ["dog", "cat"]}).json() == {"classes": ["dog", "cat"]}
    assert client.get("/api/state", params=ADA).json()["classes"] == ["dog", "cat"]
    assert client.put("/api/classes", params=ADA, json={"names": ["dog", "dog"]}).status_code == 409
    image = client.post("/api/next", params=ADA).json()["picture"]["id"]
    for name in ("bird", "cat"):
        message = mask_message(name=name)
        assert client.put(f"/api/pictures/{image}/masks/{name}", params=ADA, json=message).status_code == 200
    exported = client.get("/api/export.json").json()
    assert [category["name"] for category in exported["categories"]] == ["dog", "cat", "bird"]
    assert [annotation["category_id"] for annotation in exported["annotations"]] == [3, 2]


def test_proposed_masks_are_judged_and_keep_their_origin_and_model(client, store):
    rle = mask_message()["segmentation"]
    proposals = [
        MaskRecord(name, 4, "detector", rle, origin="prefilled", state="proposed", model="v1") for name in "abc"
    ]
    store.set_size(4, SIZE[1], SIZE[0])
    assert store.prefill(4, proposals, "v1")
    opened = client.post("/api/next", params=BOB).json()
    assert opened["picture"]["id"] == 4
    assert {mask["state"] for mask in opened["masks"]} == {"proposed"}
    path = "/api/pictures/4/masks/"
    client.put(f"{path}a", params=BOB, json=mask_message())
    client.put(f"{path}b", params=BOB, json=mask_message((0, 0, 9, 9), state="edited"))
    client.put(f"{path}c", params=BOB, json=mask_message(state="rejected"))
    kept = {mask["id"]: mask for mask in client.get("/api/pictures/4").json()["masks"]}
    assert {name: (mask["state"], mask["model"]) for name, mask in kept.items()} == {
        "a": ("accepted", "v1"),
        "b": ("edited", "tiny"),
    }
    assert {mask.origin for mask in store.masks(4)} == {"prefilled"}
    assert len(client.get("/api/export.json").json()["annotations"]) == 2


def test_exports_are_read_by_the_projects_own_readers(client, tmp_path, store):
    image_id = client.post("/api/next", params=ADA).json()["picture"]["id"]
    for number, name in enumerate(["cup", "cup", None]):
        message = mask_message((number, 5, 20 + number, 30), name=name, rank=number)
        assert client.put(f"/api/pictures/{image_id}/masks/m{number}", params=ADA, json=message).status_code == 200
    answer = client.get(f"/api/pictures/{image_id}/sa1b.json")
    assert 'filename="0.json"' in answer.headers["Content-Disposition"]
    (tmp_path / "pictures" / "0.json").write_text(answer.text)
    example = Sa1bSource(pairs=[(store.image(image_id).path, tmp_path / "pictures" / "0.json")])[0]
    assert example.size == SIZE
    assert [decode_rle(rle).sum() for rle in example.masks] == [500, 500, 500]
    (tmp_path / "all.json").write_text(client.get("/api/export.json").text)
    coco = COCO(str(tmp_path / "all.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["cup", "object"]
    assert coco.annToMask(coco.loadAnns([3])[0]).sum() == 500
    assert coco.loadAnns([3])[0]["bbox"] == [2, 5, 20, 25]
    assert [a["bbox"] for a in answer.json()["annotations"]] == [[number, 5, 19, 24] for number in range(3)]


def test_every_format_is_offered_for_an_image_and_for_all(client):
    number = client.post("/api/next", params=ADA).json()["picture"]["id"]
    client.put(f"/api/pictures/{number}/masks/m", params=ADA, json=mask_message(name="cup"))
    assert set(client.get("/api/state", params=ADA).json()["formats"]) == set(FORMATS)
    expected = {
        "coco": "instances.json",
        "sa1b": "0.json",
        "overlay": "0.png",
        "png": ["0.masks/0.png", "0.masks/metadata.csv"],
        "yolo": ["data.yaml", "labels/0.txt"],
        "labelme": "0.json",
        "geojson": "0.geojson",
    }
    assert set(expected) == set(FORMATS)
    for format, files in expected.items():
        for path in (f"/api/pictures/{number}/export/{format}", f"/api/export/{format}"):
            answer = client.get(path)
            assert answer.status_code == 200, path
            if isinstance(files, list):
                assert sorted(n for n in ZipFile(BytesIO(answer.content)).namelist() if n[-1] != "/") == files
            else:
                assert f".{files.rpartition('.')[2]}" in answer.headers["Content-Disposition"]
    assert client.get("/api/export/nonsense").status_code == 422
    assert client.get("/api/pictures/2/export/sa1b").json()["annotations"] == []


def test_a_image_that_cannot_be_read_is_an_error_of_that_image_alone(client, store):
    path = store.image(1).path
    path.write_bytes(b"no image")
    assert client.post("/api/next", params=ADA).json()["picture"]["id"] == 1
    for method, url in (("GET", "image"), ("POST", "embed")):
        answer = client.request(method, f"/api/pictures/1/{url}")
        assert answer.status_code == 409
        assert "image cannot be decoded: 0.png" in answer.json()["error"]
        assert str(path.parent) not in answer.text
    assert client.post("/api/pictures/1/predict", json=CLICK).status_code == 409
    path.unlink()
    assert client.get("/api/pictures/1/image").status_code == 404
    assert client.post("/api/pictures/2/predict", json=CLICK).status_code == 200


def test_the_image_is_upright_and_tells_nothing_else(client, store):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"  # orientation, maker
    Image.new("RGB", (80, 60)).save(store.image(1).path.with_suffix(".jpg"), exif=exif)
    store.add_images(store.image(1).root, ["0.jpg"])
    answer = client.get("/api/pictures/5/image")
    assert answer.headers["Content-Type"] == "image/jpeg"
    image = Image.open(BytesIO(answer.content))
    assert image.size == (60, 80)
    assert not image.getexif()


def test_clients_that_come_at_once_all_get_their_masks(client):
    answers = []

    def work(name):
        image_id = client.post("/api/next", params={"annotator": name}).json()["picture"]["id"]
        for x in range(20, 60, 10):
            points = [{"x": x, "y": 30, "label": 1}]
            answers.append(client.post(f"/api/pictures/{image_id}/predict", json={"points": points}).status_code)
            url = f"/api/pictures/{image_id}/masks/{name}{x}"
            answers.append(client.put(url, params={"annotator": name}, json=mask_message()).status_code)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 32
    assert len(client.get("/api/export.json").json()["annotations"]) == 16


def test_what_is_saved_outlives_the_server(tmp_path):
    write_images(tmp_path / "pictures", 2)
    process, address = serve(tmp_path)
    try:
        with httpx.Client(base_url=address, timeout=30) as client:
            image_id = client.post("/api/next", params=ADA).json()["picture"]["id"]
            client.put(f"/api/pictures/{image_id}/masks/one", params=ADA, json=mask_message()).raise_for_status()
    finally:
        process.kill()  # nothing is tidied up
        process.wait()
    assert [mask.id for mask in Store(tmp_path / "project").masks(image_id)] == ["one"]
    process, address = serve(tmp_path, "--stage", "semi")
    try:
        with httpx.Client(base_url=address, timeout=30) as client:
            assert client.get("/api/state", params=ADA).json()["stage"] == "semi-automatic"
            opened = client.post("/api/next", params=ADA).json()
            assert opened["picture"]["id"] == image_id
            assert [mask["id"] for mask in opened["masks"]] == ["one"]
            assert opened["masks"][0]["segmentation"] == mask_message()["segmentation"]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["nowhere"], "expected a folder of images"),
        (["empty"], "no images in"),
        (["pictures", "--model", "nothing"], "expected the name of a model (small"),
        (["pictures", "--host", "0.0.0.0", "--token", "short"], "token of 16 to 256"),
        (["pictures", "--host", "192.0.2.1"], "cannot listen on"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_a_line(tmp_path, monkeypatch, capsys, options, expected):
    write_images(tmp_path / "pictures", 1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["annotate", *options, "--port", "0"]) == 2
    assert expected in capsys.readouterr().err


def test_a_mask_of_another_size_or_without_pixels_is_refused(client):
    image_id = client.post("/api/next", params=ADA).json()["picture"]["id"]
    path = f"/api/pictures/{image_id}/masks/m"
    for mask in (np.zeros(SIZE, bool), np.ones((80, 60), bool)):
        answer = client.put(path, params=ADA, json={"segmentation": encode_rle(mask)})
        assert answer.status_code == 409
        assert "expected a mask" in answer.json()["error"]
    assert client.get(f"/api/pictures/{image_id}").json()["masks"] == []
