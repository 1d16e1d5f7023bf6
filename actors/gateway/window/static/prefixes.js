// The prefix trees: what prompts begin with in common, which calls share it now, and the tokens that it has saved.

import { count, el, many, say, show } from "./dom.js";
import { link } from "./session.js";
import { sum } from "./store.js";

const MOST_USERS = 6;

export class PrefixesView {
  constructor(fleet) {
    this.fleet = fleet;
    this.lead = el("p", { class: "lead" });
    this.trees = el("div");
    this.element = el("section", {}, el("h1", {}, "Shared prefixes"), this.lead, this.trees);
  }

  refresh() {
    const { now } = this.fleet;
    if (!now) return;
    const engines = now.engines.filter((engine) => engine.prefixes.length);
    const saved = sum(now.engines, (engine) => engine.load.hit_tokens ?? sum(engine.prefixes, savedBy));
    say(this.lead, engines.length
      ? `${count(saved)} prompt tokens were found instead of computed. Below, the prefixes that saved most.`
      : "No engine keeps a prefix now.");
    show(this.trees, engines.map((engine) => tree(engine)));
  }

  close() {}
}

function savedBy(prefix) {
  return prefix.hits * prefix.tokens;
}

function tree(engine) {
  const known = new Set(engine.prefixes.map((prefix) => prefix.id));
  const below = new Map();
  for (const prefix of engine.prefixes) {
    const parent = known.has(prefix.parent) ? prefix.parent : null;
    below.set(parent, [...(below.get(parent) ?? []), prefix]);
  }
  const most = Math.max(1, ...engine.prefixes.map(savedBy));
  const users = new Map(); // by prefix: the calls at the engine whose context goes through it
  const parents = new Map(engine.prefixes.map((prefix) => [prefix.id, prefix.parent]));
  for (const call of engine.calls) {
    for (let id = call.prefix; id !== null && id !== undefined; id = parents.get(id)) users.set(id, [...(users.get(id) ?? []), call]);
  }
  const level = (parent, depth) => {
    const children = below.get(parent) ?? [];
    const shared = children.filter((prefix) => prefix.hits || prefix.holders > 1).sort((a, b) => savedBy(b) - savedBy(a) || b.tokens - a.tokens);
    const alone = children.filter((prefix) => !shared.includes(prefix));
    const rows = shared.map((prefix) => row(prefix, most, users.get(prefix.id) ?? [], level(prefix.id, depth + 1)));
    if (alone.length) rows.push(el("li", { role: "treeitem", class: "soft alone" }, rest(alone, users)));
    return rows.length ? el("ul", { role: depth ? "group" : "tree", "aria-label": depth ? null : `Prefixes of ${engine.worker}` }, rows) : null;
  };
  return el("article", { class: "card" }, el("div", { class: "card-head" }, el("h2", {}, engine.worker), el("p", { class: "soft" }, engine.serves.join(", "))), el("div", { class: "prefixes" }, level(null, 0)));
}

/** What nobody has come back to. */
function rest(prefixes, users) {
  const used = prefixes.filter((prefix) => users.has(prefix.id)).length;
  const now = used ? `, ${used} of them in use now` : "";
  return `${many(prefixes.length, "continuation")} of one call alone: ${many(sum(prefixes, (prefix) => prefix.tokens), "token")}${now}`;
}

function row(prefix, most, users, children) {
  const saved = savedBy(prefix);
  const bar = el("span", { class: "bar" });
  bar.style.width = `${(100 * saved) / most}%`;
  const shown = users.slice(0, MOST_USERS);
  return el("li", { role: "treeitem" },
    el("div", { class: "prefix" },
      el("code", {}, prefix.text.replace(/\s+/g, " ").trim() || "(no text)"),
      el("span", { class: "track", "aria-hidden": true }, bar),
      el("p", {},
        el("span", { class: "soft" }, `${many(prefix.tokens, "token")} from position ${count(prefix.begin)}`),
        el("span", {}, prefix.hits ? `found ${prefix.hits === 1 ? "once" : `${count(prefix.hits)} times`}: ${count(saved)} saved` : "not found again yet"),
        prefix.holders ? el("span", { class: "soft" }, `${many(prefix.holders, "holder")} now`) : null),
      shown.length ? el("span", { class: "users" }, shown.map((call) => el("a", { href: link.call(call.tenant, call.session, call.call) }, call.function || call.call)), users.length > MOST_USERS ? el("span", { class: "soft" }, `and ${users.length - MOST_USERS} more`) : null) : null),
    children);
}
