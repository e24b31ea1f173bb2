// The mask in work: prompts, strokes, the model's answers, and what undo goes back to. States are never changed, only replaced.

import {Mask} from "./masks.js";

// reply: to points and box; choice: the mask that was chosen, null for the best; ground: what lies below the strokes until
// the model has answered, and how many of the strokes are in it.
const NOTHING = {mask: null, strokes: 0};
const EMPTY = Object.freeze({points: [], box: null, strokes: [], reply: null, choice: null, ground: NOTHING});
const DEEPEST = 100;

/** The model's answer to the prompts of a state, asked for once what was asked before is answered. */
class Reply {
  constructor(before, prompts, predict) {
    this.answer = null;
    this.error = null;
    this.done = this.ask(before, prompts, predict);  // never rejected
  }

  get pending() { return !this.answer && !this.error; }

  async ask(before, {points, box}, predict) {
    const earlier = before?.reply;
    await earlier?.done;
    if (earlier?.error) {
      this.error = earlier.error;
      return;
    }
    const previous = earlier ? {id: earlier.answer.id, mask: chosen(before)} : null;
    try {
      const {id, best, masks} = await predict({points, box, previous});
      this.answer = {id, best, masks: masks.map(m => ({...m, mask: Mask.fromRle(m.segmentation)}))};
    } catch (error) {
      this.error = error;
    }
  }
}

export class Edit {
  /** @param onChange called after every change
   *  @param onError called with the error of a prompt that the model did not answer; it is taken back */
  constructor(onChange, onError) {
    Object.assign(this, {onChange, onError});
    this.predict = null;   // request => answer of the server
    this.pixels = [0, 0];  // width and height of the image
    this.clear(null, null);
  }

  /** Starts on an image. */
  open(pixels, predict) {
    Object.assign(this, {pixels, predict});
  }

  /** Starts anew: with nothing, or with a saved mask to go on with. */
  reset(record = null, mask = null) {
    this.clear(record, mask);
    this.onChange();
  }

  clear(record, mask) {
    this.record = record;  // the saved mask that is edited
    this.undone = [];
    this.done = [];
    this.live = null;
    this.state = EMPTY;
    if (record) {
      const of = type => record.prompts.filter(prompt => prompt.type === type);
      const box = of("box").at(-1), strokes = of("brush");
      this.state = {...EMPTY, points: of("point").map(({x, y, label}) => ({x, y, label})),
                    box: box ? [box.x0, box.y0, box.x1, box.y1] : null, strokes, ground: {mask, strokes: strokes.length}};
    }
    this.first = this.state;
  }

  /** The work as it is, to be saved once it is answered; this begins anew. */
  detach() {
    this.endStroke();
    const work = Object.assign(Object.create(Edit.prototype), this);
    this.reset();
    return work;
  }

  /** Goes on with work that was detached and could not be saved. */
  resume(work) {
    for (const field of ["record", "done", "undone", "state", "first"]) this[field] = work[field];
    this.fail();
    this.onChange();
  }

  get empty() { return this.state === EMPTY; }

  get changed() { return this.state !== this.first; }

  /** Whether an answer is on its way. */
  get pending() { return this.state.reply?.pending ?? false; }

  get answer() { return this.state.reply?.answer ?? null; }

  /** The number of the answer's mask that is shown. */
  get choice() { return this.answer ? chosen(this.state) : this.state.choice; }

  /** Resolves once nothing is on its way. */
  async answered() {
    while (this.pending) await this.state.reply.done;
  }

  get ground() {
    return this.answer ? {mask: this.answer.masks[this.choice].mask, strokes: 0} : this.state.ground;
  }

  /** The mask as it is shown and saved, or null. */
  get mask() {
    const {state, answer} = this;
    if (state === EMPTY) return null;
    if (state.shown === undefined || state.shownOf !== answer) {
      const {mask, strokes} = this.ground, over = state.strokes.slice(strokes);
      state.shown = mask;
      if (over.length) {
        state.shown = mask?.copy() ?? new Mask(...this.pixels);
        for (const stroke of over) state.shown.stroke(stroke);
        state.shown.measure();
      }
      state.shownOf = answer;
    }
    return state.shown;
  }

  point(x, y, label) { this.ask({points: [...this.state.points, {x, y, label}]}, this.state); }

  boxed(box) { this.ask({box}, this.state); }

  /** Takes a point away. The others are asked for anew, since the mask so far knows of it. */
  removePoint(point) { this.ask({points: this.state.points.filter(other => other !== point)}, null); }

  choose(choice) {
    if (!this.state.reply || choice === this.choice) return;
    if (this.pending || this.answer.masks[choice].mask.area) this.put({choice});
  }

  beginStroke(stroke) {
    this.live = {stroke, mask: this.mask?.copy() ?? new Mask(...this.pixels)};
  }

  /** Paints the path's points from `from` on, without a step of undo. Returns the mask and the box that was touched. */
  extendStroke(from) {
    const {stroke, mask} = this.live;
    return [mask, mask.stroke(stroke, from)];
  }

  endStroke() {
    if (!this.live) return;  // it was dropped meanwhile
    const {stroke, mask} = this.live;
    this.live = null;
    this.put({strokes: [...this.state.strokes, stroke], shown: mask.measure(), shownOf: this.answer});
  }

  /** A step that the model is asked about. */
  ask(change, before) {
    const state = {...this.state, ...change, choice: null, reply: null, ground: this.ground};
    if (state.points.length || state.box) {
      state.reply = new Reply(before, state, this.predict);
      state.reply.done.then(() => this.arrived(state.reply));
    } else {
      state.ground = this.first.ground;
    }
    this.put(state);
  }

  put(change) {
    this.done.push(this.state);
    if (this.done.length > DEEPEST) this.done.shift();
    this.undone = [];
    this.state = {...this.state, shown: undefined, ...change};
    this.onChange();
  }

  undo() {
    if (this.live) this.live = null;
    else if (this.done.length) {
      this.undone.push(this.state);
      this.state = this.done.pop();
    } else return false;
    this.onChange();
    return true;
  }

  redo() {
    if (!this.undone.length) return;
    this.done.push(this.state);
    this.state = this.undone.pop();
    this.onChange();
  }

  arrived(reply) {
    if (![...this.done, this.state, ...this.undone].some(state => state.reply === reply)) return;  // of work that is no more
    if (reply.error) this.fail();
    if (this.live) {  // the stroke under way goes over the answer
      const {stroke} = this.live;
      this.beginStroke(stroke);
      this.live.mask.stroke(stroke);
      this.live.mask.measure();
    }
    this.onChange();
    if (reply.error) this.onError(reply.error);
  }

  /** Takes a prompt back that was not answered, and what was asked after it. Strokes stay. */
  fail() {
    const history = [...this.done, this.state], at = history.findIndex(state => state.reply?.error);
    this.undone = [];
    if (at < 0) return;
    const {strokes} = this.state;
    this.done = history.slice(0, at);
    this.state = this.done.pop() ?? this.first;
    if (strokes.length > this.state.strokes.length) {
      this.done.push(this.state);
      this.state = {...this.state, strokes, shown: undefined};
    }
  }

  /** The prompts as they are kept with the mask. */
  prompts() {
    const {points, box, strokes} = this.state;
    return [
      ...points.map(point => ({type: "point", ...point})),
      ...(box ? [{type: "box", x0: box[0], y0: box[1], x1: box[2], y1: box[3]}] : []),
      ...strokes,
    ];
  }

  /** predicted_iou and stability_score of the model's mask below the strokes, or of the saved one. */
  scores() {
    const source = this.answer ? this.answer.masks[this.choice] : this.record;
    return {predicted_iou: source?.predicted_iou ?? null, stability_score: source?.stability_score ?? null};
  }
}

/** The number of a state's mask in its answer: the chosen one, unless that is empty. */
function chosen({reply: {answer}, choice}) {
  return choice !== null && answer.masks[choice].mask.area ? choice : answer.best;
}
