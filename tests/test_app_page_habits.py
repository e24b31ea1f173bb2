"""The annotation page as people use it: faster than the model, looking back, by keyboard, on small windows."""

import json

import pytest

from cases.annotating import Annotating
from cases.app import serve, write_images
from sam_jax.engine.store import Store
from sam_jax.ops.rle import rle_area

BOX = ((22, 12), (30, 20), (58, 48))
STROKE = ((20, 50), (30, 55), (40, 55))


@pytest.fixture
def project(browser, tmp_path):
    """Starts a server with eight images."""
    write_images(tmp_path / "pictures", 8)
    store = Store(tmp_path / "project")
    store.add_images(tmp_path / "pictures", [f"{i}.png" for i in range(8)])
    process, address = serve(tmp_path)
    yield store, address
    process.kill()
    process.wait()


def shown_area(page, area):
    page.until(f"Number(document.body.dataset.area) === {area}")


def test_what_is_asked_before_the_model_has_answered_is_applied_to_its_answer(project, browser):
    store, address = project
    page = Annotating(browser, address, "Ada")

    def last():
        page.saved()
        return store.masks(page.image)[-1]

    def box():
        page.press("b")
        page.drag(*BOX)

    def stroke():
        page.press("d")
        page.drag(*STROKE)

    # In step with the model.
    box()
    page.answered()
    alone = page.area
    stroke()
    page.press("Enter")
    right = last()
    assert rle_area(right.segmentation) > alone > 0
    page.press("c")
    page.click(40, 30)
    page.answered()
    page.press("2")
    page.click(10, 10, button="right")
    page.until("document.querySelector('#candidates [aria-checked=true]')?.dataset.choice === '0'")
    page.press("Enter")
    clicks = last()

    held = page.hold()
    # Box, stroke and Enter at once, and the next mask begun.
    box()
    stroke()
    page.press("Enter")
    page.press("d")
    page.drag((60, 5), (70, 5))
    page.press("Enter")
    assert len(store.masks(page.image)) == 2
    page.release(held)
    page.until("document.querySelectorAll('#saved li').length === 4")
    page.saved()
    early, second = store.masks(page.image)[2:]
    assert (early.segmentation, early.prompts) == (right.segmentation, right.prompts)
    assert [prompt["type"] for prompt in second.prompts] == ["brush"]
    # The answer comes while the brush is down.
    box()
    page.press("d")
    page.page.mouse.move(*page.place(*STROKE[0]))
    page.page.mouse.down()
    page.page.mouse.move(*page.place(*STROKE[1]))
    page.release(held)
    page.answered()
    page.page.mouse.move(*page.place(*STROKE[2]))
    page.page.mouse.up()
    page.press("Enter")
    assert last().segmentation == right.segmentation
    # A choice and a second click.
    page.press("c")
    page.click(40, 30)
    page.press("2")
    page.click(10, 10, button="right")
    page.press("Enter")
    page.release(held, 2)
    page.until("document.querySelectorAll('#saved li').length === 6")
    assert last().segmentation == clicks.segmentation
    # Undo, and Esc.
    box()
    stroke()
    page.press("z")
    page.release(held)
    page.answered()
    assert page.area == alone
    page.press("y")
    shown_area(page, rle_area(right.segmentation))
    page.press("Escape")
    box()
    page.press("Escape")
    page.release(held)
    page.page.wait_for_timeout(300)
    assert page.area == 0
    # N waits, and does not leave work behind; P does not either.
    for key in "np":
        page.page.evaluate("document.querySelector('#toast').textContent = ''")
        box()
        page.press(key)
        page.release(held)
        page.until("document.querySelector('#toast').textContent.includes('not saved')")
        assert page.area == alone
        page.press("Escape")
    box()
    page.press("Enter", "n", "n")
    assert page.page.inner_text("#picture-name") == "0.png"
    page.release(held)
    page.shows("1.png")
    assert [len(store.masks(image.id)) for image in store.images("done")] == [7]
    # A prompt that is not answered is taken back, what was painted stays.
    stroke()
    painted = page.area
    box()
    stroke()
    while not held:
        page.page.wait_for_timeout(10)
    held.pop().abort()
    page.until("document.querySelector('#toast').textContent.includes('no connection')")
    assert page.area == painted
    assert not page.page.is_visible("#candidates button")
    box()
    page.press("Enter")
    while not held:
        page.page.wait_for_timeout(10)
    held.pop().abort()
    page.until("document.querySelector('#toast').textContent.includes('Not saved')")
    assert page.area == painted
    page.press("Enter")
    assert rle_area(last().segmentation) == painted
    page.context.close()


def test_finished_images_that_are_looked_at_stay_done_until_something_changes(project, browser):
    store, address = project
    page = Annotating(browser, address, "Bob")
    for i in range(6):
        page.shows(f"{i}.png")
        page.press("d")
        page.drag((20, 20), (40, 20 + i))
        page.press("Enter", "s" if i == 4 else "n")
    page.shows("6.png")

    def strip():
        script = "[...document.querySelectorAll('#strip button')].map(b => b.dataset.name[0] + b.dataset.state[0])"
        return page.page.evaluate(script)

    everything = ["0d", "1d", "2d", "3d", "4s", "5d", "6o", "7f"]
    page.until("document.querySelectorAll('#strip button').length === 8")
    assert strip() == everything
    for i in (5, 4, 3, 2, 1):
        page.press("p")
        page.shows(f"{i}.png")
        assert page.page.is_visible("#looking")
        assert page.page.locator("#saved li").count() == 1
    assert [image.name[0] for image in store.images("done")] == list("01235")
    page.press("n")
    page.shows("6.png")
    assert strip() == everything
    page.page.click("#strip button[data-name='2.png']")
    page.shows("2.png")
    assert page.page.is_disabled("#skip")
    page.press("d")
    page.drag((60, 40), (70, 40))
    assert [image.name[0] for image in store.images("open")] == ["6"]
    page.press("Enter")
    page.saved()
    assert [image.name[0] for image in store.images("open")] == ["2", "6"]
    assert page.page.is_hidden("#looking")
    assert page.page.get_attribute("#strip button[data-name='2.png']", "data-state") == "open"
    page.press("n")
    page.shows("6.png")
    assert [image.name[0] for image in store.images("done")] == list("01235")
    assert len(store.masks(3)) == 2
    page.page.click("#strip button[data-name='4.png']")
    page.shows("4.png")
    page.press("n")  # now it is done
    page.shows("6.png")
    assert [image.name[0] for image in store.images("done")] == list("012345")
    assert page.problems == []
    page.context.close()


def test_classes_have_number_keys_and_are_the_categories_of_exports(project, browser):
    store, address = project
    page = Annotating(browser, address, "Cyd")
    page.page.click("#classes .change")
    page.page.fill("#classes textarea", "dog\n cat \n\ndog")
    page.page.click("#classes dialog button[value=save]")
    page.until("document.querySelector('#classes dialog [role=alert]').textContent.includes('each class once')")
    assert "409" in page.problems.pop()  # the browser's log
    page.page.fill("#classes textarea", "dog\n cat \n\nbird")
    page.page.click("#classes dialog button[value=save]")
    page.until("document.querySelectorAll('#classes li').length === 3")
    assert store.classes == ["dog", "cat", "bird"]
    page.press("d", "2")
    for x in (20, 40):  # the class stays for the next one
        page.drag((x, 20), (x + 5, 20))
        page.press("Enter")
    page.drag((60, 20), (65, 20))
    page.page.click("#classes li:nth-child(3) button")
    page.press("Enter", "3", "9")
    page.drag((60, 50), (65, 50))
    page.press("Enter")
    page.saved()
    assert [mask.name for mask in store.masks(page.image)] == ["cat", "cat", "bird", None]
    answer = page.page.request.get(f"{address}api/export.json")
    exported = json.loads(answer.body())
    assert [category["name"] for category in exported["categories"]] == ["dog", "cat", "bird", "object"]
    page.page.reload()
    page.ready()
    assert page.page.locator("#classes li").count() == 3
    page.press("c")
    page.click(40, 30)
    page.answered()
    before = page.page.evaluate("document.querySelector('#candidates [aria-checked=true]').dataset.choice")
    page.press(".")
    assert page.page.evaluate("document.querySelector('#candidates [aria-checked=true]').dataset.choice") != before
    page.press(",")
    assert page.page.evaluate("document.querySelector('#candidates [aria-checked=true]').dataset.choice") == before
    assert page.problems == []
    page.context.close()


def test_points_are_placed_and_removed_by_keyboard(project, browser):
    store, address = project
    page = Annotating(browser, address, "Dan")
    page.press("ArrowRight", "i")  # the cross begins in the middle
    page.answered()
    area = page.area
    assert "Point in the object at 40, " in page.page.inner_text("#said")
    page.press(*["ArrowLeft"] * 12, *["ArrowUp"] * 12, "Shift+ArrowUp", "o")
    page.until("document.querySelector('#candidates [aria-checked=true]')?.dataset.choice === '0'")
    assert "2 points" in page.page.inner_text("#said")
    page.press("Backspace")
    page.until(f"Number(document.body.dataset.area) === {area}")
    page.press("o", "Enter")
    page.until("document.querySelectorAll('#saved li').length === 1")
    page.saved()
    (mask,) = store.masks(page.image)
    assert [(p["type"], p["label"]) for p in mask.prompts] == [("point", 1), ("point", 0)]
    assert (mask.prompts[0]["x"], mask.prompts[0]["y"]) == pytest.approx((40, 30), abs=0.5)
    assert 0 < mask.prompts[1]["x"] < 39
    page.press("i", "Backspace", "Backspace")
    page.until("Number(document.body.dataset.area) === 0")
    # Whatever can be pressed has a name.
    script = """[...document.querySelectorAll("button, input, textarea, canvas, [role=radio]")].filter(element =>
      element.checkVisibility() &&
      !(element.ariaLabel || element.title || element.textContent.trim() || element.closest("label"))
    ).map(element => element.outerHTML)"""
    assert page.page.evaluate(script) == []
    assert page.problems == []
    page.context.close()


@pytest.mark.parametrize("size", [(420, 740), (600, 800), (760, 900), (1000, 600), (1400, 900)])
def test_the_page_fits_its_window(project, browser, size):
    _, address = project
    page = Annotating(browser, address, "Eve", size)
    width, height = size
    canvas = page.page.locator("#canvas").bounding_box()
    assert canvas["width"] >= (width if width <= 760 else 0.5 * width)
    assert canvas["height"] >= 0.38 * height
    page.click(40, 30)
    page.answered()
    page.press("Enter")
    page.saved()
    for button in ("#next", "#save", "#undo"):
        box = page.page.locator(button).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert page.page.locator("#next").bounding_box()["y"] < height - 20
    overflow = (
        "document.documentElement.scrollWidth > innerWidth || document.documentElement.scrollHeight > innerHeight"
    )
    assert not page.page.evaluate(overflow)
    page.press("?")
    dialog = page.page.locator("#keys")
    box = dialog.bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    assert 0 <= box["y"] <= box["y"] + box["height"] <= height
    assert not page.page.evaluate(
        "document.querySelector('#keys').scrollWidth > document.querySelector('#keys').clientWidth"
    )
    page.page.click("#keys button")
    assert page.problems == []
    page.context.close()
