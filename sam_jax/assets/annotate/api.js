// Requests, and an outbox: what is to be saved stays in the browser until the server has it.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;  // 0: no answer
  }
}

/** JSON of an answer. Throws ApiError. */
export async function call(method, path, annotator, body, query = {}) {
  const address = `${path}?${new URLSearchParams({annotator, ...query})}`;
  const options = {method, headers: {}, cache: "no-store"};
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer, text;
  try {
    answer = await fetch(address, options);
    text = await answer.text();
  } catch {
    throw new ApiError(0, "no connection to the server");
  }
  let content = null;
  try { content = text ? JSON.parse(text) : null; } catch { /* a proxy's page, say */ }
  if (!answer.ok) throw new ApiError(answer.status, content?.error ?? `the server answered ${answer.status}`);
  return content;
}

const PREFIX = "sam_jax.outbox.";
const LONGEST_WAIT = 10_000;  // milliseconds between two tries

/** Sends one after another, again and again until each has arrived: saving a mask twice under its id does no harm.
 *  A copy in localStorage outlives the browser. */
export class Outbox {
  constructor(onChange, onRefused) {
    this.onChange = onChange;    // (waiting, problem or null)
    this.onRefused = onRefused;  // (item, ApiError): the server will never take it
    this.items = [];
    this.sending = false;
    this.number = 0;
    for (const key of Object.keys(localStorage).filter(k => k.startsWith(PREFIX)).sort()) {
      try { this.items.push({key, ...JSON.parse(localStorage.getItem(key))}); } catch { localStorage.removeItem(key); }
    }
    this.wait = 0;
    addEventListener("online", () => this.hurry());
    this.send();
  }

  push(method, path, annotator, body) {
    const key = `${PREFIX}${String(Date.now()).padStart(15, "0")}.${String(this.number++).padStart(6, "0")}`;
    const item = {method, path, annotator, body};
    try { localStorage.setItem(key, JSON.stringify(item)); } catch { /* full: it is still in memory */ }
    this.items.push({key, ...item});
    this.hurry();
  }

  /** Resolves once all has arrived. */
  async drained() {
    while (this.items.length) await new Promise(resolve => { this.resume = resolve; });
  }

  hurry() {
    this.wait = 0;
    this.wake?.();
    this.send();
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    while (this.items.length) {
      const item = this.items[0];
      this.onChange(this.items.length, null);
      try {
        await call(item.method, item.path, item.annotator, item.body);
        this.drop(item);
      } catch (error) {
        const passing = error.status === 0 || error.status >= 500 || [401, 408, 429].includes(error.status);
        if (!passing) {
          this.drop(item);
          this.onRefused(item, error);
          continue;
        }
        this.onChange(this.items.length, error.status === 401 ? "the server wants its token" : error.message);
        this.wait = Math.min(LONGEST_WAIT, this.wait * 2 || 500);
        await new Promise(resolve => { this.wake = resolve; setTimeout(resolve, this.wait); });
      }
    }
    this.sending = false;
    this.wait = 0;
    this.onChange(0, null);
    this.resume?.();
  }

  drop(item) {
    this.items.shift();
    localStorage.removeItem(item.key);
  }
}
