// Masks as bytes, row by row, and as COCO's compressed run lengths, which go column by column, background first.

/** Run lengths of a compressed string: five bits a character, the sixth says that more follow; differences from the
 *  fourth number on. */
export function decodeCounts(text) {
  const counts = [];
  for (let at = 0; at < text.length;) {
    let value = 0, place = 0, more = true;
    while (more) {
      const bits = text.charCodeAt(at++) - 48;
      value += (bits & 0x1f) * 2 ** (5 * place++);
      more = (bits & 0x20) !== 0;
      if (!more && bits & 0x10) value -= 2 ** (5 * place);
    }
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

export function encodeCounts(counts) {
  let text = "";
  counts.forEach((count, i) => {
    let value = i > 2 ? count - counts[i - 2] : count;
    for (let more = true; more;) {
      let bits = value & 0x1f;
      value >>= 5;
      more = bits & 0x10 ? value !== -1 : value !== 0;
      text += String.fromCharCode((more ? bits | 0x20 : bits) + 48);
    }
  });
  return text;
}

/** {width, height, data, box, area}: data has a byte per pixel, box is [x0, y0, x1, y1] with the ends left out. */
export class Mask {
  constructor(width, height, data = new Uint8Array(width * height)) {
    this.width = width;
    this.height = height;
    this.data = data;
    this.box = null;
    this.area = 0;
  }

  static fromRle({size: [height, width], counts}) {
    const mask = new Mask(width, height);
    let at = 0;
    decodeCounts(counts).forEach((count, i) => {
      if (i % 2) {
        for (let p = at; p < at + count; p++) mask.data[(p % height) * width + Math.floor(p / height)] = 1;
      }
      at += count;
    });
    return mask.measure();
  }

  toRle() {
    const {width, height, data} = this, counts = [];
    let last = 0, run = 0;
    for (let x = 0; x < width; x++) {
      for (let y = 0, p = x; y < height; y++, p += width) {
        if (data[p] === last) run++;
        else { counts.push(run); run = 1; last = data[p]; }
      }
    }
    counts.push(run);
    return {size: [height, width], counts: encodeCounts(counts)};
  }

  copy() {
    const mask = new Mask(this.width, this.height, this.data.slice());
    mask.box = this.box;
    mask.area = this.area;
    return mask;
  }

  measure() {
    const {width, height, data} = this;
    let x0 = width, y0 = height, x1 = 0, y1 = 0, area = 0;
    for (let y = 0, p = 0; y < height; y++) {
      for (let x = 0; x < width; x++, p++) {
        if (!data[p]) continue;
        area++;
        if (x < x0) x0 = x;
        if (x >= x1) x1 = x + 1;
        if (y < y0) y0 = y;
        y1 = y + 1;
      }
    }
    this.area = area;
    this.box = area ? [x0, y0, x1, y1] : null;
    return this;
  }

  /** Paints or erases along a stroke, {label, size, path}, from point `from` of its path on. */
  stroke({label, size, path}, from = 0) {
    const {width, height, data} = this, r = size / 2, value = label;
    for (let i = from; i < path.length; i++) {
      const [ax, ay] = path[Math.max(0, i - 1)], [bx, by] = path[i];
      const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
      const top = Math.max(0, Math.floor(Math.min(ay, by) - r)), bottom = Math.min(height - 1, Math.ceil(Math.max(ay, by) + r));
      const left = Math.max(0, Math.floor(Math.min(ax, bx) - r)), right = Math.min(width - 1, Math.ceil(Math.max(ax, bx) + r));
      for (let y = top; y <= bottom; y++) {
        for (let x = left; x <= right; x++) {
          const px = x + 0.5 - ax, py = y + 0.5 - ay;
          const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
          if ((px - t * dx) ** 2 + (py - t * dy) ** 2 <= r * r) data[y * width + x] = value;
        }
      }
      // A brush smaller than a pixel still paints the pixel that it is in.
      const x = Math.floor(bx), y = Math.floor(by);
      if (x >= 0 && y >= 0 && x < width && y < height) data[y * width + x] = value;
    }
    return this;
  }

  /** The border between mask and rest, along the sides of pixels. */
  outline() {
    const path = new Path2D();
    if (!this.box) return path;
    const {width, height, data, box: [x0, y0, x1, y1]} = this;
    const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height ? data[y * width + x] : 0;
    for (let y = y0; y <= y1; y++) {
      for (let x = x0, start = -1; x <= x1; x++) {
        const edge = x < x1 && at(x, y) !== at(x, y - 1);
        if (edge && start < 0) start = x;
        if (!edge && start >= 0) { path.moveTo(start, y); path.lineTo(x, y); start = -1; }
      }
    }
    for (let x = x0; x <= x1; x++) {
      for (let y = y0, start = -1; y <= y1; y++) {
        const edge = y < y1 && at(x, y) !== at(x - 1, y);
        if (edge && start < 0) start = y;
        if (!edge && start >= 0) { path.moveTo(x, start); path.lineTo(x, y); start = -1; }
      }
    }
    return path;
  }

  /** Colours the mask's pixels in a picture of the same size; [r, g, b, a], 0-255. */
  paint(image, [r, g, b, a]) {
    if (!this.box) return;
    const pixels = image.data, {width, data, box: [x0, y0, x1, y1]} = this;
    for (let y = y0; y < y1; y++) {
      for (let x = x0, p = y * width + x0; x < x1; x++, p++) {
        if (data[p]) { pixels[4 * p] = r; pixels[4 * p + 1] = g; pixels[4 * p + 2] = b; pixels[4 * p + 3] = a; }
      }
    }
  }
}
