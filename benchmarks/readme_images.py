"""Makes the README's images of masks anew: docs/demo.jpg, docs/everything.jpg and docs/annotate.jpg.

    python benchmarks/readme_images.py [--model small] [--out docs]

The first two are what `make demo` and `make demo-everything` write. The third is a screenshot of the annotation page,
after the demonstration's prompts for one photograph; it needs Chromium (named in CHROMIUM, or on the path) and
playwright.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sam_jax.commands.demo import DEMO_PROMPTS
from sam_jax.files import replacing
from sam_jax.ops.draw import tile

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHOTOGRAPH = "kingfisher.jpg"  # on the annotation page, with the demonstration's prompts
WIDTH = 1400  # of the images at most, pixels
SAM_JAX = (sys.executable, "-m", "sam_jax")


def save(image: np.ndarray, path: Path) -> None:
    smaller = Image.fromarray(image)
    smaller.thumbnail((WIDTH, 10 * WIDTH))
    with replacing(path) as temporary:
        smaller.save(temporary, "JPEG", quality=80, optimize=True, progressive=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def read(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def make_demo(model: str, folder: Path) -> np.ndarray:
    subprocess.run([*SAM_JAX, "demo", "--model", model, "--out", folder], check=True)
    return read(folder / "demo.png")


def make_everything(model: str, photographs: Path, folder: Path) -> np.ndarray:
    """Returns all photographs with all their masks, side by side."""
    options = ["--model", model, "--format", "overlay", "--out", folder]
    subprocess.run([*SAM_JAX, "everything", photographs, *options], check=True)
    return tile([[read(next(folder.rglob(f"{Path(name).stem}*.png"))) for name in DEMO_PROMPTS]])


def make_annotate(model: str, photographs: Path, folder: Path) -> np.ndarray:
    """Returns a screenshot of the annotation page."""
    from playwright.sync_api import sync_playwright

    (folder / "images").mkdir()
    shutil.copy(photographs / PHOTOGRAPH, folder / "images")
    options = ["--model", model, "--project", folder / "project", "--port", "0"]
    server = subprocess.Popen([*SAM_JAX, "annotate", folder / "images", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if "Open " not in line:
            raise RuntimeError(f"the server did not start: {line!r}")
        with sync_playwright() as playwright:
            chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
            # Chromium's sandbox cannot be used by root, which containers run as.
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(line.split("Open ")[1].split()[0])
            annotate(page, read(photographs / PHOTOGRAPH).shape[:2])
            page.screenshot(path=folder / "annotate.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()
    return read(folder / "annotate.png")


def annotate(page: Page, size: tuple[int, int]) -> None:
    page.fill("#annotator", "Ada")
    page.click("#welcome button")
    page.wait_for_selector("body[data-ready=true]", timeout=60_000)
    canvas = page.locator("#canvas").bounding_box()
    assert canvas is not None
    scale = min((canvas["width"] - 48) / size[1], (canvas["height"] - 48) / size[0])
    left = canvas["x"] + (canvas["width"] - size[1] * scale) / 2
    top = canvas["y"] + (canvas["height"] - size[0] * scale) / 2

    for i, (name, prompt) in enumerate(DEMO_PROMPTS[PHOTOGRAPH].items()):
        if i:  # the last one stays open
            page.keyboard.press("Enter")
            page.wait_for_timeout(500)
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box.tolist()
            page.keyboard.press("b")
            page.mouse.move(left + x0 * scale, top + y0 * scale)
            page.mouse.down()
            page.mouse.move(left + x1 * scale, top + y1 * scale)
            page.mouse.up()
            wait_for_masks(page)
        if prompt.points is not None:
            page.keyboard.press("c")
            for x, y in prompt.points.tolist():
                page.mouse.click(left + x * scale, top + y * scale)
            wait_for_masks(page)
        page.keyboard.press("t")
        page.keyboard.type(name)
    page.mouse.move(5, 400)
    page.wait_for_timeout(500)


def wait_for_masks(page: Page) -> None:
    """Waits for the masks; Playwright's own function needs eval in the page, which its security policy forbids."""
    page.wait_for_timeout(300)
    end = time.monotonic() + 60
    while not page.evaluate("document.querySelectorAll('#candidates button').length === 4"):
        if time.monotonic() > end:
            raise TimeoutError("the page showed no masks")
        page.wait_for_timeout(50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="name or path of a checkpoint")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    with (
        resources.as_file(resources.files("sam_jax") / "assets" / "demo" / PHOTOGRAPH) as photograph,
        tempfile.TemporaryDirectory() as name,
    ):
        folder, photographs = Path(name), photograph.parent
        save(make_demo(options.model, folder / "demo"), options.out / "demo.jpg")
        save(make_everything(options.model, photographs, folder / "everything"), options.out / "everything.jpg")
        save(make_annotate(options.model, photographs, folder), options.out / "annotate.jpg")


if __name__ == "__main__":
    main()
