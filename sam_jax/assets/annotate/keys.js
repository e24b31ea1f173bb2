// Keys, where nobody types.

const STEP = 10;  // screen pixels; one with Shift
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const REPEATED = "zy[]+-=";
const ANYWHERE = "?p";  // also without an image

/** @param ready () => whether there is an image
 *  @param actions what the page does, by key; `digit` is given a number */
export function bindKeys(pointer, ready, actions) {
  const keys = {
    c: () => pointer.use("click"), b: () => pointer.use("box"), d: () => pointer.use("brush"), e: () => pointer.use("eraser"),
    "[": () => pointer.resize(0.8), "]": () => pointer.resize(1.25),
    i: () => pointer.place(1), o: () => pointer.place(0), Backspace: () => pointer.removePoint(), Delete: () => pointer.removePoint(),
    ...actions,
  };
  for (let number = 1; number <= 9; number++) keys[number] = () => actions.digit(number);

  addEventListener("keydown", event => {
    if (document.querySelector("dialog[open]")) return;
    const {target} = event, range = target instanceof HTMLInputElement && target.type === "range";
    if (target instanceof HTMLInputElement && !range) {
      if (event.key === "Escape") target.blur();
      if (event.key === "Enter") {
        target.blur();
        if (target.id === "name") actions.Enter();
        event.preventDefault();
      }
      return;
    }
    const control = event.ctrlKey || event.metaKey, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.altKey || (control && !"zy".includes(key))) return;
    if (key in ARROWS) {
      if (range || !ready()) return;
      const step = event.shiftKey ? 1 : STEP, [dx, dy] = ARROWS[key];
      pointer.nudge(dx * step, dy * step);
      event.preventDefault();
      return;
    }
    // A button that was reached by keyboard has Enter and Space for itself.
    const button = target.closest?.("button, a, summary")?.matches(":focus-visible");
    if (key === " " && !button) { pointer.holdPan(true); event.preventDefault(); return; }
    const act = key === "z" && event.shiftKey ? keys.y : keys[key];
    if (!act || (key === "Enter" && button)) return;
    if (event.repeat && !REPEATED.includes(key)) return;
    event.preventDefault();
    if (ready() || ANYWHERE.includes(key)) act();
  });
  addEventListener("keyup", event => { if (event.key === " ") pointer.holdPan(false); });
  addEventListener("blur", () => pointer.holdPan(false));
}
