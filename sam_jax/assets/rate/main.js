// One mask after the other. The server says which; a rating counts once it has answered.

const VIEWS = [["picture", "Image"], ["overlay", "Mask over it"], ["mask", "Mask alone"],
               ["zoom", "From near"], ["zoom_overlay", "From near, with the mask"]];
const SCALE = [[[1], "Nothing, or nothing that can be named"],
               [[2, 3, 4], "Mostly recognisable; the boundary is very poor"],
               [[5, 6], "Recognisable; the boundary is mostly right, with large errors"],
               [[7, 8, 9], "Clearly recognisable; errors are small and few. 7: several, 9: hardly any"],
               [[10], "Right to the pixel"]];
const TOO_SOON = 300;  // milliseconds: nobody has seen the mask yet; the 0 of a typed "10", say
const NAME = "sam_jax.rater";

const element = id => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
let rater = localStorage.getItem(NAME), state = null, shownAt = 0, busy = false;

async function ask(method, path, body) {
  const options = {method, headers: {"Content-Type": "application/json"}, body: body && JSON.stringify(body)};
  let answer;
  try {
    answer = await fetch(`${path}?rater=${encodeURIComponent(rater)}`, options);
  } catch {
    throw new Error("no connection to the server");
  }
  const content = await answer.json().catch(() => ({error: `the server answered ${answer.status}`}));
  if (!answer.ok) throw Object.assign(new Error(content.error), {status: answer.status});
  return content;
}

/** Runs one step; what is asked for before it is answered is left out: a key pressed twice rates one mask. */
async function alone(step) {
  if (busy) return;
  busy = true;
  try {
    await step();
  } catch (error) {
    say(error.message, "error");
  } finally {
    busy = false;
  }
}

function say(text, kind = "") {
  element("message").textContent = text;
  element("message").dataset.kind = kind;
}

function show(next) {
  state = next;
  const {job, jobs, rated, rating, prompt, previous} = state;
  document.body.dataset.ready = false;
  enlarge(null);
  element("progress").value = rated;
  element("progress").max = jobs;
  element("title").textContent = rating ? `Mask ${job + 1}: you gave ${rating}`
    : job !== null ? `${rated} of ${jobs} masks rated`
    : rated === jobs ? "All masks are rated. Thank you!" : "Others are rating the rest. Thank you!";
  for (const button of element("scale").querySelectorAll("button")) {
    button.disabled = job === null;
    button.setAttribute("aria-pressed", String(rating) === button.textContent);
  }
  element("back").disabled = previous === null;
  element("forward").disabled = job !== null && !rating;
  element("views").hidden = job === null;
  if (job === null) return;
  document.querySelectorAll(".asked").forEach(line => { line.textContent = `Does the mask fit the blue ${prompt}?`; });
  load(job);
}

async function load(job) {
  const shown = state;
  try {
    await Promise.all(VIEWS.map(([view]) => {
      element(`view-${view}`).src = `/api/jobs/${job}/${view}.png`;
      return element(`view-${view}`).decode();
    }));
  } catch {
    if (shown === state) say("The views can't be loaded; reload the page.", "error");
    return;
  }
  if (shown !== state) return;  // gone on meanwhile
  document.body.dataset.ready = true;
  shownAt = performance.now();
}

function rate(rating) {
  const waited = performance.now() - shownAt, {job} = state ?? {job: null};
  if (job === null || document.body.dataset.ready !== "true" || waited < TOO_SOON) return;
  document.activeElement?.blur();  // Space and Enter shall not give the same again
  alone(async () => {
    let next;
    try {
      next = await ask("POST", "/api/ratings", {job, rating, seconds: Math.round(waited / 100) / 10});
      say(`Mask ${job + 1}: ${rating}, saved.`);
    } catch (error) {
      if (error.status !== 409) throw new Error(`Not saved: ${error.message}. Try again.`);
      next = await ask("POST", "/api/next");
      say(error.message, "error");
    }
    show(next);
  });
}

const visit = async (method, path) => {
  show(await ask(method, path));
  say("");
};
const goOn = () => visit("POST", "/api/next");
const back = () => { if (state && state.previous !== null) alone(() => visit("GET", `/api/jobs/${state.previous}`)); };
const forward = () => { if (!element("forward").disabled) alone(goOn); };

function enlarge(figure) {
  element("views").classList.toggle("large", figure !== null);
  for (const other of element("views").children) other.classList.toggle("large", other === figure);
}

function openGuidelines() {
  element("rater").value = rater ?? "";
  element("problem").textContent = "";
  element("guidelines").showModal();
}

element("guidelines").addEventListener("cancel", event => { if (!state) event.preventDefault(); });
element("guidelines").querySelector("form").addEventListener("submit", async event => {
  event.preventDefault();
  if (busy) return;
  const name = element("rater").value.trim();
  if (state && name === rater) return element("guidelines").close();
  const before = rater;
  rater = name;
  let next;
  try {
    next = await ask("POST", "/api/next");
  } catch (error) {
    rater = before;
    element("problem").textContent = error.status === 422 ? "Letters, digits, spaces and . @ + - alone, please." : error.message;
    return;
  }
  localStorage.setItem(NAME, rater);
  element("guidelines").close();
  say("");
  show(next);
});

for (const [view, label] of VIEWS) {
  const figure = make("figure", {className: view.startsWith("zoom") ? "near" : ""},
                      make("img", {id: `view-${view}`, alt: label}), make("figcaption", {textContent: label}));
  figure.addEventListener("click", () => enlarge(figure.classList.contains("large") ? null : figure));
  element("views").append(figure);
}
const list = make("dl");
for (const [values, text] of SCALE) {
  const buttons = values.map(value => make("button", {textContent: value, onclick: () => rate(value)}));
  element("scale").append(make("div", {className: "step"}, make("div", {}, ...buttons), make("span", {textContent: text})));
  const range = values.length > 1 ? `${values[0]}–${values.at(-1)}` : values[0];
  list.append(make("dt", {textContent: range}), make("dd", {textContent: text}));
}
const copy = part => document.querySelector(`aside .${part}`).cloneNode(true);
element("guide").append(copy("questions"), list, copy("cases"));

element("back").addEventListener("click", back);
element("forward").addEventListener("click", forward);
element("help").addEventListener("click", openGuidelines);
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || element("guidelines").open) return;
  if (/^[0-9]$/.test(event.key)) rate(Number(event.key) || 10);
  else if (event.key === "ArrowLeft") back();
  else if (event.key === "ArrowRight") forward();
  else if (event.key === "Escape") enlarge(null);
  else if (event.key === "?") openGuidelines();
  else return;
  event.preventDefault();
});
if (rater) alone(goOn);
else openGuidelines();
