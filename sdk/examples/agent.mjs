// An agent in JavaScript: it serves a native function, submits calls and streams their results, with nothing of Myna's but the wire.
//
//     npm install nats @msgpack/msgpack
//     MYNA_URL=nats://127.0.0.1:4222 MYNA_CREDENTIALS=tenant.creds MYNA_TENANT=default node agent.mjs "a subject to write about"
//     … node agent.mjs --serve          serves `emphasize` until it is told to stop
//
// The wire is described in actors/README.md: messages are MessagePack maps whose key `t` names their class.

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { pathToFileURL } from "node:url";
import { decode, encode } from "@msgpack/msgpack";
import { connect, credsAuthenticator, Events, headers } from "nats";

const PROTOCOL = 1;
const BEAT = 1000; // milliseconds
const [VALUES, CHUNKS] = ["MYNA_VALUES", "MYNA_CHUNKS"];
const PER_SUBJECT_LIMIT = "maximum messages per subject exceeded";

const newId = (name) => `${name}-${randomBytes(8).toString("hex")}`;

/** The text of a variable that failed or was cancelled, for whoever waited for it. */
export class NoValue extends Error {}

/** A connection as one tenant. */
export class Client {
  static async open(environment = process.env) {
    const { MYNA_URL, MYNA_CREDENTIALS, MYNA_USER, MYNA_PASSWORD, MYNA_TENANT } = environment;
    const tenant = MYNA_TENANT ?? "default";
    const connection = await connect({
      servers: (MYNA_URL ?? "nats://127.0.0.1:4222").split(","),
      ...(MYNA_CREDENTIALS ? { authenticator: credsAuthenticator(readFileSync(MYNA_CREDENTIALS)) } : {}),
      ...(MYNA_USER ? { user: MYNA_USER, pass: MYNA_PASSWORD } : {}),
      inboxPrefix: `_INBOX_${tenant}`,
      maxReconnectAttempts: -1,
    });
    return new Client(connection, tenant);
  }

  constructor(connection, tenant) {
    Object.assign(this, { connection, tenant });
  }

  close = () => this.connection.drain();

  /** Store a message. False where its subject has one already: each takes one, and the first stands. */
  async append(subject, message, extra = {}) {
    const head = headers();
    for (const [name, value] of Object.entries(extra)) head.set(name, value);
    const answer = (await this.connection.request(subject, encode(message), { timeout: 10_000, headers: head })).json();
    if (answer.error?.description === PER_SUBJECT_LIMIT) return false;
    if (answer.error) throw new Error(`${subject}: ${answer.error.description}`);
    return true;
  }

  /** What a stream holds on a subject, or undefined. */
  async stored(stream, subject) {
    const found = await this.connection.request(`$JS.API.DIRECT.GET.${stream}.${subject}`, new Uint8Array(), { timeout: 10_000 });
    return found.headers?.code === 404 ? undefined : decode(found.data);
  }

  /**
   * What the stream accepts on a subject, now or later. Subscribe first, then look: so nothing falls between. What is published while
   * the connection is lost is not sent again; hence the second look after each reconnection.
   */
  async awaited(stream, read, write) {
    const subscription = this.connection.subscribe(read, { max: 1 });
    const told = subscription[Symbol.asyncIterator]().next();
    const changes = this.connection.status();
    try {
      await this.connection.flush();
      for (;;) {
        const found = await this.stored(stream, write);
        if (found !== undefined) return found;
        const { value } = await Promise.race([told, reconnected(changes)]);
        if (value) return decode(value.data);
      }
    } finally {
      subscription.unsubscribe();
      changes.stop();
    }
  }
}

async function reconnected(changes) {
  for await (const change of changes) if (change.type === Events.Reconnect) break;
  return {};
}

/** A session: calls and variables of one application, from its opening to its end. */
export class Session {
  static async open(client, name) {
    const session = new Session(client, newId(name));
    await session.log({ t: "open", protocol: PROTOCOL, name, ttl: 60 });
    session.alive = setInterval(() => client.connection.publish(session.subject("alive"), encode({ t: "alive" })), 15_000);
    return session;
  }

  constructor(client, id) {
    Object.assign(this, { client, id });
  }

  subject = (...rest) => ["myna", this.client.tenant, this.id, ...rest].join(".");

  log = (entry) => this.client.append(this.subject("log"), entry, { "Nats-Msg-Id": newId("e") });

  /** Calls; their inputs need not exist yet. */
  submit = (...calls) => this.log({ t: "submit", calls });

  /** A variable's value, awaited: `{text, json, usage, …}`. Throws `NoValue`. */
  async get(variable) {
    const outcome = await this.client.awaited(VALUES, this.subject("var", variable), this.subject("set", variable));
    if (outcome.t === "value") return outcome;
    throw new NoValue(`${variable}: ${outcome.message ?? outcome.reason ?? outcome.t}`);
  }

  /** The text of a variable, piece by piece as it is made; a piece that got lost is looked up. Throws `NoValue`. */
  async *stream(variable) {
    const subscription = this.client.connection.subscribe(this.subject("tok", variable, "*"));
    const published = subscription[Symbol.asyncIterator]();
    const ended = this.get(variable).then((value) => ({ ended: value }), (error) => ({ error }));
    const arrived = new Map(); // by number, those that are to come
    let seen = 0;
    try {
      for (let n = 0, next = published.next(); ; n++) {
        let chunk = arrived.get(n) ?? (await this.client.stored(CHUNKS, this.subject("put", variable, n)));
        while (!chunk) {
          const { ended: whole, error, value: message } = await Promise.race([ended, next]);
          if (error) throw error;
          if (whole) return yield whole.text.slice(seen); // a value comes after its last chunk: this is all the rest
          next = published.next();
          arrived.set(Number(message.subject.split(".").at(-1)), decode(message.data));
          chunk = arrived.get(n) ?? (arrived.size > 1 ? await this.client.stored(CHUNKS, this.subject("put", variable, n)) : undefined);
        }
        arrived.delete(n);
        seen += chunk.text.length;
        yield chunk.text;
        if (chunk.last) return;
      }
    } finally {
      subscription.unsubscribe();
    }
  }

  async close() {
    clearInterval(this.alive);
    await this.log({ t: "close" });
  }
}

/**
 * A worker that serves one function. `perform(arguments, signal)` returns text, or is an async generator of pieces of text; `signal` is
 * aborted when nobody needs the result any more.
 */
export class Agent {
  constructor(client, name, perform, capacity = 4) {
    Object.assign(this, { client, name, perform, capacity, id: newId(`${name}-${hostname().replace(/[^A-Za-z0-9_-]/g, "_")}`).slice(-80) });
    this.incarnation = newId("i");
    this.calls = new Map(); // call -> {run, abort}
    this.lease = 0; // of the scheduler that leads: an older one's orders are refused
    this.draining = false;
  }

  async start() {
    const { connection, tenant } = this.client;
    const orders = connection.subscribe(`myna-agent.${tenant}.${this.id}.*`);
    const greetings = connection.subscribe("myna-scheduler.hello");
    await connection.flush();
    this.listening = Promise.all([this.#follow(orders), this.#follow(greetings)]);
    this.beating = setInterval(() => this.#tell("beat", { t: "beat", worker: this.id, incarnation: this.incarnation, running: this.#running() }), BEAT);
    this.#announce();
  }

  /** Take no new calls, finish those that run, leave. */
  async drain() {
    this.draining = true;
    this.#announce();
    await Promise.all([...this.calls.values()].map((call) => call.done));
    clearInterval(this.beating);
    this.#tell("leave", { t: "leave", worker: this.id, incarnation: this.incarnation });
    await this.client.connection.flush();
  }

  async #follow(subscription) {
    for await (const message of subscription) {
      try {
        this.#obey(decode(message.data));
      } catch (error) {
        console.error(`${message.subject}: not understood: ${error.message}`); // whatever comes, the agent goes on
      }
    }
  }

  #obey(order) {
    if (order.t === "run" && (order.lease < this.lease || this.draining)) return this.#event(order, "refused", { retryable: true, code: "worker_lost", message: "not taken" });
    if (order.lease < this.lease) return undefined;
    const known = order.lease === this.lease;
    this.lease = order.lease;
    switch (order.t) {
      case "hello":
        return order.pulse && known ? undefined : this.#announce();
      case "drain":
        return void this.drain();
      case "stop":
        return this.calls.get(key(order, order.call))?.abort.abort();
      case "run":
        return this.#begin(order);
    }
  }

  #begin(run) {
    const held = this.calls.get(key(run, run.call.id));
    if (held && held.run.attempt >= run.attempt) return; // the same order twice
    held?.abort.abort();
    const call = { run, abort: new AbortController() };
    this.calls.set(key(run, run.call.id), call);
    call.done = this.#work(call).finally(() => {
      if (this.calls.get(key(run, run.call.id)) === call) this.calls.delete(key(run, run.call.id));
    });
  }

  async #work({ run, abort }) {
    try {
      if (run.call.transforms?.length) throw new Error("this agent knows no transforms");
      if (run.resume && (await this.#seen(run))) throw new Error("readers have seen a part, and a function can't go on from there");
      this.#event(run, "started");
      const text = await this.#publish(run, this.perform(await this.#arguments(run), abort.signal), abort.signal);
      if (text === undefined) return;
      await this.client.append(this.#subject(run, "set"), { t: "value", text, attempt: run.attempt, call: run.call.id }, { "Myna-Status": "value", "Myna-Attempt": `${run.attempt}` });
      this.#event(run, "finished");
    } catch (error) {
      if (!abort.signal.aborted) this.#event(run, "failed", { code: "native_error", message: `${error.message}`, call: run.call.id, function: this.name });
    }
  }

  /** Chunk after chunk, then all of it; undefined once the call was stopped, or another attempt has published a chunk before us. */
  async #publish(run, made, signal) {
    if (!(Symbol.asyncIterator in Object(made))) {
      const text = await made; // a function that streams nothing
      return signal.aborted ? undefined : text;
    }
    let [text, n] = ["", 0];
    const live = (run.call.stream ?? "live") === "live"; // else nothing is to be seen before it is whole
    const put = (piece, last) => !live || this.client.append(`${this.#subject(run, "put")}.${n++}`, { t: "chunk", attempt: run.attempt, text: piece, last });
    for await (const piece of made) {
      if (signal.aborted) return undefined;
      if (!(await put(piece, false))) return this.#event(run, "overtaken");
      text += piece;
    }
    return (await put("", true)) ? text : this.#event(run, "overtaken");
  }

  async #arguments(run) {
    const session = new Session(this.client, run.session);
    const read = async ({ input, constant }) => {
      if (!input) return constant;
      const values = await Promise.all(input.variables.map((variable) => session.get(variable)));
      return values.map((value) => value.text).join(input.joiner ?? "\n\n");
    };
    return Object.fromEntries(await Promise.all((run.call.arguments ?? []).map(async (it) => [it.name, await read(it)])));
  }

  #subject = (run, leaf) => `myna.${run.tenant}.${run.session}.${leaf}.${run.call.variable}`;

  #seen = (run) => this.client.stored(CHUNKS, `${this.#subject(run, "put")}.0`);

  #running = () => [...this.calls.values()].map(({ run }) => ["running", run.tenant, run.session, run.call.id, run.attempt]);

  #announce() {
    const { id: worker, incarnation, name, capacity, draining } = this;
    const tenant = this.client.tenant;
    this.#tell("announce", { t: "announce", protocol: PROTOCOL, worker, kind: "agent", incarnation, serves: [name], capacity, tenant, draining, running: this.#running() });
  }

  #event(run, kind, failure) {
    const { tenant, session, attempt } = run;
    const told = { t: "event", worker: this.id, kind, tenant, session, call: run.call.id, attempt };
    this.#tell("event", failure ? { ...told, failure: { t: "failure", ...failure } } : told);
  }

  #tell = (leaf, message) => this.client.connection.publish(`myna-agents.${this.client.tenant}.${this.id}.${leaf}`, encode(message));
}

const key = (order, call) => `${order.session}/${call}`;

// --- What this agent does ---------------------------------------------------------------------------------------------

async function* emphasize({ text }) {
  for (const word of text.split(/(?<=\s)/)) yield word.toUpperCase();
}

/** A model writes a draft, and our own function works on it: two calls, submitted at once, joined by a variable. */
async function application(client, subject) {
  const session = await Session.open(client, "javascript");
  try {
    const [draft, loud] = [newId("draft"), newId("loud")];
    const message = (role, ...segments) => ({ t: "message", role, segments });
    await session.submit(
      {
        t: "model",
        id: newId("write"),
        function: "write",
        messages: [
          message("user", { t: "text", text: `Write one sentence about ${subject}.` }),
          message("assistant", { t: "output", variables: [draft], sampling: { t: "sampling", max_tokens: 40, temperature: 0 } }),
        ],
      },
      { t: "native", id: newId("emphasize"), function: "emphasize", variable: loud, arguments: [{ t: "argument", name: "text", input: { t: "input", variables: [draft] } }] },
    );
    for (const variable of [draft, loud]) {
      for await (const piece of session.stream(variable)) process.stdout.write(piece);
      process.stdout.write("\n");
    }
  } finally {
    await session.close();
  }
}

async function main(argument) {
  const client = await Client.open();
  const agent = new Agent(client, "emphasize", emphasize);
  await agent.start();
  if (argument === "--serve") {
    console.log("serving emphasize");
    await new Promise((stop) => ["SIGINT", "SIGTERM"].forEach((name) => process.once(name, stop)));
  } else {
    await application(client, argument ?? "magpies");
  }
  await agent.drain();
  await client.close();
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main(process.argv[2]);
