// The gateway's API, with the reader's key. The key lives in this tab's sessionStorage alone.

const ROOT = new URL("../myna/v1", document.baseURI).pathname;
const KEY = "myna-key";

/** An answer that is an error. */
export class Problem extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

function headers(tenant) {
  const told = {};
  if (key.get()) told.authorization = `Bearer ${key.get()}`;
  if (tenant) told["myna-tenant"] = tenant;
  return told;
}

async function ask(path, tenant, signal) {
  const answer = await fetch(ROOT + path, { headers: headers(tenant), signal, cache: "no-store" });
  if (answer.ok) return answer;
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    // not JSON: a proxy's answer, say
  }
  throw new Problem(answer.status, error.code ?? "", error.message ?? `the gateway answered ${answer.status}`);
}

const session = (where) => `/sessions/${encodeURIComponent(where.session)}`;

export const fleet = async (since, signal) => (await ask(`/fleet?since=${since}`, "", signal)).json();
export const picture = async (where, signal) => (await ask(`${session(where)}/picture`, where.tenant, signal)).json();
export const progress = async (where, signal) => (await ask(`${session(where)}/progress`, where.tenant, signal)).json();
export const why = async (where, call, signal) =>
  (await ask(`${session(where)}/calls/${encodeURIComponent(call)}/why`, where.tenant, signal)).json();
export const variable = async (where, name, signal) =>
  (await ask(`${session(where)}/variables/${encodeURIComponent(name)}?timeout=0`, where.tenant, signal)).json();

/** A variable's text as it comes: calls `piece(text)`, then returns how it ended. Goes on where it was when the connection breaks. */
export async function stream(where, name, piece, signal) {
  let offset = 0;
  for (let tries = 0; ; tries++) {
    if (tries) await new Promise((go) => setTimeout(go, Math.min(4000, 250 * 2 ** tries)));
    const path = `${session(where)}/variables/${encodeURIComponent(name)}/stream?offset=${offset}`;
    const answer = await ask(path, where.tenant, signal);
    for await (const { event, data } of events(answer.body)) {
      if (event === "text") {
        offset = data.offset + [...data.text].length; // in characters, as the gateway counts
        piece(data.text);
      } else if (event === "end") {
        return data;
      } else if (event === "error") {
        throw new Problem(502, data.error?.code ?? "", data.error?.message ?? "the stream broke");
      }
    }
  }
}

/** Server-sent events of a response's body. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const fields = new Map(rest.slice(0, end).split("\n").map((line) => line.split(/:\s?(.*)/s, 2)));
      rest = rest.slice(end + 2);
      if (fields.has("data")) yield { event: fields.get("event") ?? "message", data: JSON.parse(fields.get("data")) };
    }
  }
}
