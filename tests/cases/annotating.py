"""A person at the annotation page, for tests in a browser."""

from cases.app import SIZE, wait_until


class Annotating:
    """Drives the page as a user does, with positions in pixels of the image."""

    def __init__(self, browser, address, annotator, size=(1200, 700)):
        viewport = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=viewport, accept_downloads=True)
        self.page = self.context.new_page()
        self.problems = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        self.page.on("dialog", self._dialog)
        self.page.goto(address)
        self.page.fill("#annotator", annotator)
        self.page.click("#welcome button")
        self.ready()

    def _dialog(self, dialog):
        if dialog.type != "beforeunload":
            self.problems.append(f"a dialog: {dialog.message}")
        dialog.accept()

    def ready(self):
        self.page.wait_for_selector("body[data-ready=true]", timeout=60_000)
        box = self.page.locator("#canvas").bounding_box()
        H, W = SIZE
        margin = 6 if box["width"] < 600 else 24
        scale = min((box["width"] - 2 * margin) / W, (box["height"] - 2 * margin) / H)
        left, top = box["x"] + (box["width"] - W * scale) / 2, box["y"] + (box["height"] - H * scale) / 2
        self.place = lambda x, y: (left + x * scale, top + y * scale)

    def click(self, x, y, button="left"):
        self.page.mouse.click(*self.place(x, y), button=button)

    def drag(self, *points, button="left"):
        self.page.mouse.move(*self.place(*points[0]))
        self.page.mouse.down(button=button)
        for point in points[1:]:
            self.page.mouse.move(*self.place(*point))
        self.page.mouse.up(button=button)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    @property
    def area(self):
        return int(self.page.evaluate("document.body.dataset.area"))

    def until(self, expression):
        wait_until(self.page, expression)

    def answered(self):
        self.until("document.querySelectorAll('#candidates button').length === 4 && Number(document.body.dataset.area)")

    def shows(self, name):
        """Waits until an image is shown."""
        self.until(f"document.querySelector('#picture-name').textContent === '{name}'")
        self.ready()

    @property
    def image(self):
        """The id of the image that is shown."""
        return int(self.page.evaluate("document.querySelector('#export').href.match(/pictures\\/(\\d+)/)[1]"))

    def hold(self, pattern="**/predict?*"):
        """Returns a list of requests that are held back from now on, to be let through or aborted."""
        held = []
        self.context.route(pattern, lambda route: held.append(route))
        return held

    def release(self, held, count=1):
        """Lets the next requests through, each once it has come."""
        for _ in range(count):
            while not held:
                self.page.wait_for_timeout(10)
            held.pop(0).continue_()

    def saved(self):
        self.until("document.querySelector('#connection').dataset.state === 'ok'")

    def colour(self, x, y):
        """Returns the colour of the canvas at a position."""
        x, y = self.place(x, y)
        script = """([x, y]) => {
          const canvas = document.getElementById("canvas"), box = canvas.getBoundingClientRect();
          return [...canvas.getContext("2d").getImageData(x - box.x, y - box.y, 1, 1).data];
        }"""
        return self.page.evaluate(script, [x, y])
