// The page: which image, which masks, and what becomes of them.

import {ApiError, call, Outbox} from "./api.js";
import {Classes} from "./classes.js";
import {Clock} from "./clock.js";
import {Edit} from "./edit.js";
import {bindKeys} from "./keys.js";
import {listMasks, colourOf} from "./list.js";
import {Mask} from "./masks.js";
import {busy, hideToast, say, showCandidates, showConnection, toast} from "./panel.js";
import {Pointer} from "./pointer.js";
import {Strip} from "./strip.js";
import {View} from "./view.js";

const LONG = 30;       // seconds; the paper's annotators went on after half a minute
const HEARTBEAT = 20_000;
const $ = id => document.getElementById(id);
const STAGES = {"assisted-manual": "assisted", "semi-automatic": "semi-automatic", "automatic": "automatic"};

let annotator = localStorage.getItem("sam_jax.annotator") ?? "";
let picture = null;    // of the server: id, name, width, height, state, annotator
let records = [];      // its masks: the server's fields, and mask, outline
let numbered = 0;      // for colours that stay
let deleted = [];      // records that Z brings back
let hovered = null;
let moving = false;    // between two images
let leaving = false;   // as moving, or about to: what was asked before comes first
let keeping = 0;       // masks to be saved once the model has answered

const maskClock = new Clock(), pictureClock = new Clock();
const api = (method, path, body) => call(method, path, annotator, body);
const view = new View($("canvas"));
const outbox = new Outbox(connection, (item, error) => {
  toast(`Not saved: ${error.message}`, "error");
  reload();
});
const edit = new Edit(refresh, error => toast(error.message, "error"));
const pointer = new Pointer(view, edit, $("size"), () => picture && !moving, say);
const strip = new Strip($("strip"), id => leave(() => look(api("GET", `/api/pictures/${id}`))));
const classes = new Classes($("classes"), $("name"), names => api("PUT", "/api/classes", {names}));

function connection(waiting, problem) {
  showConnection(waiting + keeping, problem);
}

// Images

/** Leaves the image, unless there is work that is not saved. What was asked before, such as to save, comes first. */
async function leave(act) {
  if (leaving) return;
  leaving = true;
  try {
    while (edit.pending || keeping) await (edit.pending ? edit.answered() : saving);
    if (edit.changed && edit.mask?.area) {
      toast("This mask is not saved: Enter saves it, Esc drops it.");
      return;
    }
    moving = true;
    await outbox.drained();  // what is on its way would be missing in the answer
    await act();
  } catch (error) {
    toast(error.message, "error");
  } finally {
    moving = leaving = false;
  }
}

async function openNext() {
  try {
    const content = await api("POST", "/api/next");
    await show(content);
    for (const id of content.upcoming) new Image().src = `/api/pictures/${id}/image`;  // into the browser's cache
  } catch (error) {
    toast(error.message, "error");
    if (error.status === 0 || error.status >= 500) setTimeout(() => leave(openNext), 2000);
  }
}

/** Shows an image that was asked for. */
async function look(asked) {
  const content = await asked;
  if (content.picture) await show(content);
  else toast("There is no earlier image of yours.");
}

function goBack() {
  leave(() => look(call("GET", "/api/back", annotator, undefined, picture ? {before: picture.id} : {})));
}

async function show(content) {
  document.body.dataset.ready = "false";
  hideToast();  // it was about the image before
  progress();
  picture = content.picture;
  records = [];
  deleted = [];
  hovered = null;
  view.clear();
  $("nothing").hidden = picture !== null;
  for (const id of ["skip", "next", "name"]) $(id).disabled = picture === null;
  strip.show(picture?.id ?? null, () => api("GET", "/api/strip"));
  if (!picture) {
    busy(null);
    edit.reset();
    return;
  }
  const shown = picture;
  busy("Opening the image");
  const image = new Image();
  image.src = `/api/pictures/${shown.id}/image`;
  try {
    await image.decode();
  } catch {
    const problem = await api("POST", `/api/pictures/${shown.id}/embed`).catch(error => error);
    busy(null);
    toast(`This image can't be shown: ${problem.message ?? "the browser can't read it"}. Skip it.`, "error", 0);
    edit.reset();
    return;
  }
  shown.width = image.naturalWidth;
  shown.height = image.naturalHeight;
  edit.open([shown.width, shown.height], request => api("POST", `/api/pictures/${shown.id}/predict`, request));
  view.setPicture(image);
  records = content.masks.map(withMask);
  pictureClock.restart();
  startMask();
  busy("The model looks at the image");
  api("POST", `/api/pictures/${shown.id}/embed`).then(
    () => { if (picture === shown) { busy(null); document.body.dataset.ready = "true"; } },
    error => { if (picture === shown) { busy(null); toast(error.message, "error"); } },
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
    const content = await api("GET", `/api/pictures/${shown.id}`);
    if (picture !== shown) return;
    Object.assign(shown, {state: content.picture.state, annotator: content.picture.annotator});
    records = content.masks.map(withMask);
    refresh();
  } catch (error) {
    if (picture === shown) toast(error.message, "error");
  }
}

const mine = () => picture.state === "open" && picture.annotator === annotator;

/** Opens the image that is only looked at, before something changes on it. */
function take() {
  if (mine()) return;
  outbox.push("POST", `/api/pictures/${picture.id}/take`, annotator);
  Object.assign(picture, {state: "open", annotator});
  strip.mark(picture.id, "open");
  refresh();
}

function finish(outcome) {
  if (!picture) return;
  leave(async () => {
    const {id, state} = picture;
    if (state !== "done") {  // a finished image that was looked at stays as it is
      take();
      await outbox.drained();
      try {
        await api("POST", `/api/pictures/${id}/finish`, {outcome, seconds: pictureClock.seconds});
      } catch (error) {
        if (error.status !== 409) throw error;  // else it was given to somebody else meanwhile
        await openNext();
        toast(error.message, "error");
        return;
      }
    }
    await openNext();
  });
}

// Masks

function startMask(record = null) {
  maskClock.restart();
  classes.name(record ? record.name : classes.current);
  $("name").blur();
  edit.reset(record, record?.mask);
}

let saving = Promise.resolve();

/** Saves the mask as the page shows it, or as it will once the model has answered; masks are saved in order. */
function save() {
  if (!picture || moving || edit.empty || !(edit.pending || edit.mask?.area)) return;
  const name = $("name").value.trim() || null, seconds = maskClock.seconds, waits = edit.pending, work = edit.detach();
  startMask();
  hideToast();
  if (!waits && !keeping) {
    keep(work, name, seconds);
    return;
  }
  keeping++;
  connection(outbox.items.length, null);
  saving = saving.then(() => work.answered()).then(() => {
    keeping--;
    if (work.state.reply?.error) {
      toast(`Not saved: ${work.state.reply.error.message}`, "error");
      if (edit.empty) edit.resume(work);
    } else if (work.mask?.area) keep(work, name, seconds);
    else toast("The model found nothing there: no mask is saved.");
    connection(outbox.items.length, null);
  });
}

function keep(work, name, seconds) {
  const {mask, record: before} = work;
  const untouched = before !== null && !work.changed;
  const state = before === null || before.origin === "manual" ? "accepted"
    : untouched ? (before.state === "proposed" ? "accepted" : before.state) : "edited";
  put({
    id: before?.id ?? newId(), origin: before?.origin ?? "manual", state, name,
    rank: before && before.state !== "proposed" ? before.rank : kept().length,
    segmentation: untouched ? before.segmentation : mask.toRle(), prompts: work.prompts(), ...work.scores(),
    seconds: (before?.seconds ?? 0) + seconds, mask, outline: mask.outline(), number: before?.number ?? numbered++,
  });
}

/** Into the list and to the server. */
function put(record) {
  const at = records.findIndex(r => r.id === record.id);
  if (at < 0) records.push(record); else records[at] = record;
  take();
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
    take();
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
  take();
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
  const {mask, state, pending} = edit;
  view.points = state.points;
  view.box = state.box;
  view.setCurrent(edit.live?.mask ?? mask);
  paintSaved();
  $("now-title").textContent = edit.record ? `Edit ${edit.record.name || "mask"}` : "New mask";
  $("save").disabled = !mask?.area && !pending;
  $("skip").disabled = !picture || picture.state === "done";
  $("looking").hidden = !picture || mine();
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
  $("hint").textContent = !picture || edit.empty ? ""
    : long ? "Over half a minute: save it as it is, or leave it and go on."
    : edit.pending ? "The model is at it. What you do now comes on top of its mask."
    : edit.mask ? `${edit.mask.area.toLocaleString("en")} pixels` + (!edit.answer ? "" : edit.choice ? ` · ${edit.choice} of the three` : " · all prompts together")
    : "";
}

async function progress() {
  try {
    const state = await api("GET", "/api/state"), {pictures, done} = state.progress;
    formats = state.formats;
    showFormats();
    classes.show(state.classes);
    $("stage").textContent = STAGES[state.stage] ?? state.stage;
    $("stage").title = `Model: ${state.model}`;
    $("progress-text").textContent = `${done} of ${pictures} images`;
    $("progress").max = Math.max(1, pictures);
    $("progress").value = done;
    if (!outbox.items.length) connection(0, null);
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

bindKeys(pointer, () => picture !== null, {
  z: undo, y: () => edit.redo(), f: () => view.fit(), h: () => $("masks").click(), "?": () => $("keys").showModal(),
  "+": () => view.zoom(1.25), "=": () => view.zoom(1.25), "-": () => view.zoom(0.8),
  ",": () => turn(-1), ".": () => turn(1), digit,
  Enter: save, Escape: () => startMask(), n: () => finish("done"), s: () => finish("skipped"), p: goBack, t: () => $("name").focus(),
  a: () => { if (proposed().length) accept(proposed()[0]); }, x: () => { if (proposed().length) remove(proposed()[0]); },
});

/** A class, or in a project without classes one of the model's masks: 1 to 3, and 4 for that of all prompts together. */
function digit(number) {
  if (classes.names.length) classes.choose(number - 1);
  else if (number <= 4) edit.choose(number % 4);
}

/** Goes through the model's masks. */
function turn(by) {
  if (edit.answer) edit.choose((edit.choice + by + 4) % 4);
}

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
$("again").addEventListener("click", () => leave(openNext));
$("who").addEventListener("click", welcome);

addEventListener("beforeunload", event => { if (outbox.items.length || keeping || edit.changed) event.preventDefault(); });

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
  while (keeping) await saving;
  await outbox.drained();
  annotator = name;
  localStorage.setItem("sam_jax.annotator", name);
  begin();
});

function begin() {
  $("who").textContent = annotator;
  leave(openNext);
}

setInterval(tick, 500);
setInterval(() => { if (annotator) progress(); }, HEARTBEAT);
pointer.use("click");
if (annotator) begin(); else welcome();
