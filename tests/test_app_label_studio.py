"""The model as a backend of Label Studio: its messages, its run lengths."""

import numpy as np
import pytest
from app_cases import BASE, SIZE, make_store
from fastapi.testclient import TestClient

import sam_jax
from sam_jax.app.brush_rle import encode_brush
from sam_jax.app.guard import Access
from sam_jax.app.server import create_app

SETUP = """<View><Image name="picture" value="$photo" zoom="true"/>
<BrushLabels name="mask" toName="picture"><Label value="Disc"/><Label value="Rest"/></BrushLabels>
<KeyPointLabels name="point" toName="picture" smart="true"><Label value="Disc"/></KeyPointLabels>
<RectangleLabels name="box" toName="picture" smart="true"><Label value="Disc"/></RectangleLabels></View>"""
H, W = SIZE


def region(kind, x, y, **fields):
    value = {"x": 100 * x / W, "y": 100 * y / H, kind: ["Disc"]} | fields.pop("value", {})
    sizes = {"original_width": W, "original_height": H, "image_rotation": 0}
    return sizes | {"type": kind, "value": value, "from_name": "point", "to_name": "picture", "id": "r"} | fields


def message(*regions, address="/data/local-files/?d=0.png"):
    """As Label Studio sends it, with fields that nobody looks at."""
    return {
        "tasks": [{"id": 3, "data": {"photo": address}, "annotations": [], "predictions": []}],
        "project": "1.1700000000",
        "label_config": SETUP,
        "params": {"login": None, "password": None, "context": {"result": list(regions), "draft_id": 0}},
    }


def decode_brush(data):
    """Label Studio's format read bit by bit, plainly."""
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
def client(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("label_studio"), 2)
    app = create_app(store, sam_jax.load_model("tiny"), Access(), model_version="tiny-1")
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


def test_it_says_that_it_is_up_and_which_model_it_has(client):
    assert client.get("/label-studio/health").json()["status"] == "UP"
    setup = {"project": "1.1", "schema": SETUP, "hostname": "http://ls.example", "access_token": "x"}
    assert client.post("/label-studio/setup", json=setup).json() == {"model_version": "tiny-1"}
    answer = client.post("/label-studio/predict", json=message())
    assert answer.json()["results"] == []  # nothing was clicked on


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


def test_pictures_are_found_by_the_end_of_their_path(client):
    click = region("keypointlabels", 40, 30)
    for address in ("/data/local-files/?d=photos/1.png", "http://ls.example/data/local-files/?d=deep%2Fphotos%2F1.png"):
        assert client.post("/label-studio/predict", json=message(click, address=address)).status_code == 200
    assert (
        client.post("/label-studio/predict", json=message(click, address="/data/local-files/?d=9.png")).status_code
        == 422
    )


@pytest.mark.parametrize(
    "change",
    [
        {"original_width": W + 1},
        {"image_rotation": 90},
        {"type": "polygonlabels"},
        {"value": {"x": 101, "y": 0}},
        {"value": {"x": 5}},
        {"value": {"x": 5, "y": 5, "width": 0, "height": 0}, "type": "rectanglelabels"},
    ],
)
def test_what_is_no_prompt_on_this_picture_is_refused(client, change):
    wrong = region("keypointlabels", 40, 30) | change
    answer = client.post("/label-studio/predict", json=message(wrong))
    assert answer.status_code == 422
    assert "error" in answer.json()
