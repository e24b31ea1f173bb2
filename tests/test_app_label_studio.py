"""The model as an ML backend of Label Studio: messages and run lengths."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cases.app import BASE, SIZE, make_store
from sam_jax.app import label_studio
from sam_jax.app.brush_rle import encode_brush
from sam_jax.app.label_studio import Region, _read_regions
from sam_jax.app.server import create_app
from sam_jax.engine.records import MaskRecord
from sam_jax.errors import UserError
from sam_jax.ops.rle import encode_rle
from sam_jax.web.guard import Access

SETUP = """<View><Image name="picture" value="$photo" zoom="true"/>
<BrushLabels name="mask" toName="picture" smart="false"><Label value="Disc"/><Label value="Rest"/></BrushLabels>
<KeyPointLabels name="point" toName="picture" smart="true" smartOnly="true"><Label value="Disc"/></KeyPointLabels>
<RectangleLabels name="box" toName="picture" smart="true" smartOnly="true"><Label value="Disc"/></RectangleLabels>
</View>"""
H, W = SIZE


def region(kind, x, y, **fields):
    value = {"x": 100 * x / W, "y": 100 * y / H, "width": 0.23, "labels": ["Disc"], kind: ["Disc"]}
    value |= fields.pop("value", {})
    sizes = {"original_width": W, "original_height": H, "image_rotation": 0}
    return sizes | {"type": kind, "value": value, "from_name": "point", "to_name": "picture", "id": "r", **fields}


def message(*regions, address="/data/local-files/?d=0.png"):
    """Returns a region as Label Studio 1.23.2 sends it, with fields that are not used."""
    task = {"id": 3, "data": {"photo": address}, "meta": {}, "inner_id": 3, "total_annotations": 0, "project": 1}
    return {
        "tasks": [task | {"file_upload": None, "annotations": [], "predictions": [], "drafts": []}],
        "project": "1.1795561183",
        "label_config": SETUP,
        "params": {"login": None, "password": None, "context": {"result": list(regions)} if regions else None},
    }


def decode_brush(data):
    """Decodes Label Studio's format bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def take(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word, widths = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        repeated, length = take(1), None
        length = take(widths[take(2)]) + 1
        values += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    assert len(bits) - at < 8
    return np.array(values, np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("label_studio"), 2)


class Elsewhere:
    """Stands in for a Label Studio server from which images are fetched: every upload is image 1."""

    def add_image(self, store, file, max_pixels):
        if not file.startswith("upload/1/"):
            raise UserError(f"Label Studio answers 404 when asked for {file}")
        return 1


@pytest.fixture(scope="module")
def client(store, tiny_model):
    app = create_app(store, tiny_model, Access(), model_version="tiny-1", label_studio=Elsewhere())
    with TestClient(app, base_url=BASE) as client:
        yield client


def test_run_lengths_are_those_that_label_studios_own_converter_writes():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:5] = True
    mask[2, 3] = False
    recorded = [0, 0, 0, 140, 57, 27, 254, 35, 0, 183, 255, 124, 2, 63, 248, 192, 35, 255, 190, 1, 111, 255, 17, 128, 0]
    assert encode_brush(mask) == recorded  # label-studio-converter 0.0.59


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_come_back_as_the_mask(density):
    mask = np.random.default_rng(0).random((130, 170)) < density
    assert (decode_brush(encode_brush(mask)).reshape(130, 170, 4) == 255 * mask[..., None]).all()


def test_it_answers_what_label_studio_asks_when_it_connects(client):
    assert client.get("/label-studio/health").json()["status"] == "UP"
    setup = {"project": "1.1795561183", "schema": SETUP, "hostname": "http://ls.example", "access_token": "x"}
    answer = client.post("/label-studio/setup", json=setup | {"extra_params": None})
    assert answer.json() == {"model_version": "tiny-1"}
    assert client.get("/label-studio/versions").json() == {"versions": ["tiny-1"]}
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 4, "result": []}, "project": {"id": 1}}
    assert client.post("/label-studio/webhook", json=event).status_code == 200
    assert client.post("/label-studio/webhook", json={"action": "START_TRAINING"}).status_code == 422


def test_without_a_click_every_task_gets_the_masks_that_the_project_has(store, client):
    store.set_size(2, W, H)
    keep = {"annotator": "Ada", "origin": "prefilled", "predicted_iou": 0.75, "picture_id": 2}
    masks = {name: np.arange(H * W).reshape(H, W) % n == 0 for name, n in (("Disc", 7), ("Moon", 11), ("Rest", 13))}
    for state, (name, mask) in zip(("proposed", "edited", "rejected"), masks.items(), strict=True):
        store.save_mask(MaskRecord(name, segmentation=encode_rle(mask), name=name, state=state, **keep))
    body = message()
    unknown = {"id": 9, "data": {"photo": "s3://bucket/1.png"}}
    body["tasks"] = [*message()["tasks"], *message(address="/data/local-files/?d=1.png")["tasks"], unknown] * 30
    results = client.post("/label-studio/predict", json=body).json()["results"]
    assert len(results) == 90
    assert results[0] == results[2] == []
    assert (results[1]["score"], results[1]["model_version"]) == (0.75, "tiny-1")
    assert [r["value"]["brushlabels"] for r in results[1]["result"]] == [["Disc"], []]  # no Moon in the setup
    for region_, mask in zip(results[1]["result"], masks.values(), strict=False):
        assert (decode_brush(region_["value"]["rle"]).reshape(H, W, 4) == 255 * mask[..., None]).all()


def test_clicks_and_boxes_become_brush_masks_of_the_page(client):
    body = message(region("keypointlabels", 40, 30, is_positive=True))
    answer = client.post("/label-studio/predict", json=body).json()
    assert answer["model_version"] == "tiny-1"
    (result,) = answer["results"][0]["result"]
    assert (result["from_name"], result["to_name"], result["type"]) == ("mask", "picture", "brushlabels")
    assert (result["original_width"], result["original_height"]) == (W, H)
    assert result["value"]["brushlabels"] == ["Disc"]
    assert result["value"]["format"] == "rle"
    click = {"points": [{"x": 40, "y": 30, "label": 1}]}
    page = client.post("/api/pictures/1/predict", json=click).json()
    shown = decode_brush(result["value"]["rle"]).reshape(H, W, 4)[..., 3] == 255
    assert shown.sum() == page["masks"][page["best"]]["area"]

    box = region("rectanglelabels", 20, 10, value={"width": 100 * 40 / W, "height": 100 * 40 / H})
    minus = region("keypointlabels", 2, 2, is_positive=0)
    answer = client.post("/label-studio/predict", json=message(box, minus)).json()
    both = {"points": [{"x": 2, "y": 2, "label": 0}], "box": [20, 10, 60, 50]}
    page = client.post("/api/pictures/1/predict", json=both).json()
    (result,) = answer["results"][0]["result"]
    assert result["score"] == pytest.approx(page["masks"][0]["predicted_iou"], abs=1e-3)


def test_other_regions_beside_a_click_change_nothing(client):
    click = region("keypointlabels", 40, 30)
    (alone,) = client.post("/label-studio/predict", json=message(click)).json()["results"]
    brush = {"type": "brushlabels", "value": {"format": "rle", "rle": [0] * 5000, "brushlabels": ["Disc"]}, "id": "b"}
    turned = brush | {"original_width": W, "original_height": H, "image_rotation": 90}
    choice = {"type": "choices", "value": {"choices": ["good"]}, "from_name": "quality", "to_name": "picture"}
    for others in ([brush], [turned], [choice], [choice, brush, turned]):
        (result,) = client.post("/label-studio/predict", json=message(*others, click)).json()["results"]
        assert result["result"][0]["value"] == alone["result"][0]["value"]
    assert client.post("/label-studio/predict", json=message(brush)).status_code == 422


@pytest.mark.parametrize(
    ("corner", "width", "height", "rotation", "box"),
    [
        ((60, 20), 40, 30, 90, (30, 20, 60, 60)),
        ((60, 50), 40, 30, 180, (20, 20, 60, 50)),
        ((20, 50), 40, 30, 270, (20, 10, 50, 50)),
        ((20, 50), 40, 30, -90, (20, 10, 50, 50)),
        ((20, 10), 40, 30, 360, (20, 10, 60, 40)),
        ((40, 10), 20 * 2**0.5, 20 * 2**0.5, 45, (20, 10, 60, 50)),
        ((-10, 70), 100, 30, -90, (0, 0, 20, 60)),  # its corner is outside the image
    ],
)
def test_turned_rectangles_are_the_box_around_them(corner, width, height, rotation, box):
    value = {"width": 100 * width / W, "height": 100 * height / H, "rotation": rotation}
    drawn = Region.model_validate(region("rectanglelabels", *corner, value=value))
    prompt, label = _read_regions([drawn], SIZE)
    np.testing.assert_allclose(prompt.box, box, atol=1e-3)
    assert label == "Disc"


def test_answers_are_bounded_and_the_rest_is_asked_for_again(store, client, monkeypatch):
    monkeypatch.setattr(label_studio, "MAX_NUMBERS", 1)
    store.set_size(2, W, H)
    mask = np.arange(H * W).reshape(H, W) % 7 == 0
    store.save_mask(MaskRecord("b", segmentation=encode_rle(mask), picture_id=2, annotator="Ada", origin="manual"))
    body = message()
    body["tasks"] = message(address="/data/local-files/?d=1.png")["tasks"] * 3
    first, *rest = client.post("/label-studio/predict", json=body).json()["results"]
    assert first["result"]
    assert rest == [[], []]


def test_a_image_that_the_project_does_not_have_is_asked_of_label_studio(client, capsys):
    click = region("keypointlabels", 40, 30)
    uploaded, local = (f"/data/{kind}/{name}" for kind, name in (("upload/1", "a-b.png"), ("local-files", "?d=9.png")))
    assert client.post("/label-studio/predict", json=message(click, address=uploaded)).status_code == 200
    assert client.post("/label-studio/predict", json=message(click, address=local)).status_code == 422
    assert "answers 404 when asked for local-files/9.png" in capsys.readouterr().err  # who serves sees why


@pytest.mark.parametrize(
    "change",
    [
        {"original_width": W + 1},
        {"image_rotation": 90},
        {"type": "polygonlabels"},
        {"value": {"x": 101, "y": 0}},
        {"value": {"x": 5}},
        {"value": {"x": 5, "y": -1}},
        {"value": {"x": 5, "y": 5, "rotation": "nan", "width": 9, "height": 9}, "type": "rectanglelabels"},
        {"value": {"x": 120, "y": 5, "width": 9, "height": 9}, "type": "rectanglelabels"},
        {"value": {"x": 5, "y": 5, "width": 0, "height": 0}, "type": "rectanglelabels"},
    ],
)
def test_what_is_no_prompt_on_this_image_is_refused(client, change):
    wrong = region("keypointlabels", 40, 30) | change
    answer = client.post("/label-studio/predict", json=message(wrong))
    assert answer.status_code == 422
    assert "error" in answer.json()
