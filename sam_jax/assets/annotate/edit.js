// The mask in work: prompts, strokes, the model's answer, and what undo goes back to. States are never changed, only replaced.

import {Mask} from "./masks.js";

// answered: what the answer is of; shown: the mask, undefined until it is computed.
const EMPTY = Object.freeze({points: [], box: null, strokes: [], answer: null, choice: 0, answered: null, base: null, shown: null});
const DEEPEST = 100;

export class Edit {
  /** @param predict (request, signal) => answer of the server
   *  @param onChange called after every change */
  constructor(predict, onChange, onError) {
    Object.assign(this, {predict, onChange, onError});
    this.pixels = [0, 0];  // width and height of the image
    this.clear(null, null);
  }

  /** Starts anew: with nothing, or with a saved mask to go on with. */
  reset(record = null, mask = null) {
    this.abort?.abort();
    this.clear(record, mask);
    this.onChange();
  }

  clear(record, mask) {
    this.record = record;  // the saved mask that is edited
    this.undone = [];
    this.done = [];
    this.waiting = null;
    this.live = null;
    if (!record) {
      this.state = EMPTY;
    } else {
      const of = type => record.prompts.filter(prompt => prompt.type === type);
      const box = of("box").at(-1);
      this.state = {...EMPTY, base: mask, shown: mask, points: of("point").map(({x, y, label}) => ({x, y, label})),
                    box: box ? [box.x0, box.y0, box.x1, box.y1] : null, strokes: of("brush")};
      this.state.answered = prompted(this.state);
    }
    this.first = this.state;
  }

  get empty() { return this.state === EMPTY; }

  get changed() { return this.state !== this.first; }

  /** The mask as it is shown and saved, or null. */
  get mask() {
    const state = this.state;
    if (state.shown === undefined) {
      const ground = state.answer ? state.answer.masks[state.choice].mask : state.base;
      // What a base was painted with is in it already.
      const strokes = state.answer ? state.strokes : state.strokes.slice(state.base ? this.first.strokes.length : 0);
      if (!strokes.length) state.shown = ground;
      else {
        state.shown = ground ? ground.copy() : new Mask(...this.pixels);
        for (const stroke of strokes) state.shown.stroke(stroke);
        state.shown.measure();
      }
    }
    return state.shown;
  }

  point(x, y, label) { this.put({points: [...this.state.points, {x, y, label}]}); }

  boxed(box) { this.put({box}); }

  choose(choice) {
    const {answer} = this.state;
    if (answer && choice !== this.state.choice && answer.masks[choice].mask.area) this.put({choice});
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
    const {stroke, mask} = this.live;
    this.live = null;
    this.put({strokes: [...this.state.strokes, stroke], shown: mask.measure()});
  }

  put(change) {
    this.done.push(this.state);
    if (this.done.length > DEEPEST) this.done.shift();
    this.undone = [];
    this.enter({...this.state, shown: undefined, ...change});
  }

  undo() {
    if (!this.done.length) return false;
    this.undone.push(this.state);
    this.enter(this.done.pop());
    return true;
  }

  redo() {
    if (!this.undone.length) return false;
    this.done.push(this.state);
    this.enter(this.undone.pop());
    return true;
  }

  enter(state) {
    this.abort?.abort();
    this.waiting = null;
    this.state = state;
    if (state.answered !== prompted(state)) this.waiting = this.ask(state);
    this.onChange();
  }

  async ask(state) {
    const {points, box, answer, choice} = state;
    if (!points.length && !box) {  // undone to strokes alone
      Object.assign(state, {answer: null, answered: prompted(state), shown: undefined});
      this.onChange();
      return;
    }
    this.abort = new AbortController();
    const request = {points, box, previous: answer ? {id: answer.id, mask: choice} : null};
    try {
      const content = await this.predict(request, this.abort.signal);
      const masks = content.masks.map(m => ({...m, mask: Mask.fromRle(m.segmentation)}));
      // The same step, now with its answer: undo goes back to the step before.
      Object.assign(state, {answer: {id: content.id, masks}, choice: content.best, answered: prompted(state), shown: undefined});
    } catch (error) {
      if (error.name === "AbortError") return;
      this.onError(error);
      if (this.state === state) {
        this.waiting = null;
        this.undo();
        this.undone = [];
      }
      return;
    }
    if (this.state === state) {
      this.waiting = null;
      this.onChange();
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
    const {answer, choice} = this.state, source = answer ? answer.masks[choice] : this.record;
    return {predicted_iou: source?.predicted_iou ?? null, stability_score: source?.stability_score ?? null};
  }
}

/** What an answer is of. */
function prompted({points, box}) {
  return points.length || box ? JSON.stringify([points, box]) : null;
}
