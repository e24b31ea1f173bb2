// Tools on the canvas: clicks, boxes, strokes, moving and zooming.

const STILL = 5;  // screen pixels that a click may wander

export class Pointer {
  /** @param allowed () => whether there is an image to work on
   *  @param say tells those who do not see the canvas */
  constructor(view, edit, sizePanel, allowed, say) {
    Object.assign(this, {view, edit, sizePanel, allowed, say});
    this.tool = "click";
    this.held = false;     // Space
    this.action = null;    // what the pressed button does
    this.size = 24;        // of the brush, pixels of the image
    this.range = sizePanel.querySelector("input");
    const canvas = view.canvas;
    canvas.addEventListener("pointerdown", event => this.down(event));
    canvas.addEventListener("pointermove", event => this.moved(event));
    canvas.addEventListener("pointerup", event => this.up(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("pointerleave", () => { view.cursor = null; view.redraw(); });
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      view.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), event.offsetX, event.offsetY);
    }, {passive: false});
    this.range.addEventListener("input", () => { this.size = Number(this.range.value); this.showSize(); });
    this.showSize();
  }

  use(tool) {
    this.tool = tool;
    this.showTool();
  }

  holdPan(held) {
    this.held = held;
    this.showTool();
  }

  resize(factor) {
    this.size = Math.min(120, Math.max(1, Math.round(this.size * factor) + (factor > 1 && this.size < 4 ? 1 : 0)));
    this.showSize();
    if (this.view.cursor) { this.view.cursor.size = this.size; this.view.redraw(); }
  }

  showSize() {
    this.range.value = this.size;
    this.sizePanel.querySelector("output").textContent = `${this.size} px`;
  }

  showTool() {
    const tool = this.held ? "pan" : this.tool;
    this.view.canvas.dataset.tool = tool;
    for (const button of document.querySelectorAll("nav [data-tool]")) {
      button.setAttribute("aria-checked", button.dataset.tool === tool);
    }
    this.sizePanel.hidden = tool !== "brush" && tool !== "eraser";
    this.view.cursor = null;
    this.view.redraw();
  }

  down(event) {
    document.activeElement?.blur?.();
    const pan = this.held || this.tool === "pan" || event.button === 1;
    if (this.action || event.button > 2 || !(pan || this.allowed())) return;
    event.preventDefault();
    this.view.canvas.setPointerCapture(event.pointerId);
    const at = this.view.toPicture(event.offsetX, event.offsetY);
    const minus = event.button === 2 || event.altKey;
    const start = {x: event.offsetX, y: event.offsetY, at, minus};
    if (pan) this.action = {kind: "pan", ...start};
    else if (this.tool === "click" || this.tool === "box") this.action = {kind: "prompt", ...start, moved: false};
    else {
      const label = this.tool === "brush" && !minus ? 1 : 0;
      const stroke = {type: "brush", label, size: this.size, path: [at.map(round)]};
      this.action = {kind: "stroke", stroke};
      this.edit.beginStroke(stroke);
      this.paint(0);
    }
  }

  moved(event) {
    const {view, action} = this, at = view.toPicture(event.offsetX, event.offsetY);
    if (view.canvas.dataset.tool === "brush" || view.canvas.dataset.tool === "eraser") {
      const erase = action?.kind === "stroke" ? !action.stroke.label : this.tool === "eraser" || event.altKey;
      view.cursor = {x: at[0], y: at[1], size: this.size, erase};
      view.redraw();
    }
    if (action?.kind === "pan") {
      view.pan(event.offsetX - action.x, event.offsetY - action.y);
      action.x = event.offsetX;
      action.y = event.offsetY;
    } else if (action?.kind === "prompt") {
      action.moved ||= Math.hypot(event.offsetX - action.x, event.offsetY - action.y) > STILL;
      if (action.moved && !action.minus) {
        view.drag = this.boxTo(at);
        view.redraw();
      }
    } else if (action?.kind === "stroke") {
      const {path} = action.stroke, last = path.at(-1), next = at.map(round);
      // Points nearer than a fraction of the brush add nothing to see.
      if (path.length < 4096 && Math.hypot(next[0] - last[0], next[1] - last[1]) >= Math.max(0.5, this.size / 12)) {
        path.push(next);
        this.paint(path.length - 1);
      }
    }
  }

  up(event) {
    const {view, edit, action} = this;
    this.action = null;
    view.drag = null;
    if (action?.kind === "stroke") {
      edit.endStroke();
    } else if (action?.kind === "prompt") {
      const at = view.toPicture(event.offsetX, event.offsetY);
      this.action = action;
      const box = action.moved && !action.minus ? this.boxTo(at) : null;
      this.action = null;
      if (box) {
        if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) edit.boxed(box);
      } else if (view.inside(action.at)) {
        edit.point(...action.at.map(round), action.minus ? 0 : 1);
      }
    }
    view.redraw();
  }

  cancel() {
    if (this.action?.kind === "stroke") this.edit.endStroke();
    this.action = this.view.drag = null;
    this.view.redraw();
  }

  /** Moves the cross of the keyboard by screen pixels; it begins in the middle of what is seen of the image. */
  nudge(dx, dy) {
    const {view} = this;
    if (!view.picture) return;
    const {naturalWidth: W, naturalHeight: H} = view.picture;
    const {clientWidth, clientHeight} = view.canvas, clip = (value, end) => Math.min(end - 0.5, Math.max(0.5, value));
    const [x, y] = view.cross ? [view.cross[0] + dx / view.scale, view.cross[1] + dy / view.scale]
      : view.toPicture(clientWidth / 2, clientHeight / 2);
    view.cross = [clip(x, W), clip(y, H)];
    view.redraw();
  }

  /** Adds a point at the cross. */
  place(label) {
    if (!this.allowed()) return;
    if (!this.view.cross) this.nudge(0, 0);
    const [x, y] = this.view.cross.map(round);
    this.edit.point(x, y, label);
    this.say(`Point ${label ? "in" : "not in"} the object at ${x}, ${y}. ${this.edit.state.points.length} points.`);
  }

  /** Removes the point nearest to the cross; the last one if there is no cross. */
  removePoint() {
    const {points} = this.edit.state, {cross} = this.view;
    if (!points.length || !this.allowed()) return;
    const distance = ({x, y}) => Math.hypot(x - cross[0], y - cross[1]);
    const point = cross ? points.reduce((a, b) => distance(b) <= distance(a) ? b : a) : points.at(-1);
    this.edit.removePoint(point);
    this.say(`Point at ${point.x}, ${point.y} removed. ${this.edit.state.points.length} points.`);
  }

  paint(from) {
    if (!this.edit.live) return;  // the mask was saved or dropped meanwhile
    this.view.paintPart(...this.edit.extendStroke(from));
  }

  /** From where the button was pressed to a place, cut to the image. */
  boxTo([x, y]) {
    const {naturalWidth: W, naturalHeight: H} = this.view.picture, [a, b] = this.action.at;
    const clip = (value, end) => round(Math.min(end, Math.max(0, value)));
    return [clip(Math.min(a, x), W), clip(Math.min(b, y), H), clip(Math.max(a, x), W), clip(Math.max(b, y), H)];
  }
}

// Down: a click in the last pixel stays in the image.
const round = value => Math.floor(value * 10) / 10;
