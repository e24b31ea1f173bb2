// Rows of the lists of masks. Names are text, never markup.

const SHAPES = {
  edit: "M4 20l1-4L16 5l3 3L8 19z",
  remove: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  up: "M6 14l6-6 6 6",
  down: "M6 10l6 6 6-6",
  accept: "M5 13l4 4L19 7",
  reject: "M6 6l12 12M18 6L6 18",
};
const SVG = "http://www.w3.org/2000/svg";

/** [r, g, b] of a mask: hues of consecutive ones are far apart, by the golden angle. */
export function colourOf({number}) {
  const hue = (35 + number * 137.508) % 360, [s, l] = [0.78, 0.58];
  const channel = n => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (l - s * Math.min(l, 1 - l) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

export function listMasks(parent, rows, current, actions) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
  if (focused && document.activeElement instanceof HTMLInputElement) return;  // somebody is typing a name here
  parent.replaceChildren(...rows.map((record, i) => {
    const row = document.createElement("li"), swatch = document.createElement("i");
    row.className = "mask";
    row.dataset.id = record.id;
    row.setAttribute("aria-current", record.id === current?.id);
    swatch.style.backgroundColor = `rgb(${colourOf(record).join()})`;
    row.append(swatch);
    if (record.state === "proposed") {
      const label = document.createElement("span");
      label.className = "label";
      label.textContent = record.name ?? (record.predicted_iou === null ? "proposed" : `IoU ${record.predicted_iou.toFixed(2)}`);
      row.append(label, button("accept", "Accept (A)", () => actions.accept(record), "yes"),
                 button("edit", "Edit", () => actions.edit(record)),
                 button("reject", "Reject (X)", () => actions.remove(record), "no"));
    } else {
      const name = document.createElement("input");
      name.value = record.name ?? "";
      name.placeholder = "no name";
      name.maxLength = 200;
      name.setAttribute("list", "names");
      name.setAttribute("aria-label", "name");
      name.addEventListener("change", () => actions.rename(record, name.value));
      row.append(name);
      if (i > 0) row.append(button("up", "More prominent", () => actions.move(record, -1), "more"));
      if (i < rows.length - 1) row.append(button("down", "Less prominent", () => actions.move(record, 1), "more"));
      row.append(button("edit", "Edit", () => actions.edit(record), "more"),
                 button("remove", "Delete", () => actions.remove(record), "more no"));
    }
    row.addEventListener("pointerenter", () => actions.hover(record));
    row.addEventListener("pointerleave", () => actions.hover(null));
    return row;
  }));
}

function button(shape, title, act, kind = "") {
  const element = document.createElement("button"), svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  path.setAttribute("d", SHAPES[shape]);
  svg.append(path);
  element.type = "button";
  element.title = title;
  element.setAttribute("aria-label", title);
  element.className = kind;
  element.append(svg);
  element.addEventListener("click", act);
  return element;
}
