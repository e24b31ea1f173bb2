"""The rating page in a real browser: read the guidelines, rate by keys and buttons, go back, reload, finish."""

import json

import pytest

from cases.app import start, wait_until
from cases.rating import make_study, write_data
from sam_jax.evals.rating.study import Study


@pytest.fixture(scope="module")
def study(browser, tmp_path_factory):
    """A study of 12 masks, and its address while it is served."""
    study = make_study(write_data(tmp_path_factory.mktemp("rating")))
    process, address = start("rate", "serve", str(study.folder), "--port", "0")
    yield study, address
    process.kill()
    process.wait()


class Rater:
    """The page as somebody uses it."""

    def __init__(self, browser, address, name, width=1280, height=800):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.problems = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        self.page.goto(address)
        self.page.fill("#rater", name)
        self.page.keyboard.press("Enter")
        self.ready()

    def ready(self):
        """The views are there, and it is not too soon for a key."""
        wait_until(self.page, "document.body.dataset.ready === 'true'")
        self.page.wait_for_timeout(320)

    def rate(self, rating, by="keys"):
        before = self.page.inner_text("#title")
        if by == "keys":
            self.page.keyboard.press(str(rating % 10))
        else:
            self.page.click(f"#scale button:text-is('{rating}')")
        wait_until(self.page, f"document.querySelector('#title').textContent !== {json.dumps(before)}")
        self.ready()

    @property
    def title(self):
        return self.page.inner_text("#title")


def fits(page):
    """Nothing has to be scrolled to, and every view is on the page."""
    return page.evaluate("""[document.documentElement, ...document.querySelectorAll("main, aside, dialog[open]")].every(
      part => part.scrollHeight <= part.clientHeight && part.scrollWidth <= part.clientWidth) &&
      [...document.querySelectorAll("main img, aside button")].every(part => {
        const {left, top, right, bottom, width, height} = part.getBoundingClientRect();
        return width > 20 && height > 20 && left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight;
      })""")


def test_rate_by_keys_and_buttons_reload_go_back_and_finish(study, browser):
    study, address = study
    rater = Rater(browser, address, "Ada")
    page = rater.page
    assert rater.title == "0 of 12 masks rated"
    given = [1, 10, 3, 8, 5, 6, 7, 2, 9, 4, 10]
    for rating in given[:3]:
        rater.rate(rating)
    for rating in given[3:6]:
        rater.rate(rating, by="buttons")
    assert {job: r.rating for job, r in Study(study.folder).ratings.items()} == dict(enumerate(given[:6]))

    shown = page.get_attribute("#view-mask", "src")
    page.reload()
    rater.ready()
    assert (rater.title, page.get_attribute("#view-mask", "src")) == ("6 of 12 masks rated", shown)
    rater.rate(given[6])

    page.keyboard.press("ArrowLeft")
    wait_until(page, "document.querySelector('#title').textContent === 'Mask 7: you gave 7'")
    page.click("#back")
    wait_until(page, "document.querySelector('#title').textContent === 'Mask 6: you gave 6'")
    rater.ready()
    assert page.inner_text("#scale [aria-pressed=true]") == "6"
    page.keyboard.press("5")
    wait_until(page, "document.querySelector('#title').textContent === '7 of 12 masks rated'")
    rater.ready()

    page.keyboard.type("10")  # the 0 comes before anybody has seen the next mask
    rater.ready()
    assert rater.title == "8 of 12 masks rated"
    page.keyboard.press("ArrowLeft")
    wait_until(page, "document.querySelector('#title').textContent === 'Mask 8: you gave 1'")
    rater.ready()
    page.keyboard.press("2")
    wait_until(page, "document.querySelector('#title').textContent === '8 of 12 masks rated'")
    rater.ready()
    for rating in given[8:]:
        rater.rate(rating)
    page.keyboard.press("7")
    wait_until(page, "document.querySelector('#title').textContent.startsWith('All masks are rated')")

    given = [*given[:5], 5, *given[6:], 7]
    ratings = Study(study.folder).ratings
    assert {job: (r.rating, r.rater) for job, r in ratings.items()} == {i: (r, "Ada") for i, r in enumerate(given)}
    assert all(rating.seconds >= 0.3 for rating in ratings.values())
    lines = (study.folder / "ratings.jsonl").read_text().splitlines()
    assert len(lines) == 12 + 2  # every mask was asked for once, and two ratings were changed
    assert rater.problems == []
    rater.context.close()


def test_everything_fits_views_can_be_enlarged_and_what_is_not_saved_is_said(browser, tmp_path):
    study = make_study(write_data(tmp_path))
    process, address = start("rate", "serve", str(study.folder), "--port", "0")
    raters = []
    try:
        for size in ((1280, 800), (800, 600)):
            rater = Rater(browser, address, f"Of {size[0]}", *size)
            raters.append(rater)
            page = rater.page
            assert fits(page)
            page.keyboard.press("?")
            assert fits(page)
            page.keyboard.press("5")  # goes to the name, and rates nothing
            page.keyboard.press("Escape")
            small = page.locator("#view-zoom_overlay").bounding_box()
            page.click("#view-zoom_overlay")
            large = page.locator("#view-zoom_overlay").bounding_box()
            assert large["width"] * large["height"] > 2 * small["width"] * small["height"]
            page.keyboard.press("Escape")
            assert fits(page)
    finally:
        process.kill()
        process.wait()
    shown = [rater.page.get_attribute("#view-mask", "src") for rater in raters]
    assert shown == ["/api/jobs/0/mask.png", "/api/jobs/1/mask.png"]  # each has an own mask
    page.keyboard.press("5")
    wait_until(page, "document.querySelector('#message').textContent.startsWith('Not saved: no connection')")
    assert rater.title == "0 of 12 masks rated"
    assert not Study(study.folder).ratings
    for rater in raters:
        rater.context.close()
