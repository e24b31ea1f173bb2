// The page: which picture, which masks, and what keys, pointer and buttons do.

import {ApiError, call, Outbox} from "./api.js";
import {Edit} from "./edit.js";
import {listMasks, colourOf} from "./list.js";
import {Mask} from "./masks.js";
import {Pointer} from "./pointer.js";
import {View} from "./view.js";

const LONG = 30;       // seconds; the paper's annotators went on after half a minute
const HEARTBEAT = 20_000;
const $ = id => document.getElementById(id);
const STAGES = {"assisted-manual": "assisted", "semi-automatic": "semi-automatic", "automatic": "automatic"};

let annotator = localStorage.getItem("sam_jax.annotator") ?? "";
let picture = null;    // of the server: id, name, width, height
let records = [];      // its masks: the server's fields, and mask, outline
let numbered = 0;      // for colours that stay
let deleted = [];      // records that Z brings back
let begun = 0, away = 0, hiddenAt = 0;  // of the mask in work, milliseconds
let opened = 0, spent = 0;
let hovered = null;
let moving = false;    // between two pictures

const api = (method, path, body, signal) => call(method, path, annotator, body, signal);
const view = new View($("canvas"));
const outbox = new Outbox(showConnection, (item, error) => toast(`Not saved: ${error.message}`, "error"));
const edit = new Edit(
  (request, signal) => api("POST", `/api/pictures/${picture.id}/predict`, request, signal), refresh,
  error => toast(error.message, "error"),
);
const pointer = new Pointer(view, edit, $("size"), () => picture && !moving);

// Pictures

async function openNext() {
  moving = true;
  document.body.dataset.ready = "false";
  try {
    const content = await api("POST", "/api/next");
    progress();
    await show(content);
    for (const id of content.upcoming) new Image().src = `/api/pictures/${id}/image`;  // into the browser's cache
  } catch (error) {
    toast(error.message, "error");
    if (error.status === 0 || error.status >= 500) setTimeout(openNext, 2000);
  } finally {
    moving = false;
  }
}

async function show(content) {
  picture = content.picture;
  records = [];
  deleted = [];
  view.clear();
  $("nothing").hidden = picture !== null;
  for (const id of ["skip", "next", "name"]) $(id).disabled = picture === null;
  if (!picture) {
    busy(null);
    edit.reset();
    return;
  }
  const shown = picture;
  busy("Opening the picture");
  const image = new Image();
  image.src = `/api/pictures/${picture.id}/image`;
  try {
    await image.decode();
  } catch {
    const problem = await api("POST", `/api/pictures/${picture.id}/embed`).catch(error => error);
    busy(null);
    toast(`This picture can't be shown: ${problem.message ?? "the browser can't read it"}. Skip it.`, "error", 0);
    edit.reset();
    return;
  }
  picture.width = image.naturalWidth;
  picture.height = image.naturalHeight;
  edit.pixels = [picture.width, picture.height];
  view.setPicture(image);
  records = content.masks.map(withMask);
  opened = performance.now();
  spent = 0;
  startMask();
  busy("The model looks at the picture");
  api("POST", `/api/pictures/${picture.id}/embed`).then(
    () => { if (picture === shown) { busy(null); document.body.dataset.ready = "true"; } },
    error => { busy(null); toast(error.message, "error"); },
  );
}

function withMask(record) {
  const mask = Mask.fromRle(record.segmentation);
  return {...record, mask, outline: mask.outline(), number: numbered++};
}

async function finish(outcome) {
  if (!picture || moving) return;
  if (outcome === "done" && edit.mask?.area && edit.changed) await save();
  moving = true;
  try {
    await outbox.drained();
    await api("POST", `/api/pictures/${picture.id}/finish`, {outcome, seconds: seconds(opened)});
  } catch (error) {
    moving = false;
    toast(error.message, "error");
    return;
  }
  await openNext();
}

// Masks

function startMask(record = null) {
  begun = performance.now();
  away = 0;
  $("name").value = record?.name ?? "";
  $("name").blur();
  edit.reset(record, record?.mask);
}

function seconds(since) {
  return Math.round(Math.max(0, performance.now() - since - (since === begun ? away : 0)) / 100) / 10;
}

async function save() {
  await edit.waiting;
  const mask = edit.mask;
  if (!mask?.area || moving) return;
  const before = edit.record, name = $("name").value.trim() || null;
  const untouched = before !== null && !edit.changed;
  const state = before === null || before.origin === "manual" ? "accepted"
    : untouched ? (before.state === "proposed" ? "accepted" : before.state) : "edited";
  const record = {
    id: before?.id ?? newId(), origin: before?.origin ?? "manual", state, name,
    rank: before && before.state !== "proposed" ? before.rank : kept().length,
    segmentation: untouched ? before.segmentation : mask.toRle(), prompts: edit.prompts(), ...edit.scores(),
    seconds: Math.round(((before?.seconds ?? 0) + seconds(begun)) * 10) / 10, mask, outline: mask.outline(), number: before?.number ?? numbered++,
  };
  put(record);
  startMask();
}

/** Into the list and to the server. */
function put(record) {
  const at = records.findIndex(r => r.id === record.id);
  if (at < 0) records.push(record); else records[at] = record;
  const {segmentation, state, name, rank, prompts, predicted_iou, stability_score, seconds} = record;
  outbox.push("PUT", `/api/pictures/${picture.id}/masks/${record.id}`, annotator,
              {segmentation, state, name, rank, prompts, predicted_iou, stability_score, seconds});
  refresh();
}

const kept = () => records.filter(r => r.state !== "proposed").sort((a, b) => a.rank - b.rank);
const proposed = () => records.filter(r => r.state === "proposed");

function remove(record) {
  if (edit.record === record) startMask();
  if (record.state === "proposed") {
    put({...record, state: "rejected"});
  } else {
    outbox.push("DELETE", `/api/masks/${record.id}`, annotator);
    deleted.push(record);
    toast("Deleted. Z brings it back.");
  }
  records = records.filter(r => r.id !== record.id);
  hovered = null;
  refresh();
}

function restore() {
  const record = deleted.pop();
  if (!record) return;
  records.push(record);
  outbox.push("POST", `/api/masks/${record.id}/restore`, annotator);
  refresh();
}

function accept(record) {
  put({...record, state: "accepted", rank: kept().length});
}

function move(record, by) {
  const order = kept(), at = order.indexOf(record), other = order[at + by];
  if (!other) return;
  order.splice(at, 1);
  order.splice(at + by, 0, record);
  order.forEach((r, rank) => { if (r.rank !== rank) put({...r, rank}); });
}

function rename(record, name) {
  const current = records.find(r => r.id === record.id);
  if (current && (current.name ?? "") !== name.trim()) put({...current, name: name.trim() || null});
}

/** 32 hexadecimal digits. crypto.randomUUID is missing where the page comes over plain http from another machine. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
}

// What is shown

function refresh() {
  const mask = pointer.live ?? edit.mask, {state} = edit;
  view.points = state.points;
  view.box = state.box;
  view.setCurrent(mask);
  view.setSaved(records.filter(r => r !== edit.record).map(r => ({
    mask: r.mask, outline: r.outline, colour: colourOf(r), strong: r.id === hovered, dashed: r.state === "proposed",
  })));
  $("now-title").textContent = edit.record ? `Edit ${edit.record.name || "mask"}` : "New mask";
  $("save").disabled = !mask?.area;
  $("clear").disabled = edit.empty;
  $("undo").disabled = !edit.done.length && !deleted.length;
  $("redo").disabled = !edit.undone.length;
  document.body.dataset.area = mask?.area ?? 0;
  showCandidates(state);
  showLists();
  tick();
}

let candidatesOf = null;

function showCandidates({answer, choice}) {
  const parent = $("candidates");
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
      button.title = index ? `One of three readings of the prompt, predicted IoU ${predicted_iou.toFixed(2)}`
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

function showLists() {
  const actions = {
    hover: record => { hovered = record?.id ?? null; paintSaved(); },
    edit: record => startMask(record), remove, accept, move, rename,
  };
  const done = kept(), open = proposed();
  listMasks($("saved"), done, edit.record, actions);
  listMasks($("proposed"), open, edit.record, actions);
  $("saved-count").textContent = done.length;
  $("saved-empty").hidden = done.length > 0;
  $("proposed-count").textContent = open.length;
  $("proposed-section").hidden = !open.length;
  const names = [...new Set([...knownNames, ...records.map(r => r.name).filter(Boolean)])];
  knownNames = names.slice(-200);
  $("names").replaceChildren(...knownNames.map(name => Object.assign(document.createElement("option"), {value: name})));
  $("picture-name").textContent = picture?.name ?? "";
  $("export").hidden = !picture;
  if (picture) $("export").href = `/api/pictures/${picture.id}/sa1b.json`;
}

let knownNames = [];

function paintSaved() {
  view.setSaved(view.saved.map((item, i) => ({...item, strong: records.filter(r => r !== edit.record)[i]?.id === hovered})));
}

function tick() {
  const passed = picture && !edit.empty ? seconds(begun) : 0, long = passed > LONG;
  $("timer").textContent = `${Math.floor(passed)} s`;
  $("timer").dataset.long = $("hint").dataset.long = long;
  const {state} = edit;
  $("hint").textContent = !picture || edit.empty ? ""
    : long ? "Over half a minute: save it as it is, or leave it and go on."
    : edit.waiting ? "…"
    : edit.mask ? `${edit.mask.area.toLocaleString("en")} pixels` + (!state.answer ? "" : state.choice ? ` · ${state.choice} of the three` : " · all prompts together")
    : "";
}

function busy(text) {
  $("busy").hidden = text === null;
  $("busy").lastElementChild.textContent = text ?? "";
}

let toastTimer = 0;

function toast(text, kind = "note", milliseconds = 5000) {
  $("toast").textContent = text;
  $("toast").dataset.kind = kind;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  if (milliseconds) toastTimer = setTimeout(() => { $("toast").hidden = true; }, milliseconds);
}

function showConnection(waiting, problem) {
  $("connection").dataset.state = problem ? "bad" : waiting ? "busy" : "ok";
  $("connection").lastElementChild.textContent = problem ? `${waiting} not saved yet: ${problem}` : waiting ? "Saving" : "All saved";
}

async function progress() {
  try {
    const state = await api("GET", "/api/state"), {pictures, done} = state.progress;
    $("stage").textContent = STAGES[state.stage] ?? state.stage;
    $("stage").title = `Model: ${state.model}`;
    $("progress-text").textContent = `${done} of ${pictures} pictures`;
    $("progress").max = Math.max(1, pictures);
    $("progress").value = done;
    if (!outbox.items.length) showConnection(0, null);
  } catch (error) {
    if (error instanceof ApiError && !outbox.items.length) {
      $("connection").dataset.state = "bad";
      $("connection").lastElementChild.textContent = error.message;
    }
  }
}

// Buttons and keys

function undo() {
  if (!edit.undo()) restore();
}

const KEYS = {
  c: () => pointer.use("click"), b: () => pointer.use("box"), d: () => pointer.use("brush"), e: () => pointer.use("eraser"),
  z: undo, y: () => edit.redo(), f: () => view.fit(), h: () => $("masks").click(), "?": () => $("keys").showModal(),
  "[": () => pointer.resize(0.8), "]": () => pointer.resize(1.25),
  "+": () => view.zoom(1.25), "=": () => view.zoom(1.25), "-": () => view.zoom(0.8),
  1: () => edit.choose(1), 2: () => edit.choose(2), 3: () => edit.choose(3), 4: () => edit.choose(0),
  Enter: save, Escape: () => startMask(), n: () => finish("done"), s: () => finish("skipped"), t: () => $("name").focus(),
  a: () => { if (proposed().length) accept(proposed()[0]); }, x: () => { if (proposed().length) remove(proposed()[0]); },
};

addEventListener("keydown", event => {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target instanceof HTMLInputElement && event.target.type !== "range";
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    if (event.key === "Enter") { event.target.blur(); if (event.target === $("name")) save(); event.preventDefault(); }
    return;
  }
  const control = event.ctrlKey || event.metaKey, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.altKey || (control && !"zy".includes(key))) return;
  if (key === " ") { pointer.holdPan(true); event.preventDefault(); return; }
  const act = key === "z" && event.shiftKey ? () => edit.redo() : KEYS[key];
  // A focused button has Enter for itself.
  if (!act || (key === "Enter" && event.target instanceof HTMLButtonElement)) return;
  if (event.repeat && !"zy[]+-=".includes(key)) return;
  event.preventDefault();
  if (picture || key === "?") act();
});
addEventListener("keyup", event => { if (event.key === " ") pointer.holdPan(false); });
addEventListener("blur", () => pointer.holdPan(false));

for (const button of document.querySelectorAll("nav [data-tool]")) {
  button.addEventListener("click", () => { pointer.use(button.dataset.tool); button.blur(); });
}
$("undo").addEventListener("click", undo);
$("redo").addEventListener("click", () => edit.redo());
$("fit").addEventListener("click", () => view.fit());
$("help").addEventListener("click", () => $("keys").showModal());
$("masks").addEventListener("click", () => {
  view.showMasks = !view.showMasks;
  $("masks").setAttribute("aria-pressed", view.showMasks);
  view.redraw();
});
$("save").addEventListener("click", save);
$("clear").addEventListener("click", () => startMask());
$("next").addEventListener("click", () => finish("done"));
$("skip").addEventListener("click", () => finish("skipped"));
$("again").addEventListener("click", openNext);
$("who").addEventListener("click", welcome);

document.addEventListener("visibilitychange", () => {
  // Time with the page out of sight is not work on the mask.
  if (document.hidden) hiddenAt = performance.now();
  else if (hiddenAt) { away += performance.now() - Math.max(hiddenAt, begun); hiddenAt = 0; }
});
addEventListener("beforeunload", event => { if (outbox.items.length || edit.changed) event.preventDefault(); });

function welcome() {
  $("annotator").value = annotator;
  $("welcome").showModal();
}

$("welcome").addEventListener("close", async () => {
  const name = $("annotator").value.trim();
  if (!/^[\p{L}\p{N}_][\p{L}\p{N}_ .@+-]{0,63}$/u.test(name)) {
    $("annotator-problem").textContent = "Letters, digits, spaces and . @ + - _";
    $("welcome").showModal();
    return;
  }
  await outbox.drained();
  annotator = name;
  localStorage.setItem("sam_jax.annotator", name);
  begin();
});

function begin() {
  $("who").textContent = annotator;
  openNext();
}

setInterval(tick, 500);
setInterval(() => { if (annotator) progress(); }, HEARTBEAT);
pointer.use("click");
if (annotator) begin(); else welcome();
