// The canvas: image, saved masks, the mask in work, prompts; zoom and pan.

const CURRENT = [47, 140, 255, 115];
const GREEN = "#2ecc71", RED = "#ff4d4f";
const SHOWN = ["mask", "outline", "number", "strong", "dashed"];
const OUTLINED = 200_000;  // pixels; outlines of larger masks in thumbnails are not worth the time
const LARGEST = 40;  // screen pixels per pixel of the image

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.picture = null;
    this.saved = [];       // {mask, outline, number, colour, strong, dashed}
    this.current = null;   // {mask, outline}
    this.points = [];
    this.box = null;
    this.drag = null;      // a box that is being drawn
    this.cross = null;     // [x, y]: where the keyboard is
    this.cursor = null;    // {x, y, size, erase}: the brush
    this.showMasks = true;
    this.scale = 1;
    this.left = this.top = 0;
    this.dirty = false;
    new ResizeObserver(() => { this.resize(); }).observe(canvas);
  }

  setPicture(image) {
    this.picture = image;
    [this.savedLayer, this.currentLayer] = [0, 1].map(() => {
      const layer = document.createElement("canvas");
      layer.width = image.naturalWidth;
      layer.height = image.naturalHeight;
      return layer;
    });
    this.saved = [];
    this.setCurrent(null);
    this.fit();
  }

  clear() {
    this.picture = this.cross = null;
    this.redraw();
  }

  resize() {
    const {clientWidth: w, clientHeight: h} = this.canvas, ratio = devicePixelRatio || 1;
    const untouched = this.fitted;
    this.canvas.width = Math.round(w * ratio);
    this.canvas.height = Math.round(h * ratio);
    if (untouched) this.fit(); else this.redraw();
  }

  fit() {
    if (!this.picture) return;
    const {clientWidth: w, clientHeight: h} = this.canvas, {naturalWidth: W, naturalHeight: H} = this.picture;
    const margin = w < 600 ? 6 : 24;
    this.scale = Math.min(LARGEST, Math.max(0.01, Math.min((w - 2 * margin) / W, (h - 2 * margin) / H)));
    this.left = (w - W * this.scale) / 2;
    this.top = (h - H * this.scale) / 2;
    this.fitted = true;
    this.redraw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(LARGEST, Math.max(0.02, this.scale * factor)), change = scale / this.scale;
    this.left = x - (x - this.left) * change;
    this.top = y - (y - this.top) * change;
    this.scale = scale;
    this.fitted = false;
    this.redraw();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.fitted = false;
    this.redraw();
  }

  /** Pixels of the image under a place on the canvas, with fractions. */
  toPicture(x, y) {
    return [(x - this.left) / this.scale, (y - this.top) / this.scale];
  }

  inside([x, y]) {
    return this.picture !== null && x >= 0 && y >= 0 && x < this.picture.naturalWidth && y < this.picture.naturalHeight;
  }

  setSaved(masks) {
    const same = masks.length === this.saved.length && masks.every((item, i) => SHOWN.every(field => item[field] === this.saved[i][field]));
    if (same || !this.picture) return;
    this.saved = masks;
    const {width, height} = this.savedLayer, image = new ImageData(width, height);
    // Large ones first, so that parts lie on what they are part of.
    for (const {mask, colour, strong, dashed} of [...masks].sort((a, b) => b.mask.area - a.mask.area)) {
      mask.paint(image, [...colour, strong ? 190 : dashed ? 60 : 105]);
    }
    this.savedLayer.getContext("2d").putImageData(image, 0, 0);
    this.redraw();
  }

  setCurrent(mask) {
    if (mask === this.current?.mask && !this.current?.partly) return;
    this.current = mask && mask.box ? {mask, outline: mask.outline()} : null;
    if (this.picture) {
      const context = this.currentLayer.getContext("2d");
      context.clearRect(0, 0, this.currentLayer.width, this.currentLayer.height);
      if (this.current) context.putImageData(mask.toImage(CURRENT), mask.box[0], mask.box[1]);
    }
    this.redraw();
  }

  /** A stroke is under way: the mask has changed in a box. Its outline waits for the end. */
  paintPart(mask, box) {
    this.current = {mask, outline: new Path2D(), partly: true};
    if (box) this.currentLayer.getContext("2d").putImageData(mask.toImage(CURRENT, box), box[0], box[1]);
    this.redraw();
  }

  redraw() {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => { this.dirty = false; this.draw(); });
  }

  draw() {
    const c = this.context, ratio = devicePixelRatio || 1, unit = 1 / this.scale;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.picture) return;
    c.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.left, ratio * this.top);
    c.imageSmoothingEnabled = this.scale < 3;
    c.imageSmoothingQuality = "high";
    c.drawImage(this.picture, 0, 0);
    c.imageSmoothingEnabled = false;
    if (this.showMasks) {
      c.drawImage(this.savedLayer, 0, 0);
      for (const {outline, colour, strong, dashed} of this.saved) {
        c.setLineDash(dashed ? [5 * unit, 4 * unit] : []);
        line(c, outline, "rgba(0,0,0,.45)", (strong ? 4 : 3) * unit);
        line(c, outline, `rgb(${colour.join()})`, (strong ? 2.5 : 1.5) * unit);
      }
      c.setLineDash([]);
      if (this.current) {
        c.drawImage(this.currentLayer, 0, 0);
        line(c, this.current.outline, "rgba(0,20,60,.6)", 3.5 * unit);
        line(c, this.current.outline, "#fff", 1.5 * unit);
      }
    }
    for (const box of [this.box, this.drag]) {
      if (!box) continue;
      const frame = new Path2D();
      frame.rect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
      line(c, frame, "rgba(0,0,0,.5)", 4 * unit);
      c.setLineDash(box === this.drag ? [6 * unit, 4 * unit] : []);
      line(c, frame, GREEN, 2 * unit);
      c.setLineDash([]);
    }
    for (const {x, y, label} of this.points) {
      const dot = new Path2D();
      dot.arc(x, y, 6.5 * unit, 0, 7);
      c.fillStyle = label ? GREEN : RED;
      c.shadowColor = "rgba(0,0,0,.6)";
      c.shadowBlur = 6;
      c.fill(dot);
      c.shadowBlur = 0;
      line(c, dot, "#fff", 2 * unit);
      const sign = new Path2D();
      sign.moveTo(x - 3 * unit, y);
      sign.lineTo(x + 3 * unit, y);
      if (label) { sign.moveTo(x, y - 3 * unit); sign.lineTo(x, y + 3 * unit); }
      line(c, sign, "#fff", 1.6 * unit);
    }
    if (this.cross) {
      const sign = new Path2D(), [x, y] = this.cross, near = 4 * unit, far = 13 * unit;
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        sign.moveTo(x + near * dx, y + near * dy);
        sign.lineTo(x + far * dx, y + far * dy);
      }
      line(c, sign, "rgba(0,0,0,.7)", 4 * unit);
      line(c, sign, "#fff", 2 * unit);
    }
    if (this.cursor) {
      const ring = new Path2D();
      ring.arc(this.cursor.x, this.cursor.y, this.cursor.size / 2, 0, 7);
      line(c, ring, "rgba(0,0,0,.6)", 3 * unit);
      line(c, ring, this.cursor.erase ? RED : "#fff", 1.5 * unit);
    }
  }

  /** A thumbnail of a mask with what is around it. */
  thumbnail(mask, width, height) {
    const canvas = document.createElement("canvas"), ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const c = canvas.getContext("2d");
    if (!mask.box) return canvas;
    const [x0, y0, x1, y1] = mask.box, pad = 0.15 * Math.max(x1 - x0, y1 - y0) + 4;
    const scale = Math.min(canvas.width / (x1 - x0 + 2 * pad), canvas.height / (y1 - y0 + 2 * pad));
    c.setTransform(scale, 0, 0, scale, canvas.width / 2 - scale * (x0 + x1) / 2, canvas.height / 2 - scale * (y0 + y1) / 2);
    c.filter = "brightness(.75)";
    c.drawImage(this.picture, 0, 0);
    c.filter = "none";
    const layer = document.createElement("canvas");
    layer.width = x1 - x0;
    layer.height = y1 - y0;
    layer.getContext("2d").putImageData(mask.toImage([...CURRENT.slice(0, 3), 160]), 0, 0);
    c.drawImage(layer, x0, y0);
    if (mask.area < OUTLINED) line(c, mask.outline(), "#fff", 1.5 * ratio / scale);
    return canvas;
  }
}

function line(context, path, style, width) {
  context.strokeStyle = style;
  context.lineWidth = width;
  context.stroke(path);
}
