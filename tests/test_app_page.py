"""The annotation page in a real browser: click, see the mask, choose, brush, save, reload, export."""

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from cases.annotating import Annotating
from cases.app import SIZE, mask_message, serve, wait_until, write_images
from sam_jax.engine.records import MaskRecord
from sam_jax.engine.store import Store
from sam_jax.everything.formats import FORMATS
from sam_jax.ops.rle import decode_rle, encode_rle, rle_area

ROGUE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def project(browser, tmp_path_factory):
    """Starts a server with enough images for all tests."""
    folder = tmp_path_factory.mktemp("page")
    write_images(folder / "pictures", 7)
    store = Store(folder / "project")
    store.add_images(folder / "pictures", [f"{i}.png" for i in range(7)])
    process, address = serve(folder)
    yield store, address
    process.kill()
    process.wait()


def test_click_choose_undo_save_reload_export(project, browser):
    store, address = project
    page = Annotating(browser, address, "Ada")
    before = page.colour(40, 36)
    page.click(40, 30)
    page.answered()
    page.until("document.querySelectorAll('#candidates button[aria-checked=true]').length === 1")
    assert page.area > 0
    best = page.page.evaluate("document.querySelector('#candidates [aria-checked=true]').dataset.choice")
    areas = {}
    for key in "123":
        page.press(key)
        areas[key] = page.area
    assert len(set(areas.values())) > 1
    page.page.wait_for_timeout(100)  # a frame
    assert page.colour(40, 36) != before  # the mask lies over the image
    page.click(5, 5, button="right")
    page.until("document.querySelector('#candidates [aria-checked=true]')?.dataset.choice === '0'")
    for _ in range(10):
        page.press("z")
    assert page.area == 0
    page.press("y")
    assert page.page.evaluate("document.querySelector('#candidates [aria-checked=true]').dataset.choice") == best
    area = page.area
    page.press("t")
    page.page.keyboard.type(ROGUE)
    page.press("Enter")
    page.until("document.querySelectorAll('#saved li').length === 1")
    page.saved()
    (mask,) = store.masks(1)
    assert (mask.name, mask.annotator, mask.state, rle_area(mask.segmentation)) == (ROGUE, "Ada", "accepted", area)
    assert [prompt["type"] for prompt in mask.prompts] == ["point"]
    assert mask.seconds > 0

    page.page.reload()
    page.ready()
    assert page.page.input_value("#saved li input") == ROGUE
    assert page.page.locator("aside img").count() == 0  # a name is text
    with page.page.expect_download() as download:
        page.page.click("#export")
    exported = json.loads(Path(download.value.path()).read_text())
    assert [a["segmentation"] for a in exported["annotations"]] == [mask.segmentation]
    page.page.click("footer summary")
    assert page.page.locator("#picture-formats a").all_text_contents() == list(FORMATS)
    with page.page.expect_download() as download:
        page.page.click("footer .formats a[href$=yolo]")
    assert ZipFile(download.value.path()).namelist()[-1] == "labels/0.txt"
    page.page.click("footer summary")
    page.press("n")
    page.until("document.querySelector('#picture-name').textContent === '1.png'")
    assert [image.name for image in store.images("done")] == ["0.png"]
    page.ready()
    page.press("p")
    page.until("document.querySelector('#picture-name').textContent === '0.png'")
    assert page.page.input_value("#saved li input") == ROGUE
    page.ready()
    assert page.page.is_visible("#looking")
    page.press("p")
    page.until("document.querySelector('#toast').textContent.includes('no earlier image')")
    assert [image.name for image in store.images("done")] == ["0.png"]  # to look at it does not open it
    page.press("n")
    page.until("document.querySelector('#picture-name').textContent === '1.png'")
    assert page.page.is_hidden("#toast")  # what is said about an image leaves with it
    assert page.problems == []
    page.context.close()


def test_brush_eraser_and_boxes_make_what_is_shown(project, browser):
    store, address = project
    page = Annotating(browser, address, "Bob")
    image = int(page.page.evaluate("document.querySelector('#export').href.match(/pictures\\/(\\d+)/)[1]"))
    page.press("d", "[", "[", "[", "[")  # 24 px down to 10
    page.drag((20, 20), (40, 20), (40, 40))
    painted = page.area
    assert 350 < painted < 550
    page.press("e")
    page.drag((30, 20), (30.5, 20))
    erased = page.area
    assert 0 < painted - erased < 130
    page.press("z")
    assert page.area == painted
    page.press("y")
    assert page.area == erased
    page.press("Enter")
    page.saved()
    (mask,) = store.masks(image)
    assert rle_area(mask.segmentation) == erased
    shown = decode_rle(mask.segmentation)
    assert shown[20, 21]
    assert not shown[20, 30]
    assert [(p["type"], p["label"]) for p in mask.prompts] == [("brush", 1), ("brush", 0)]

    page.press("b")
    page.drag((22, 12), (30, 20), (58, 48))
    page.answered()
    page.press("Enter")
    page.saved()
    box = store.masks(image)[1].prompts[0]
    assert [box[side] for side in ("x0", "y0", "x1", "y1")] == pytest.approx([22, 12, 58, 48], abs=0.2)

    page.page.hover("#saved li:nth-child(2)")
    page.page.click("#saved li:nth-child(2) button[title='More prominent']")
    page.page.fill("#saved li:nth-child(1) input", "disc")
    page.page.keyboard.press("Tab")
    page.saved()
    assert [(m.name, m.rank, m.prompts[0]["type"]) for m in store.masks(image)] == [
        ("disc", 0, "box"),
        (None, 1, "brush"),
    ]
    page.page.hover("#saved li:nth-child(2)")
    page.page.click("#saved li:nth-child(2) button[title='Delete']")
    page.saved()
    assert len(store.masks(image)) == 1
    page.press("z")
    page.until("document.querySelectorAll('#saved li').length === 2")
    page.saved()
    assert len(store.masks(image)) == 2

    # Going on with a saved mask: the same one, with what it was made from.
    page.page.hover("#saved li:nth-child(2)")
    page.page.click("#saved li:nth-child(2) button[title='Edit']")
    page.press("d")
    page.drag((60, 50), (61, 50))
    page.press("Enter")
    page.saved()
    edited = store.masks(image)[1]
    assert edited.id == mask.id
    assert len(edited.prompts) == 3
    assert rle_area(edited.segmentation) > erased
    assert edited.seconds >= mask.seconds
    assert page.problems == []
    page.context.close()


def test_a_mask_saved_without_a_connection_arrives_once_and_even_after_the_browser_was_closed(project, browser):
    store, address = project
    page = Annotating(browser, address, "Cyd")
    image = int(page.page.evaluate("document.querySelector('#export').href.match(/pictures\\/(\\d+)/)[1]"))
    page.context.route("**/masks/**", lambda route: route.abort())
    page.press("d")
    page.drag((20, 20), (40, 20))
    page.press("Enter")
    page.until("document.querySelector('#connection').dataset.state === 'bad'")
    assert store.masks(image) == []
    kept = page.context.storage_state()
    page.context.close()
    context = browser.new_context(storage_state=kept)
    again = context.new_page()
    again.goto(address)
    wait_until(again, "document.querySelectorAll('#saved li').length === 1")
    assert len(store.masks(image)) == 1
    context.close()


def test_what_the_server_refuses_is_told_and_taken_off_the_list(project, browser):
    store, address = project
    page = Annotating(browser, address, "Eve")
    image = int(page.page.evaluate("document.querySelector('#export').href.match(/pictures\\/(\\d+)/)[1]"))
    store.release(0, "Eve")
    assert store.claim("Fay").id == image  # somebody took it over meanwhile
    page.press("d")
    page.drag((20, 20), (40, 20))
    page.press("Enter")
    page.until("document.querySelector('#toast').dataset.kind === 'error'")
    assert "Fay" in page.page.inner_text("#toast")
    page.until("document.querySelectorAll('#saved li').length === 0")
    assert store.masks(image) == []
    page.press("n")  # there is nothing to finish: on to the next
    page.until(f"!document.querySelector('#export').href.includes('/pictures/{image}/')")
    page.ready()
    store.finish(image, "Fay")
    page.context.close()


def test_proposed_masks_are_accepted_edited_and_rejected(project, browser):
    store, address = project
    store.set_size(7, SIZE[1], SIZE[0])
    places = {"a": (2, 2, 20, 20), "b": (30, 2, 50, 20), "c": (2, 30, 20, 50), "d": (60, 40, 70, 50)}
    proposals = [
        MaskRecord(
            name, 7, "detector", mask_message(box)["segmentation"], "prefilled", "proposed", rank=i, predicted_iou=0.9
        )
        for i, (name, box) in enumerate(places.items())
    ]
    assert store.prefill(7, proposals, "detector")
    page = Annotating(browser, address, "Dan")
    assert page.page.locator("#proposed li").count() == 4
    page.press("a", "x")
    page.until("document.querySelectorAll('#proposed li').length === 2")
    page.page.click("#proposed li:nth-child(1) button[title='Edit']")
    page.press("d")
    page.drag((22, 40), (24, 40))
    page.press("Enter")
    page.saved()
    assert {m.id: (m.state, m.origin) for m in store.masks(7)} == {
        "a": ("accepted", "prefilled"),
        "b": ("rejected", "prefilled"),
        "c": ("edited", "prefilled"),
        "d": ("proposed", "prefilled"),
    }
    page.press("n")
    page.until("!document.querySelector('#nothing').hidden")  # the others have the rest
    assert {m.id: m.state for m in store.masks(7)}["d"] == "accepted"
    assert page.problems == []
    page.context.close()


def test_run_lengths_of_the_page_are_those_of_pycocotools(project, browser):
    page = browser.new_page()
    page.goto(project[1])
    script = """async rle => {
      const {Mask} = await import("/assets/masks.js"), mask = Mask.fromRle(rle);
      return {again: mask.toRle(), area: mask.area, pixels: Array.from(mask.data)};
    }"""
    rng = np.random.default_rng(0)
    wide = np.zeros((300, 400), bool)
    wide[:, 7:390] = True  # long runs
    for mask in (rng.random((9, 13)) > 0.5, rng.random((40, 25)) > 0.98, np.ones((3, 2), bool), wide):
        rle = encode_rle(mask)
        answer = page.evaluate(script, rle)
        assert answer["again"] == rle
        assert answer["area"] == mask.sum()
        assert (np.array(answer["pixels"]).reshape(mask.shape) == mask).all()
    page.close()
