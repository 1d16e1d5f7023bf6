// Elements and words. Law: what comes from elsewhere becomes text nodes and attributes of known names, and never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with attributes and children; strings become text, null is left out, `on…` are listeners. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Make `parent` hold exactly these children, touching only what differs. */
export function show(parent, ...children) {
  const wanted = children.flat().filter((child) => child !== null && child !== undefined);
  if (wanted.length === parent.childNodes.length && wanted.every((child, i) => child === parent.childNodes[i])) return;
  parent.replaceChildren(...wanted);
}

/** Set an element's text, if it is another. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const plain = new Intl.NumberFormat("en");

/** 1,234; from 10,000 on 12.3k; from a million on 1.2M. */
export function count(n) {
  if (n >= 1e6) return `${(n / 1e6).toFixed(n >= 1e7 ? 0 : 1)}M`;
  if (n >= 1e4) return `${(n / 1e3).toFixed(n >= 1e5 ? 0 : 1)}k`;
  return plain.format(Math.round(n));
}

export function bytes(n) {
  if (n >= 1e9) return `${(n / 1e9).toFixed(1)} GB`;
  if (n >= 1e6) return `${(n / 1e6).toFixed(1)} MB`;
  return `${Math.round(n / 1e3)} kB`;
}

export function seconds(n) {
  if (n >= 90) return `${Math.floor(n / 60)} min ${Math.round(n % 60)} s`;
  if (n >= 10) return `${n.toFixed(1)} s`;
  if (n >= 1) return `${n.toFixed(2)} s`;
  return `${Math.round(n * 1000)} ms`;
}

/** "3 calls", "1 call". */
export function many(n, what) {
  return `${count(n)} ${what}${n === 1 ? "" : "s"}`;
}
