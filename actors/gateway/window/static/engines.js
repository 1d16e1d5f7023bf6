// The engines: how full each is, and its batch over the last moments: which calls were in it, waiting, in prefill, in decode.

import { count, el, many, say, seconds, show, svg } from "./dom.js";
import { link } from "./session.js";
import { Fleet, SHOWN } from "./store.js";

const LANE = 15; // pixels of a call's bar, with the gap below it
const MOST_LANES = 24;
const SPANS = [12, 30, 60]; // seconds shown, while there is no more to show
const BATCH = 56; // pixels of the curve above the lanes

export class EnginesView {
  constructor(fleet) {
    this.fleet = fleet;
    this.cards = new Map();
    this.list = el("div", { class: "cards" });
    this.others = el("div");
    this.element = el("section", {}, el("h1", {}, "Engines"), this.list, this.others);
  }

  refresh() {
    const { now } = this.fleet;
    if (!now) return;
    for (const engine of now.engines) if (!this.cards.has(engine.worker)) this.cards.set(engine.worker, new EngineCard(this.fleet));
    for (const name of this.cards.keys()) if (!now.engines.some((engine) => engine.worker === name)) this.cards.delete(name);
    const cards = now.engines.map((engine) => this.cards.get(engine.worker).element);
    show(this.list, cards.length ? cards : el("p", { class: "empty" }, "No engine shows itself now."));
    for (const engine of now.engines) this.cards.get(engine.worker).refresh(engine, now); // in the page by now: it has a width
    const others = now.workers.filter((worker) => !this.cards.has(worker.worker));
    show(this.others, others.length ? otherWorkers(others) : null);
  }

  close() {}
}

function otherWorkers(workers) {
  const rows = workers.map((worker) => el("tr", {},
    el("th", { scope: "row" }, worker.worker), el("td", {}, worker.kind), el("td", {}, worker.serves.join(", ")),
    el("td", { class: "number" }, `${worker.running} of ${worker.capacity}`), el("td", {}, worker.draining ? "draining" : "")));
  return el("div", {}, el("h2", {}, "Other workers"), el("div", { class: "wide" }, el("table", {},
    el("thead", {}, el("tr", {}, ...["Worker", "Kind", "Serves", "Running", ""].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows))));
}

class EngineCard {
  constructor(fleet) {
    this.fleet = fleet;
    this.name = el("h2");
    this.model = el("p", { class: "soft" });
    this.figures = el("dl", { class: "figures" });
    this.timeline = new Timeline(fleet);
    this.calls = el("ul", { class: "calls-now" });
    this.element = el("article", { class: "card" }, el("div", { class: "card-head" }, this.name, this.model), this.figures, this.timeline.element, this.calls);
  }

  refresh(engine, { operator, workers }) {
    say(this.name, engine.worker);
    const worker = workers.find((one) => one.worker === engine.worker);
    say(this.model, engine.serves.join(", ") + (worker?.draining ? " · draining" : ""));
    show(this.figures, this.told(engine, operator).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    this.timeline.refresh(engine);
    const shown = engine.calls.slice(0, 12);
    const more = engine.calls.length + engine.left_out - shown.length;
    show(this.calls, shown.map((call) => callNow(call)), more ? el("li", { class: "soft" }, `and ${count(more)} more`) : null);
  }

  told(engine, operator) {
    const rate = this.fleet.rate(engine);
    const batch = engine.calls.filter((call) => call.phase === "prefill" || call.phase === "decode").length;
    const told = [["Calls", operator ? `${count(engine.calls.length + engine.left_out)} of ${count(engine.capacity)}` : count(engine.calls.length)], ["In the batch", count(batch)]];
    told.push(["Decode", `${count(rate.drawn)} tok/s`], ["Prefill", `${count(rate.prefilled)} tok/s`]);
    const memory = Fleet.memory(engine);
    if (memory) told.push(["KV in use", `${Math.round(100 * memory.used)} %`], ["KV cached", `${Math.round(100 * memory.cached)} %`]);
    if (engine.load.hit_tokens !== undefined) told.push(["Prompt tokens saved", count(engine.load.hit_tokens)]);
    return told;
  }
}

function callNow(call) {
  const how = call.phase === "decode" ? many(call.produced, "token") : call.phase === "prefill" && call.tokens ? `${count(call.computed)} of ${count(call.tokens)}` : "";
  return el("li", {}, el("a", { href: link.call(call.tenant, call.session, call.call) }, call.function || call.call),
    el("span", { class: `state ${call.phase}` }, call.phase), el("span", { class: "soft" }, how));
}

/** A batch over time: a curve of what ran and waited, and below it a bar for each call. Redrawn as a whole, once a second. */
class Timeline {
  constructor(fleet) {
    this.fleet = fleet;
    this.drawing = svg("svg", { class: "timeline", role: "img" });
    this.span = el("span", { class: "soft" });
    this.element = el("figure", {}, this.drawing, el("figcaption", {},
      ...[["queued", "not begun"], ["prefill", "to the first token"], ["decode", "decode"]].map(([state, what]) => el("span", {}, el("span", { class: `dot state ${state}` }), what)),
      this.span));
  }

  refresh(engine) {
    const width = this.drawing.clientWidth || 600, end = this.fleet.at;
    const { steps, spans } = this.fleet.of(engine);
    const bars = inLanes(barsOf(engine.calls, spans, end));
    const oldest = Math.min(...bars.map((bar) => bar.received), ...steps.map((step) => step.at));
    const span = SPANS.find((seconds) => oldest > end - seconds) ?? SHOWN;
    const x = (time) => width * (1 - (end - time) / span);
    say(this.span, `the last ${span} s`);
    const lanes = Math.min(Math.max(1, ...bars.map((bar) => bar.lane + 1)), MOST_LANES);
    const height = BATCH + 18 + lanes * LANE;
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.drawing.setAttribute("height", height);
    this.drawing.setAttribute("aria-label", `Batch of ${engine.worker} over the last ${span} seconds: ${many(engine.calls.length, "call")} now`);
    show(this.drawing, axis(x, end, height, span), ...curve(steps, bars, x, end), ...bars.filter((bar) => bar.lane < MOST_LANES).map((bar) => drawn(bar, x)));
  }
}

function axis(x, end, height, span) {
  const group = svg("g", { class: "axis" });
  for (let ago = 0; ago <= span; ago += span / 6) {
    const at = x(end - ago);
    group.append(svg("line", { x1: at, x2: at, y1: 0, y2: height }));
    if (ago && ago < span) group.append(svg("text", { x: at + 3, y: BATCH + 12 }, `−${ago} s`));
  }
  return group;
}

/** What ran (and, on top of it, waited) over time, from the engine's steps, or, where it tells none, from the bars. */
function curve(steps, bars, x, end) {
  const points = steps.length ? steps.map((step) => [step.at, step.running, step.waiting, step.seconds]) : counted(bars, end);
  if (!points.length) return [];
  const most = Math.max(1, ...points.map(([, running, waiting]) => running + waiting));
  const y = (n) => BATCH - 2 - ((BATCH - 14) * n) / most;
  // An engine that does nothing tells no steps: a gap is an empty batch.
  const stairs = (of) => {
    let path = `M${x(points[0][0])} ${y(0)}`, last = null;
    for (const point of points) {
      if (last !== null && point[0] - last > 0.5) path += `H${x(last).toFixed(1)}V${y(0)}`;
      path += `H${x(point[0]).toFixed(1)}V${y(of(point)).toFixed(1)}`;
      last = point[0] + point[3];
    }
    return `${path}H${x(Math.min(last, end)).toFixed(1)}V${y(0)}Z`;
  };
  return [
    svg("path", { class: "area waiting", d: stairs(([, running, waiting]) => running + waiting) }),
    svg("path", { class: "area running", d: stairs(([, running]) => running) }),
    svg("text", { class: "scale", x: 4, y: 11 }, `${most} in the batch`),
  ];
}

function counted(bars, end) {
  const changes = bars.flatMap((bar) => [[bar.began, 1], [bar.ended, -1]]).filter(([at]) => at < end).sort((a, b) => a[0] - b[0]);
  let running = 0;
  return changes.map(([at, change], i) => [at, (running += change), 0, (changes[i + 1]?.[0] ?? end) - at]);
}

/** Calls as bars: those that have ended with all their times, those that go on with what is known of them. */
function barsOf(calls, spans, end) {
  const ended = spans.map((span) => ({ ...span, href: link.call(span.tenant, span.session, span.call) }));
  const known = new Set(ended.map((bar) => bar.href));
  const going = calls.map((call) => ({
    ...call,
    href: link.call(call.tenant, call.session, call.call),
    received: call.since, began: call.since, ended: end, going: true,
  }));
  return [...ended, ...going.filter((bar) => !known.has(bar.href))].sort((a, b) => a.received - b.received);
}

/** The lowest free lane for each bar. */
function inLanes(bars) {
  const ends = [];
  return bars.map((bar) => {
    let lane = ends.findIndex((end) => end <= bar.received);
    if (lane < 0) lane = ends.length;
    ends[lane] = bar.ended;
    return { ...bar, lane };
  });
}

function drawn(bar, x) {
  const top = BATCH + 18 + bar.lane * LANE;
  const part = (from, to, state) => svg("rect", {
    class: `state ${state}`, x: Math.max(x(from), 0), y: top, height: LANE - 4, rx: 2, width: Math.max(Math.min(x(to), x(bar.ended)) - Math.max(x(from), 0), 1.5),
  });
  const parts = bar.going && bar.first === null
    ? [part(bar.received, bar.ended, bar.phase === "prefill" ? "prefill" : "queued")]
    : [part(bar.received, bar.began, "queued"), part(bar.began, bar.first, "prefill"), part(bar.first, bar.ended, "decode")].filter((_, i) => [bar.began - bar.received, bar.first - bar.began, 1][i] > 0.02);
  const took = bar.going ? `${bar.phase}, there for ${seconds(bar.ended - bar.received)}` : `${seconds(bar.ended - bar.received)}, first token after ${seconds(bar.first - bar.received)}`;
  const wide = x(bar.ended) - Math.max(x(bar.received), 0), label = bar.function || bar.call;
  const text = wide > label.length * 6.4 + 8 ? svg("text", { class: "label", x: Math.max(x(bar.received), 0) + 4, y: top + LANE - 6.5 }, label) : null;
  return svg("a", { href: bar.href, tabindex: -1 }, svg("title", {}, `${label}: ${took}`), parts, text);
}
