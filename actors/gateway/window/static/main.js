// The page: what the address names is shown, and looked at again once a second while somebody can see it.

import * as api from "./api.js";
import { count, el, say, show } from "./dom.js";
import { EnginesView } from "./engines.js";
import { PrefixesView } from "./prefixes.js";
import { SessionView } from "./session.js";
import { Fleet, sum } from "./store.js";
import { SessionsView, TenantsView } from "./tables.js";

const EVERY = 1000;
const LISTS = { sessions: SessionsView, engines: EnginesView, prefixes: PrefixesView, tenants: TenantsView };

const main = document.getElementById("main");
const trouble = document.getElementById("trouble");
const figures = document.getElementById("figures");
const login = document.getElementById("login");

let fleet = new Fleet();
let view = null;
let shown = "";

// --- where we are ---

function route() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  if (name === "sessions" && rest.length >= 2) openSession(...rest);
  else openList(name in LISTS ? name : "sessions");
}

function openList(name) {
  if (shown !== name) put(name, new LISTS[name](fleet), name);
}

function openSession(tenant, session, what, id) {
  const key = `sessions/${tenant}/${session}`;
  if (shown !== key) put(key, new SessionView({ tenant, session }), "sessions");
  view.choose(what === "variables" ? "variable" : "call", id ?? null);
}

function put(key, next, tab) {
  view?.close();
  view = next;
  shown = key;
  show(main, view.element);
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  window.scrollTo(0, 0);
  tick();
}

// --- again and again ---

let timer = 0;
let looking = false;

async function tick() {
  clearTimeout(timer);
  if (looking || document.hidden || login.open) return;
  looking = true;
  try {
    fleet.add(await api.fleet(fleet.since));
    tell();
    await view.refresh();
    trouble.hidden = true;
  } catch (error) {
    if (error.status === 401) askForKey(api.key.get() ? error.message : "");
    else complain(error);
  } finally {
    looking = false;
    timer = setTimeout(tick, EVERY);
  }
}

function complain(error) {
  const lost = error instanceof TypeError; // fetch's way to say that nobody answers
  if (!lost && !(error instanceof api.Problem)) console.error(error);
  say(trouble, lost ? "The gateway does not answer. Trying again." : error.message);
  trouble.hidden = false;
}

function tell() {
  const { now } = fleet;
  const rates = now.engines.map((engine) => fleet.rate(engine));
  const memories = now.engines.map((engine) => Fleet.memory(engine)).filter(Boolean);
  const told = [
    ["ready", count(now.queued), "calls that no engine or agent has been given yet"],
    ["running", count(sum(now.workers, (worker) => worker.running)), "calls that engines and agents have"],
    ["tokens/s", count(sum(rates, (rate) => rate.drawn)), "drawn by all engines"],
  ];
  if (memories.length) told.push(["KV in use", `${Math.round((100 * sum(memories, (memory) => memory.used)) / memories.length)} %`]);
  show(figures, told.map(([name, value, title]) => el("div", { title }, el("dt", {}, name), el("dd", {}, value))));
  document.querySelector('[data-view="tenants"]').hidden = !now.operator;
}

// --- the key ---

function askForKey(reason) {
  say(document.getElementById("login-trouble"), reason);
  if (!login.open) login.showModal();
}

login.addEventListener("close", () => {
  const input = document.getElementById("key");
  api.key.set(input.value.trim());
  input.value = "";
  fleet = new Fleet();
  shown = "";
  route();
});

function takeKey() {
  const given = /^#key=(.+)$/.exec(location.hash);
  if (!given) return;
  api.key.set(decodeURIComponent(given[1]));
  history.replaceState(null, "", location.pathname); // it is in nobody's history, and in no address that is copied
}

takeKey();
window.addEventListener("hashchange", () => {
  takeKey();
  route();
});
document.addEventListener("visibilitychange", tick);
route();
