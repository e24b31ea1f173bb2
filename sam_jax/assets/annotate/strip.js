// The strip of thumbnails: the annotator's latest images and the next ones, each with its state.

const STATES = {open: "open", done: "done", skipped: "skipped", free: "not begun"};

export class Strip {
  /** @param onChoose called with the id of an image */
  constructor(list, onChoose) {
    Object.assign(this, {list, onChoose});
    this.asked = 0;
  }

  /** Shows what the server answers, unless it is asked again meanwhile. */
  async show(current, ask) {
    const number = ++this.asked;
    for (const button of this.list.querySelectorAll("button")) button.ariaCurrent = String(Number(button.dataset.id) === current);
    try {
      const {pictures} = await ask();
      if (number !== this.asked) return;
      this.list.replaceChildren(...pictures.map(picture => this.item(picture, picture.id === current)));
      this.list.querySelector("[aria-current=true]")?.scrollIntoView({block: "nearest", inline: "center"});
    } catch { /* without a connection, which the page tells, the strip stays as it is */ }
  }

  item({id, name, state}, current) {
    const item = document.createElement("li"), button = document.createElement("button"), image = document.createElement("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = `/api/pictures/${id}/thumbnail`;
    image.addEventListener("error", () => { image.hidden = true; });
    button.type = "button";
    button.dataset.id = id;
    button.dataset.name = name;
    button.ariaCurrent = String(current);
    button.append(image);
    button.addEventListener("click", () => { button.blur(); this.onChoose(id); });
    item.append(button);
    label(button, state);
    return item;
  }

  /** Changes the state that is shown for an image. */
  mark(id, state) {
    const button = this.list.querySelector(`[data-id="${id}"]`);
    if (button) label(button, state);
  }
}

function label(button, state) {
  button.dataset.state = state;
  button.title = button.ariaLabel = `${button.dataset.name}: ${STATES[state]}`;
}
