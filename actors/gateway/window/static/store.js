// What the fleet has told, kept for as long as it is drawn.

/** Seconds of history on a timeline. */
export const SHOWN = 90;
const RATE = 5; // seconds over which rates are taken

export class Fleet {
  constructor() {
    this.now = null;
    this.at = 0;
    this.history = new Map();
  }

  /** From when on the history is asked for: a little before the last answer, since engines don't tell all at one time. */
  get since() {
    return Math.max(0, this.at - 12);
  }

  /** An answer of the API. */
  add(answer) {
    this.now = answer;
    this.at = answer.at;
    const there = new Set();
    for (const engine of answer.engines) {
      there.add(engine.worker);
      const kept = this.history.get(engine.worker) ?? { steps: [], spans: [] };
      this.history.set(engine.worker, kept);
      kept.steps = merged(kept.steps, engine.steps, (step) => step.at, (step) => step.at, answer.at);
      kept.spans = merged(kept.spans, engine.spans, (span) => span.ended, name, answer.at);
    }
    for (const name of this.history.keys()) if (!there.has(name)) this.history.delete(name);
  }

  of(engine) {
    return this.history.get(engine.worker) ?? { steps: [], spans: [] };
  }

  /** Tokens a second that an engine drew, and prompt tokens that it computed. An engine that tells no steps is judged by calls. */
  rate(engine) {
    const { steps, spans } = this.of(engine);
    const late = steps.filter((step) => step.at > this.at - RATE);
    if (steps.length) return { drawn: sum(late, (s) => s.drawn) / RATE, prefilled: sum(late, (s) => s.prefilled) / RATE };
    const ended = spans.filter((span) => span.ended > this.at - RATE);
    return { drawn: sum(ended, (s) => s.output) / RATE, prefilled: sum(ended, (s) => s.prompt - s.cached) / RATE };
  }

  /** The share of an engine's KV pages that hold something that somebody uses; null where that is not told. */
  static memory(engine) {
    const { pages, free_pages: free, evictable_pages: cached } = engine.load;
    return pages ? { used: (pages - free - cached) / pages, cached: cached / pages } : null;
  }
}

export function sum(items, of) {
  return items.reduce((total, item) => total + of(item), 0);
}

const name = (span) => `${span.tenant} ${span.session} ${span.call}`;

/** Answers overlap: what is there by its name is not taken twice. */
function merged(kept, more, time, nameOf, now) {
  const known = new Set(kept.map(nameOf));
  return [...kept, ...more.filter((item) => !known.has(nameOf(item)))].filter((item) => time(item) > now - SHOWN - 5);
}
