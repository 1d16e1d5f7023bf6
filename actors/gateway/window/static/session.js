// One session: its graph, and beside it the call that was chosen: why it is where it is, when it was there, what it reads and writes.

import * as api from "./api.js";
import { el, many, say, seconds, show } from "./dom.js";
import { GraphView } from "./graph.js";

// What the states of a call mean, in the order in which it has them.
const STATES = {
  waiting: "for a variable, or for somebody who wants what it makes",
  ready: "all that it reads is there, and no engine or agent has been given it yet",
  queued: "its engine has it, and has not begun it",
  prefill: "its engine computes the prompt",
  decode: "its engine draws tokens",
  running: "its engine or agent has it",
  done: "",
  failed: "",
  cancelled: "",
};
const ENDED = ["done", "failed", "cancelled"];
const AGAIN = 3000; // milliseconds until a session that was not found is asked for again
const LONGEST = 200_000; // characters of a text that are shown while it streams

/** `#/sessions/<tenant>/<session>/calls/<call>` and back. */
export const link = {
  session: (tenant, session) => `#/sessions/${encodeURIComponent(tenant)}/${encodeURIComponent(session)}`,
  call: (tenant, session, call) => `${link.session(tenant, session)}/calls/${encodeURIComponent(call)}`,
  variable: (tenant, session, name) => `${link.session(tenant, session)}/variables/${encodeURIComponent(name)}`,
};

export class SessionView {
  constructor(where) {
    this.where = where;
    this.picture = null;
    this.due = 0;
    this.graph = new GraphView((place) => (location.hash = this.linkOf(place)));
    this.title = el("h1", {}, where.session);
    this.counts = el("p", { class: "counts" });
    this.ended = el("p", { class: "note", role: "status", hidden: true });
    const button = (label, title, action) => el("button", { type: "button", title, "aria-label": title, onclick: action }, label);
    const tools = el("div", { class: "tools", role: "group", "aria-label": "View of the graph" },
      button("−", "Smaller", () => this.graph.zoom(0.8)),
      button("+", "Larger", () => this.graph.zoom(1.25)),
      button("Fit", "The whole graph", () => this.graph.fit()));
    this.panel = el("aside", { class: "panel", "aria-label": "The chosen call", hidden: true });
    this.stage = el("div", { class: "stage" }, this.graph.element, tools);
    this.element = el("section", { class: "session" },
      el("div", { class: "head" }, el("a", { class: "back", href: "#/sessions" }, "All sessions"), this.title, this.counts, this.ended),
      el("div", { class: "split" }, this.stage, this.panel));
    this.call = null;
  }

  linkOf(place) {
    const node = this.picture.nodes[place];
    const { tenant, session } = this.where;
    return node.kind === "call" ? link.call(tenant, session, node.id) : link.variable(tenant, session, node.id);
  }

  /** Show a call or a variable, by its id; null for none. */
  choose(kind, id) {
    this.wanted = id === null ? null : { kind, id };
    const place = this.wanted && this.picture ? this.picture.nodes.findIndex((node) => node.kind === kind && node.id === id) : -1;
    this.call?.close();
    this.call = null;
    this.graph.select(place);
    this.panel.hidden = place < 0;
    this.element.classList.toggle("chosen", place >= 0);
    if (place >= 0) {
      this.call = new CallPanel(this, place);
      show(this.panel, this.call.element);
      this.graph.reveal(place);
    }
  }

  /** Look again, if it is time. */
  async refresh(signal) {
    if (performance.now() < this.due) return;
    let progress;
    try {
      progress = await api.progress(this.where, signal);
      if (this.picture?.shape !== progress.shape) await this.redraw(signal);
      if (this.picture.shape !== progress.shape) return; // it has grown meanwhile
    } catch (error) {
      if (error.status !== 404) throw error;
      this.end();
      return;
    }
    this.due = performance.now() + 1000 * progress.again - 300;
    this.ended.hidden = true;
    this.graph.setProgress(progress);
    this.tell(progress);
    this.call?.refresh(signal);
  }

  async redraw(signal) {
    this.picture = await api.picture(this.where, signal);
    say(this.title, this.picture.name || this.picture.session);
    this.title.title = this.picture.session;
    this.graph.setPicture(this.picture);
    if (this.wanted && !this.call) this.choose(this.wanted.kind, this.wanted.id);
    else if (this.call) this.call.place = this.graph.selected;
  }

  tell({ states }) {
    const calls = new Set(this.picture.nodes.flatMap((node, place) => (node.kind === "call" ? [place] : [])));
    const parts = Object.entries(STATES).flatMap(([state, means]) => {
      const n = (states[state] ?? []).filter((place) => calls.has(place)).length;
      return n ? [el("span", { class: `state ${state}`, title: means || false }, `${n} ${state}`)] : [];
    });
    const more = this.picture.left_out ? ` (${many(this.picture.left_out, "more call")} not drawn)` : "";
    show(this.counts, el("span", {}, many(calls.size, "call") + more), parts);
  }

  end() {
    this.due = performance.now() + AGAIN; // a scheduler that has just taken over may not know it yet
    this.ended.hidden = false;
    say(this.ended, this.picture ? "This session has ended: this is what was seen of it last." : "There is no such session: it has ended, or never was.");
  }

  close() {
    this.call?.close();
  }
}

class CallPanel {
  constructor(view, place) {
    this.view = view;
    this.place = place;
    this.leaving = new AbortController();
    this.texts = new Map();
    this.node = view.picture.nodes[place];
    this.state = el("p", { class: "badge" });
    this.facts = el("dl", { class: "facts" });
    this.times = el("div");
    this.reasons = el("ul", { class: "reasons" });
    const { tenant, session } = view.where;
    const call = this.node.kind === "call";
    this.element = el("div", {},
      el("div", { class: "panel-head" },
        el("h2", {}, this.node.label),
        el("a", { class: "close", href: link.session(tenant, session), "aria-label": "Close" }, "✕")),
      this.state,
      this.facts,
      this.times,
      call ? el("h3", {}, "Why here, why then") : null,
      call ? this.reasons : null,
      el("h3", {}, call ? "Writes" : "Text"),
      ...this.node.outputs.map((name) => this.writes(name)),
      ...this.reads());
    this.refresh();
  }

  close() {
    this.leaving.abort();
  }

  async refresh() {
    const state = this.view.graph.stateOf(this.place);
    this.state.className = `badge state ${state}`;
    say(this.state, state);
    for (const text of this.texts.values()) text.follow(state);
    const told = `${state} ${[...this.texts.values()].filter((text) => text.ending).length}`;
    const over = ENDED.includes(state) && told === this.told; // nothing changes any more
    if (this.node.kind !== "call" || this.asking || over) return;
    this.asking = true;
    try {
      await this.explain(state);
      this.told = told;
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 404) throw error;
    } finally {
      this.asking = false;
    }
  }

  async explain(state) {
    const seen = await api.why(this.view.where, this.node.id, this.leaving.signal);
    show(this.reasons, seen.reasons.map((reason) => el("li", {}, reason)));
    const going = this.view.graph.going.get(this.place);
    const ended = [...this.texts.values()].map((text) => text.ending).find((ending) => ending?.usage);
    const facts = [["Call", this.node.id]];
    const worker = seen.worker ?? ended?.timing?.worker;
    if (worker) facts.push(["Engine", worker]);
    if (seen.seconds !== null && seen.seconds !== undefined) facts.push([seen.state === "running" ? "There for" : "Ready for", seconds(seen.seconds)]);
    if (going?.tokens) facts.push(["Context", `${many(going.tokens, "token")}, ${going.cached} found in the cache`]);
    if (ended) facts.push(["Prompt", `${many(ended.usage.prompt, "token")}, ${ended.usage.cached} found in the cache`]);
    if (ended) facts.push(["Output", many(ended.usage.output, "token")]);
    show(this.facts, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    show(this.times, ended?.timing ? timesOf(ended.timing) : null);
  }

  writes(name) {
    const text = new VariableText(this.view.where, name, this.leaving.signal, () => this.refresh());
    this.texts.set(name, text);
    return text.element;
  }

  reads() {
    const { picture, graph, where } = this.view;
    const edges = graph.before[this.place];
    if (!edges.length) return [];
    const items = edges.map((edge) => {
      const from = picture.nodes[edge.source];
      return el("li", {}, el("a", { href: this.view.linkOf(edge.source) }, from.kind === "call" ? from.label : edge.variable), ` ${edge.variable === from.label ? "" : edge.variable}`);
    });
    return [el("h3", {}, "Reads"), el("ul", { class: "reads" }, items)];
  }
}

/** Where a call's time went, as one bar with its legend. */
function timesOf({ received, began, first, ended }) {
  const parts = [
    ["reading its inputs", "queued", began - received],
    ["queue and prefill", "prefill", first - began],
    ["decode", "decode", ended - first],
  ];
  const whole = Math.max(ended - received, 1e-6);
  const bar = el("div", { class: "times-bar", "aria-hidden": true });
  for (const [, state, took] of parts) {
    const part = el("span", { class: `state ${state}` });
    part.style.flexGrow = String(Math.max(took / whole, 0.005));
    bar.append(part);
  }
  const legend = parts.map(([what, state, took]) => el("li", {}, el("span", { class: `dot state ${state}` }), `${what} ${seconds(took)}`));
  return el("div", { class: "times" }, bar, el("ul", {}, legend));
}

/** A variable's text: as it is, or as it comes. To look starts nothing: only what is being made is streamed. */
class VariableText {
  constructor(where, name, signal, changed) {
    this.where = where;
    this.name = name;
    this.signal = signal;
    this.changed = changed;
    this.text = el("pre", { tabindex: 0, "aria-label": `Text of ${name}` });
    this.status = el("span", { class: "status" });
    this.element = el("section", { class: "variable" }, el("p", { class: "name" }, el("code", {}, name), this.status), this.text);
    this.busy = this.done = false;
    this.ending = null;
    this.length = 0;
  }

  async follow(state) {
    if (this.busy || this.done) return;
    this.busy = true;
    try {
      if (ENDED.includes(state)) await this.read();
      else if (["queued", "prefill", "decode", "running"].includes(state)) await this.stream();
      else say(this.status, "not there yet");
    } catch (error) {
      if (error.name !== "AbortError") say(this.status, error.message);
    } finally {
      this.busy = false;
    }
  }

  async stream() {
    say(this.status, "streams");
    this.text.replaceChildren();
    this.length = 0;
    this.end(await api.stream(this.where, this.name, (piece) => this.add(piece), this.signal));
  }

  async read() {
    this.end(await api.variable(this.where, this.name, this.signal));
  }

  add(piece) {
    const bottom = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 4;
    if (this.length < LONGEST) this.text.append(piece);
    this.length += piece.length;
    if (bottom) this.text.scrollTop = this.text.scrollHeight;
  }

  end(ending) {
    if (ending.state === "pending") return;
    this.done = true;
    this.ending = ending;
    if (ending.state === "value") {
      say(this.text, ending.text ?? "");
      say(this.status, ending.finish === "length" ? "cut at its limit" : "");
    } else {
      say(this.text, ending.message ?? "");
      say(this.status, ending.state === "failed" ? `failed: ${ending.code}` : "cancelled");
    }
    this.changed();
  }
}
