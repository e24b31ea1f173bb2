// Seconds of work. Time with the page out of sight is none.

let seen = 0, shownAt = document.hidden ? null : performance.now();  // milliseconds in sight before, and since when

document.addEventListener("visibilitychange", () => {
  if (shownAt !== null) seen += performance.now() - shownAt;
  shownAt = document.hidden ? null : performance.now();
});

const inSight = () => seen + (shownAt === null ? 0 : performance.now() - shownAt);

export class Clock {
  constructor() { this.restart(); }

  restart() { this.begun = inSight(); }

  get seconds() { return Math.round((inSight() - this.begun) / 100) / 10; }
}
