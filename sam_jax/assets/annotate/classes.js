// The project's list of classes: names for masks, with a number key each.

const LAST_KEY = 9;

export class Classes {
  /** @param section with a list, and a form to change the classes
   *  @param field input with the name of the mask in work
   *  @param save names => the server's answer */
  constructor(section, field, save) {
    Object.assign(this, {section, field});
    this.names = [];
    this.current = "";  // the class of the masks to come
    this.list = section.querySelector("ul");
    const dialog = section.querySelector("dialog"), text = dialog.querySelector("textarea"), problem = dialog.querySelector("[role=alert]");
    section.querySelector(".change").addEventListener("click", () => {
      text.value = this.names.join("\n");
      problem.textContent = "";
      dialog.showModal();
    });
    dialog.querySelector("form").addEventListener("submit", async event => {
      if (event.submitter?.value !== "save") return;
      event.preventDefault();
      try {
        const names = text.value.split("\n").map(name => name.trim()).filter(Boolean);
        this.show((await save(names)).classes);
        dialog.close();
      } catch (error) {
        problem.textContent = error.message;
      }
    });
    field.addEventListener("input", () => this.mark());
  }

  show(names) {
    if (JSON.stringify(names) === JSON.stringify(this.names)) return;
    this.names = names;
    if (!names.includes(this.current)) this.current = "";
    this.list.replaceChildren(...names.map((name, i) => {
      const item = document.createElement("li"), button = document.createElement("button"), key = document.createElement("kbd");
      button.type = "button";
      key.textContent = i < LAST_KEY ? i + 1 : "";
      button.append(key, name);
      button.addEventListener("click", () => { button.blur(); this.choose(i); });
      item.append(button);
      return item;
    }));
    document.body.dataset.classes = names.length > 0;
    this.mark();
  }

  /** Names the mask in work, and those to come, by a class; or no longer, if it is so named. */
  choose(index) {
    if (!(index in this.names)) return;
    this.current = this.field.value === this.names[index] ? "" : this.names[index];
    this.name(this.current);
  }

  name(text) {
    this.field.value = text ?? "";
    this.mark();
  }

  mark() {
    [...this.list.children].forEach((item, i) => { item.firstChild.ariaPressed = String(this.names[i] === this.field.value.trim()); });
  }
}
