// Lists: the open sessions, and the tenants.

import { bytes, count, el, many, say, show } from "./dom.js";
import { link } from "./session.js";

const MOST = 300;

export class SessionsView {
  constructor(fleet) {
    this.fleet = fleet;
    this.rows = new Map();
    this.list = el("ul", { class: "sessions" });
    this.more = el("p", { class: "soft" });
    this.element = el("section", {}, el("h1", {}, "Sessions"), this.list, this.more);
  }

  refresh() {
    const { now } = this.fleet;
    if (!now) return;
    const sessions = [...now.sessions].sort((a, b) => going(b) - going(a)).slice(0, MOST);
    const rows = new Map();
    for (const session of sessions) {
      const key = `${session.tenant} ${session.session}`;
      const row = this.rows.get(key) ?? new SessionRow(session);
      row.refresh(session, now);
      rows.set(key, row);
    }
    this.rows = rows;
    const items = [...rows.values()].map((row) => row.element);
    show(this.list, items.length ? items : el("li", { class: "empty" }, "No session is open. Run a program that opens one, for example: myna demo map-reduce"));
    say(this.more, now.sessions.length > MOST ? `and ${count(now.sessions.length - MOST)} more` : "");
  }

  close() {}
}

function going(session) {
  return session.calls - session.done;
}

class SessionRow {
  constructor(session) {
    this.name = el("span", { class: "name" });
    this.counts = el("span", { class: "soft" });
    this.bar = el("span", { class: "progress", "aria-hidden": true });
    this.element = el("li", {}, el("a", { href: link.session(session.tenant, session.session) }, this.name, this.counts, this.bar));
  }

  refresh(session, now) {
    say(this.name, session.name || session.session);
    const by = { ...session, done: session.done - session.failed };
    const parts = ["running", "ready", "waiting", "done", "failed"].filter((state) => by[state]).map((state) => `${count(by[state])} ${state}`);
    const tenant = session.tenant === now.tenant ? "" : `${session.tenant} · `;
    say(this.counts, `${tenant}${many(session.calls, "call")}${parts.length ? ": " : ""}${parts.join(", ")}`);
    const states = [["done", by.done], ["failed", by.failed], ["decode", by.running], ["ready", by.ready], ["waiting", by.waiting]];
    show(this.bar, states.filter(([, n]) => n).map(([state, n]) => {
      const part = el("span", { class: `state ${state}` });
      part.style.flexGrow = String(n);
      return part;
    }));
  }
}

export class TenantsView {
  constructor(fleet) {
    this.fleet = fleet;
    this.body = el("tbody");
    const names = ["Tenant", "Sessions", "Calls in flight", "Stored", "Prompt tokens", "of them cached", "Output tokens"];
    this.table = el("table", {}, el("thead", {}, el("tr", {}, names.map((name, i) => el("th", { scope: "col", class: i ? "number" : null }, name)))), this.body);
    this.element = el("section", {}, el("h1", {}, "Tenants"), el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Tenants" }, this.table));
  }

  refresh() {
    const { now } = this.fleet;
    if (!now) return;
    const rows = now.tenants.map((tenant) => el("tr", {}, el("th", { scope: "row" }, tenant.tenant),
      ...[count(tenant.sessions), count(tenant.calls), bytes(tenant.bytes), count(tenant.prompt), count(tenant.cached), count(tenant.output)].map((text) => el("td", { class: "number" }, text))));
    show(this.body, rows.length ? rows : el("tr", {}, el("td", { colspan: 7, class: "empty" }, "Nobody has done anything yet.")));
  }

  close() {}
}
