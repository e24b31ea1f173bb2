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
    const mask = new Mask(width, height), {data} = mask;
    let at = 0, x0 = width, y0 = height, x1 = 0, y1 = 0;
    decodeCounts(counts).forEach((count, i) => {
      const end = at + count;
      while (i % 2 && at < end) {  // column by column
        const x = Math.floor(at / height), y = at - x * height, stop = Math.min(height, y + end - at);
        for (let row = y, p = y * width + x; row < stop; row++, p += width) data[p] = 1;
        mask.area += stop - y;
        at += stop - y;
        x0 = Math.min(x0, x);
        x1 = x + 1;
        y0 = Math.min(y0, y);
        y1 = Math.max(y1, stop);
      }
      at = end;
    });
    if (mask.area) mask.box = [x0, y0, x1, y1];
    return mask;
  }

  toRle() {
    const {width, height, data} = this, [x0, y0, x1, y1] = this.box ?? [0, 0, 0, 0], counts = [];
    let last = 0, run = x0 * height;
    for (let x = x0; x < x1; x++) {
      const add = (value, length) => {
        if (value === last) run += length;
        else { counts.push(run); run = length; last = value; }
      };
      if (y0) add(0, y0);
      for (let y = y0, p = y0 * width + x; y < y1; y++, p += width) add(data[p], 1);
      if (y1 < height) add(0, height - y1);
    }
    const rest = (width - x1) * height;
    if (rest && last) { counts.push(run); run = 0; }
    counts.push(run + rest);
    return {size: [height, width], counts: encodeCounts(counts)};
  }

  copy() {
    const mask = new Mask(this.width, this.height, this.data.slice());
    mask.box = this.box;
    mask.area = this.area;
    return mask;
  }

  /** Makes box and area exact; outside of the box there is nothing. */
  measure() {
    const {width, data} = this, [left, top, right, bottom] = this.box ?? [0, 0, 0, 0];
    let x0 = right, y0 = bottom, x1 = 0, y1 = 0, area = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left, p = y * width + left; x < right; x++, p++) {
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

  /** Paints or erases along a stroke, {label, size, path}, from point `from` of its path on. The box grows with it;
   *  `measure` makes it and the area exact. Returns the box of what was touched, or null. */
  stroke({label, size, path}, from = 0) {
    const {width, height, data} = this, r = size / 2;
    let touched = null;
    for (let i = from; i < path.length; i++) {
      const [ax, ay] = path[Math.max(0, i - 1)], [bx, by] = path[i];
      const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
      const top = Math.max(0, Math.floor(Math.min(ay, by) - r)), bottom = Math.min(height, Math.ceil(Math.max(ay, by) + r) + 1);
      const left = Math.max(0, Math.floor(Math.min(ax, bx) - r)), right = Math.min(width, Math.ceil(Math.max(ax, bx) + r) + 1);
      if (left >= right || top >= bottom) continue;
      touched = union(touched, [left, top, right, bottom]);
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          const px = x + 0.5 - ax, py = y + 0.5 - ay;
          const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
          if ((px - t * dx) ** 2 + (py - t * dy) ** 2 <= r * r) data[y * width + x] = label;
        }
      }
      // A brush smaller than a pixel still paints the pixel that it is in.
      const x = Math.floor(bx), y = Math.floor(by);
      if (x >= 0 && y >= 0 && x < width && y < height) data[y * width + x] = label;
    }
    if (label && touched) this.box = union(this.box, touched);
    return touched;
  }

  /** The border between mask and rest, along the sides of pixels. Outside of the box there is nothing to look at. */
  outline() {
    const path = new Path2D();
    if (!this.box) return path;
    const {width, data, box: [x0, y0, x1, y1]} = this;
    for (let y = y0; y <= y1; y++) {
      let start = -1;
      for (let x = x0, p = y * width + x0; x < x1; x++, p++) {
        const edge = (y < y1 ? data[p] : 0) !== (y > y0 ? data[p - width] : 0);
        if (edge === (start >= 0)) continue;
        if (edge) start = x;
        else { path.moveTo(start, y); path.lineTo(x, y); start = -1; }
      }
      if (start >= 0) { path.moveTo(start, y); path.lineTo(x1, y); }
    }
    for (let x = x0; x <= x1; x++) {
      let start = -1;
      for (let y = y0, p = y0 * width + x; y < y1; y++, p += width) {
        const edge = (x < x1 ? data[p] : 0) !== (x > x0 ? data[p - 1] : 0);
        if (edge === (start >= 0)) continue;
        if (edge) start = y;
        else { path.moveTo(x, start); path.lineTo(x, y); start = -1; }
      }
      if (start >= 0) { path.moveTo(x, start); path.lineTo(x, y1); }
    }
    return path;
  }

  /** Colours the mask's pixels within `box` in an image of its size; colour is [r, g, b, a], 0-255. */
  paint(image, [r, g, b, a], [left, top, right, bottom] = [0, 0, this.width, this.height]) {
    if (!this.box) return;
    const pixels = image.data, {width, data, box} = this;
    const x0 = Math.max(left, box[0]), y0 = Math.max(top, box[1]), x1 = Math.min(right, box[2]), y1 = Math.min(bottom, box[3]);
    for (let y = y0; y < y1; y++) {
      for (let x = x0, p = y * width + x0, q = 4 * ((y - top) * image.width + x0 - left); x < x1; x++, p++, q += 4) {
        if (data[p]) { pixels[q] = r; pixels[q + 1] = g; pixels[q + 2] = b; pixels[q + 3] = a; }
      }
    }
  }

  /** The mask in its box, or in another one, coloured. */
  toImage(colour, [x0, y0, x1, y1] = this.box) {
    const image = new ImageData(x1 - x0, y1 - y0);
    this.paint(image, colour, [x0, y0, x1, y1]);
    return image;
  }
}

function union(a, b) {
  return a ? [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])] : b;
}
