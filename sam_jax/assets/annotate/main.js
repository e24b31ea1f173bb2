// The page: which image, which masks, and what keys, pointer and buttons do.

import {ApiError, call, Outbox} from "./api.js";
import {Clock} from "./clock.js";
import {Edit} from "./edit.js";
import {listMasks, colourOf} from "./list.js";
import {Mask} from "./masks.js";
import {busy, showCandidates, showConnection, toast} from "./panel.js";
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
let hovered = null;
let moving = false;    // between two images

const maskClock = new Clock(), pictureClock = new Clock();
const api = (method, path, body, signal) => call(method, path, annotator, body, signal);
const view = new View($("canvas"));
const outbox = new Outbox(showConnection, (item, error) => {
  toast(`Not saved: ${error.message}`, "error");
  reload();
});
const edit = new Edit(
  (request, signal) => api("POST", `/api/pictures/${picture.id}/predict`, request, signal), refresh,
  error => toast(error.message, "error"),
);
const pointer = new Pointer(view, edit, $("size"), () => picture && !moving);

// Images

async function openNext() {
  moving = true;
  document.body.dataset.ready = "false";
  try {
    await outbox.drained();  // what an earlier visit has left would be missing in the answer
    await enter(await api("POST", "/api/next"));
  } catch (error) {
    toast(error.message, "error");
    if (error.status === 0 || error.status >= 500) setTimeout(openNext, 2000);
  } finally {
    moving = false;
  }
}

async function enter(content) {
  progress();
  await show(content);
  for (const id of content.upcoming) new Image().src = `/api/pictures/${id}/image`;  // into the browser's cache
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
  busy("Opening the image");
  const image = new Image();
  image.src = `/api/pictures/${picture.id}/image`;
  try {
    await image.decode();
  } catch {
    const problem = await api("POST", `/api/pictures/${picture.id}/embed`).catch(error => error);
    busy(null);
    toast(`This image can't be shown: ${problem.message ?? "the browser can't read it"}. Skip it.`, "error", 0);
    edit.reset();
    return;
  }
  picture.width = image.naturalWidth;
  picture.height = image.naturalHeight;
  edit.pixels = [picture.width, picture.height];
  view.setPicture(image);
  records = content.masks.map(withMask);
  pictureClock.restart();
  startMask();
  busy("The model looks at the image");
  api("POST", `/api/pictures/${picture.id}/embed`).then(
    () => { if (picture === shown) { busy(null); document.body.dataset.ready = "true"; } },
    error => { busy(null); toast(error.message, "error"); },
  );
}

function withMask(record) {
  const mask = Mask.fromRle(record.segmentation);
  return {...record, mask, outline: mask.outline(), number: numbered++};
}

/** What the server has, where it would not take what the page has. */
async function reload() {
  const shown = picture;
  if (!shown) return;
  try {
    const {masks} = await api("GET", `/api/pictures/${shown.id}`);
    if (picture !== shown) return;
    records = masks.map(withMask);
    refresh();
  } catch (error) {
    toast(error.message, "error");
  }
}

/** Whether the image may be left. */
function settled() {
  if (moving) return false;
  if (edit.changed && edit.mask?.area) {
    toast("This mask is not saved: Enter saves it, Esc drops it.");
    return false;
  }
  return true;
}

async function finish(outcome) {
  if (!picture || !settled()) return;
  moving = true;
  try {
    await outbox.drained();
    await api("POST", `/api/pictures/${picture.id}/finish`, {outcome, seconds: pictureClock.seconds});
  } catch (error) {
    moving = false;
    toast(error.message, "error");
    if (error.status !== 409) return;  // else it was given to somebody else meanwhile
  }
  await openNext();
}

async function goBack() {
  if (!settled()) return;
  moving = true;
  try {
    await outbox.drained();
    const content = await api("POST", "/api/back");
    if (!content.picture) toast("There is no earlier image of yours.");
    else {
      document.body.dataset.ready = "false";
      await enter(content);
    }
  } catch (error) {
    toast(error.message, "error");
  } finally {
    moving = false;
  }
}

// Masks

function startMask(record = null) {
  maskClock.restart();
  $("name").value = record?.name ?? "";
  $("name").blur();
  edit.reset(record, record?.mask);
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
    seconds: (before?.seconds ?? 0) + maskClock.seconds, mask, outline: mask.outline(), number: before?.number ?? numbered++,
  };
  put(record);
  startMask();
  $("toast").hidden = true;
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
    judge(record, {state: "rejected"});
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
  judge(record, {state: "accepted", rank: kept().length});
}

/** The time since the last mask went into looking at this one, unless another is in work. */
function judge(record, change) {
  const seconds = record.seconds + (edit.empty ? maskClock.seconds : 0);
  if (edit.empty) maskClock.restart();
  put({...record, ...change, seconds});
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
  const {mask, state} = edit;
  view.points = state.points;
  view.box = state.box;
  view.setCurrent(mask);
  paintSaved();
  $("now-title").textContent = edit.record ? `Edit ${edit.record.name || "mask"}` : "New mask";
  $("save").disabled = !mask?.area;
  $("clear").disabled = edit.empty;
  $("undo").disabled = !edit.done.length && !deleted.length;
  $("redo").disabled = !edit.undone.length;
  document.body.dataset.area = mask?.area ?? 0;
  showCandidates(edit, view);
  showLists();
  tick();
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
  showFormats();
}

/** Links to the saved masks in every format that the server writes. */
function showFormats() {
  const links = (path, names) => names.flatMap(name =>
    [Object.assign(document.createElement("a"), {href: `${path}/${name}`, title: formats[name], textContent: name, download: ""}), " "]);
  for (const all of document.querySelectorAll(".formats")) all.replaceChildren(...links("/api/export", Object.keys(formats)));
  $("picture-formats").replaceChildren(...(picture ? links(`/api/pictures/${picture.id}/export`, Object.keys(formats)) : []));
}

let knownNames = [], formats = {};

function paintSaved() {
  view.setSaved(records.filter(r => r !== edit.record).map(r => ({
    mask: r.mask, outline: r.outline, number: r.number, colour: colourOf(r), strong: r.id === hovered, dashed: r.state === "proposed",
  })));
  view.redraw();
}

function tick() {
  const passed = picture && !edit.empty ? maskClock.seconds : 0, long = passed > LONG;
  $("timer").textContent = `${Math.floor(passed)} s`;
  $("timer").dataset.long = $("hint").dataset.long = long;
  const {state} = edit;
  $("hint").textContent = !picture || edit.empty ? ""
    : long ? "Over half a minute: save it as it is, or leave it and go on."
    : edit.waiting ? "…"
    : edit.mask ? `${edit.mask.area.toLocaleString("en")} pixels` + (!state.answer ? "" : state.choice ? ` · ${state.choice} of the three` : " · all prompts together")
    : "";
}

async function progress() {
  try {
    const state = await api("GET", "/api/state"), {pictures, done} = state.progress;
    formats = state.formats;
    showFormats();
    $("stage").textContent = STAGES[state.stage] ?? state.stage;
    $("stage").title = `Model: ${state.model}`;
    $("progress-text").textContent = `${done} of ${pictures} images`;
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
  Enter: save, Escape: () => startMask(), n: () => finish("done"), s: () => finish("skipped"), p: goBack, t: () => $("name").focus(),
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
  if (picture || "?p".includes(key)) act();
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
$("back").addEventListener("click", goBack);
$("again").addEventListener("click", openNext);
$("who").addEventListener("click", welcome);

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
