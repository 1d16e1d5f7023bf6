// A session's graph: drawn once for each shape, coloured as its calls go on, panned, zoomed, and walked through by keys.
//
// Laws: nodes outside the visible part are not in the document, so that thousands cost what is seen. A state is told by a word
// and a mark, never by colour alone. The whole graph is one stop of the tab key; arrows go from call to call.

import { many, say, svg } from "./dom.js";

const MARKS = {
  waiting: "·", ready: "○", running: "▸", queued: "○", prefill: "▸", decode: "▸", done: "✓", failed: "✕", cancelled: "–",
};
const FAR = 0.42; // below this scale labels can't be read, and are left out
const MOST = 3;
const LABEL = 21;

export class GraphView {
  /** `choose(node)` is called when a node is chosen, with its place in the picture. */
  constructor(choose) {
    this.choose = choose;
    this.edges = svg("path", { class: "edges" });
    this.lit = svg("path", { class: "edges lit" });
    this.nodes = svg("g");
    this.page = svg("g", {}, this.edges, this.lit, this.nodes);
    this.element = svg("svg", { class: "graph", tabindex: 0, role: "listbox", "aria-label": "Calls of this session" }, this.page);
    this.picture = null;
    this.states = [];
    this.going = new Map();
    this.drawn = new Map();
    this.selected = null;
    this.scale = 1;
    this.x = this.y = 0;
    this.fitted = true;
    this.pointers = new Map();
    this.listen();
  }

  /** Another picture: of another session, or one that has grown. */
  setPicture(picture) {
    const same = this.picture && this.picture.session === picture.session;
    const selected = same && this.selected !== null ? this.picture.nodes[this.selected] : null;
    this.picture = picture;
    this.states = [];
    this.drawn.clear();
    this.nodes.replaceChildren();
    this.edges.setAttribute("d", picture.edges.map((edge) => edge.path).join(""));
    this.after = picture.nodes.map(() => []);
    this.before = picture.nodes.map(() => []);
    picture.edges.forEach((edge) => {
      this.after[edge.source].push(edge);
      this.before[edge.target].push(edge);
    });
    this.selected = null;
    if (selected) this.select(picture.nodes.findIndex((node) => node.kind === selected.kind && node.id === selected.id));
    if (!same || this.fitted) this.fit();
    else this.draw();
  }

  setProgress(progress) {
    for (const [state, places] of Object.entries(progress.states)) for (const place of places) this.states[place] = state;
    this.going = new Map(progress.going.map((call) => [call.node, call]));
    for (const [place, element] of this.drawn) this.colour(place, element);
  }

  // --- the page ---

  fit() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!this.picture || !width || !height) return;
    const pad = 24;
    this.scale = Math.min((width - 2 * pad) / this.picture.width, (height - 2 * pad) / this.picture.height, 1.15);
    this.x = (width - this.picture.width * this.scale) / 2;
    this.y = (height - this.picture.height * this.scale) / 2;
    this.fitted = true;
    this.draw();
  }

  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    const scale = Math.min(MOST, Math.max(0.02, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  move(x, y) {
    this.x += x;
    this.y += y;
    this.fitted = false;
    this.draw();
  }

  draw() {
    this.due ??= requestAnimationFrame(() => {
      this.due = null;
      this.page.setAttribute("transform", `translate(${this.x} ${this.y}) scale(${this.scale})`);
      this.element.classList.toggle("far", this.scale < FAR);
      this.cull();
    });
  }

  /** Put into the document the nodes that are to be seen, and no others. */
  cull() {
    const { nodes, box_width: w, box_height: h } = this.picture;
    const { clientWidth: width, clientHeight: height } = this.element;
    const left = -this.x / this.scale - w, right = (width - this.x) / this.scale + w;
    const top = -this.y / this.scale - h, bottom = (height - this.y) / this.scale + h;
    nodes.forEach((node, place) => {
      const seen = (node.x > left && node.x < right && node.y > top && node.y < bottom) || place === this.selected;
      const element = this.drawn.get(place);
      if (seen && !element) this.attach(node, place);
      else if (!seen && element) {
        element.group.remove();
        this.drawn.delete(place);
      }
    });
  }

  attach(node, place) {
    const { box_width: w, box_height: h } = this.picture;
    const label = svg("text", { x: 14, y: 18 }, node.label.length > LABEL ? `${node.label.slice(0, LABEL - 1)}…` : node.label);
    const detail = svg("text", { x: 14, y: 34, class: "detail" });
    const box = svg("rect", { class: "box", width: w, height: h, rx: 7 });
    const bar = svg("rect", { class: "bar", width: 5, height: h, rx: 2.5 });
    const group = svg(
      "g",
      { id: `node-${place}`, role: "option", "data-place": place, transform: `translate(${node.x - w / 2} ${node.y - h / 2})` },
      box, bar, label, detail,
    );
    const element = { group, detail };
    this.drawn.set(place, element);
    this.colour(place, element);
    this.nodes.append(group);
  }

  colour(place, { group, detail }) {
    const node = this.picture.nodes[place], state = this.states[place] ?? "waiting";
    group.setAttribute("class", `node ${node.kind} ${state}${place === this.selected ? " selected" : ""}`);
    group.setAttribute("aria-selected", place === this.selected);
    group.setAttribute("aria-label", `${node.label}, ${state}`);
    say(detail, `${MARKS[state]} ${state}${this.amount(place, state)}`);
  }

  amount(place, state) {
    const call = this.going.get(place);
    if (call && state === "decode" && call.produced) return `, ${many(call.produced, "token")}`;
    if (call && state === "prefill" && call.tokens) return ` ${Math.floor((100 * call.computed) / call.tokens)} %`;
    return "";
  }

  stateOf(place) {
    return this.states[place] ?? "waiting";
  }

  // --- choosing ---

  /** Mark a node and what is joined to it; -1 or null for none. */
  select(place) {
    const before = this.selected;
    this.selected = place === null || place < 0 ? null : place;
    for (const changed of [before, this.selected]) {
      if (changed !== null && this.drawn.has(changed)) this.colour(changed, this.drawn.get(changed));
    }
    const joined = this.selected === null ? [] : [...this.before[this.selected], ...this.after[this.selected]];
    this.lit.setAttribute("d", joined.map((edge) => edge.path).join(""));
    if (this.selected === null) this.element.removeAttribute("aria-activedescendant");
    else this.element.setAttribute("aria-activedescendant", `node-${this.selected}`);
  }

  /** Bring a node into sight, near enough to be read. */
  reveal(place) {
    const node = this.picture.nodes[place];
    const { clientWidth: width, clientHeight: height } = this.element;
    if (this.scale < FAR) this.scale = 0.8;
    const x = node.x * this.scale + this.x, y = node.y * this.scale + this.y;
    if (x < 100 || x > width - 100 || y < 40 || y > height - 40) {
      this.x = width / 2 - node.x * this.scale;
      this.y = height / 2 - node.y * this.scale;
      this.fitted = false;
    }
    this.draw();
  }

  walk(key) {
    const { nodes } = this.picture;
    if (this.selected === null) return nodes.length ? 0 : null;
    const here = nodes[this.selected];
    const near = (places) => {
      const apart = (place) => Math.abs(nodes[place].y - here.y);
      return places.length ? places.reduce((a, b) => (apart(b) < apart(a) ? b : a)) : null;
    };
    if (key === "ArrowRight") return near(this.after[this.selected].map((edge) => edge.target));
    if (key === "ArrowLeft") return near(this.before[this.selected].map((edge) => edge.source));
    const down = key === "ArrowDown";
    return near(nodes.flatMap((node, place) => (Math.abs(node.x - here.x) < 1 && (down ? node.y > here.y : node.y < here.y) ? [place] : [])));
  }

  // --- hands ---

  listen() {
    const { element } = this;
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = element.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    element.addEventListener("pointerdown", (event) => {
      this.pointers.set(event.pointerId, event);
      this.travelled = 0;
    });
    element.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    element.addEventListener("click", (event) => {
      const group = event.target.closest("[data-place]");
      if (group && !(this.travelled > 6)) this.choose(Number(group.dataset.place));
    });
    element.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => (this.fitted ? this.fit() : this.picture && this.draw())).observe(element);
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const x = event.clientX - before.clientX, y = event.clientY - before.clientY;
    this.travelled += Math.abs(x) + Math.abs(y);
    const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    if (other) {
      const apart = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
      const box = this.element.getBoundingClientRect();
      this.zoom(apart(event) / Math.max(apart(before), 1), (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
    } else if (this.travelled > 6) {
      this.element.setPointerCapture(event.pointerId);
      this.move(x, y);
    }
    this.pointers.set(event.pointerId, event);
  }

  press(event) {
    if (!this.picture || event.altKey || event.ctrlKey || event.metaKey) return;
    const { key } = event;
    if (key.startsWith("Arrow")) {
      const place = this.walk(key);
      if (place !== null) {
        this.select(place);
        this.reveal(place);
      }
    } else if (key === "Enter" || key === " ") {
      if (this.selected !== null) this.choose(this.selected);
    } else if (key === "+" || key === "=") this.zoom(1.25);
    else if (key === "-") this.zoom(0.8);
    else if (key === "0") this.fit();
    else return;
    event.preventDefault();
  }
}
