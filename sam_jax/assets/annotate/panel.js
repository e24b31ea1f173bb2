// Parts of the page that only show something: which mask, messages, the connection.

const $ = id => document.getElementById(id);

let candidatesOf = null;

/** The masks of an answer to choose from, as thumbnails. */
export function showCandidates(edit, view) {
  const {answer, choice} = edit;
  const parent = $("candidates");
  if (edit.pending && candidatesOf) return;  // until the next ones are there
  if (!answer) {
    candidatesOf = null;
    const note = document.createElement("div");
    note.className = "empty";
    note.textContent = edit.record ? "Click, draw a box or brush to change it" : "Click on an object, or drag a box around it";
    parent.replaceChildren(note);
    return;
  }
  if (candidatesOf !== answer) {
    candidatesOf = answer;
    parent.replaceChildren(...[1, 2, 3, 0].map(index => {
      const {mask, predicted_iou} = answer.masks[index], button = document.createElement("button");
      const text = document.createElement("span"), key = document.createElement("kbd"), score = document.createElement("b");
      button.type = "button";
      button.dataset.choice = index;
      button.setAttribute("role", "radio");
      button.title = button.ariaLabel = index ? `One of three readings of the prompt, predicted IoU ${predicted_iou.toFixed(2)}`
        : `All prompts together, predicted IoU ${predicted_iou.toFixed(2)}`;
      button.disabled = !mask.area;
      key.textContent = index || 4;
      score.textContent = predicted_iou.toFixed(2);
      text.append(key, score);
      button.append(view.thumbnail(mask, 70, 62), text);
      button.addEventListener("click", () => edit.choose(index));
      return button;
    }));
  }
  for (const button of parent.children) button.setAttribute("aria-checked", Number(button.dataset.choice) === choice);
}

export function busy(text) {
  $("busy").hidden = text === null;
  $("busy").lastElementChild.textContent = text ?? "";
}

let toastTimer = 0;

export function toast(text, kind = "note", milliseconds = 5000) {
  $("toast").textContent = text;
  $("toast").dataset.kind = kind;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  if (milliseconds) toastTimer = setTimeout(() => { $("toast").hidden = true; }, milliseconds);
}

export function hideToast() {
  $("toast").hidden = true;
  clearTimeout(toastTimer);
}

/** For those who do not see the canvas. */
export function say(text) {
  $("said").textContent = text;
}

export function showConnection(waiting, problem) {
  $("connection").dataset.state = problem ? "bad" : waiting ? "busy" : "ok";
  $("connection").lastElementChild.textContent = problem ? `${waiting} not saved yet: ${problem}` : waiting ? "Saving" : "All saved";
}
