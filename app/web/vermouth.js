/**
 * A client of the Vermouth API for browsers and Node: one file, no build, no dependency.
 *
 *   import { Vermouth } from "./vermouth.js";
 *   const vermouth = new Vermouth({ base: "https://vermouth.example/" });
 *   await vermouth.openSession("vm_…"); // where the service asks for a key
 *   const { results } = await vermouth.retrieve({ text: "a red fish", k: 12 });
 *   const live = vermouth.live({ onresults: (message) => show(message.results) });
 *   live.search({ strokes, width: 256, height: 256 });
 *
 * Images are a File or Blob, or the forms of the API: `{strokes, width, height}`, `{svg}`, `{base64}`, `{item}`.
 * Answers are the service's JSON. A refusal throws VermouthError, with the service's own words.
 */

const ATTEMPTS = 3; // of a request that was refused with 429 or 503
const LONGEST_WAIT_S = 20;

/** A problem document (RFC 9457) that the service answered, or `status` 0 where it did not answer at all. */
export class VermouthError extends Error {
  constructor(status, problem, retryAfterS = null) {
    super(problem.detail ?? problem.title ?? `The service answered ${status}.`);
    this.name = "VermouthError";
    this.status = status;
    this.problem = problem;
    this.code = problem.code ?? "";
    this.requestId = problem.request_id ?? "";
    this.retryAfterS = retryAfterS;
  }
}

export class Vermouth {
  /**
   * `base` is the URL of the service (default: the page's own). A `key` is sent with every request and cannot load
   * images into `<img>`: in a browser use `openSession` instead. `onwait(seconds)` is called before a request is repeated.
   */
  constructor({ base = globalThis.document?.baseURI, key = null, onwait = () => {} } = {}) {
    this.base = new URL(".", base);
    this.key = key;
    this.onwait = onwait;
    this.credentials = "same-origin"; // a session of another origin needs more, and is refused where any origin is allowed
  }

  /** The URL of a path; paths that the service answers, such as `image_url`, begin with the base's own path. */
  url(path, query = {}) {
    const url = new URL(String(path).startsWith(this.base.pathname) || path instanceof URL ? path : String(path).replace(/^\//, ""), this.base);
    for (const [name, value] of Object.entries(query)) if (value !== null && value !== undefined) url.searchParams.set(name, value);
    return url;
  }

  /**
   * Sends one request; `body` is a FormData, or an object that is sent as JSON. Returns the Response of a success.
   * After 429 and 503 it waits as long as the service says and sends it again: a refused request has done nothing.
   */
  async send(method, path, { body = null, query = {}, headers = {}, signal = null } = {}) {
    const isJson = body !== null && !(body instanceof FormData);
    const sent = { ...headers, ...(this.key && { "X-API-Key": this.key }), ...(isJson && { "Content-Type": "application/json" }) };
    const init = { method, headers: sent, signal, body: isJson ? JSON.stringify(body) : body, credentials: this.credentials };
    for (let attempt = 1; ; attempt += 1) {
      let response;
      try {
        response = await fetch(this.url(path, query), init);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new VermouthError(0, { title: "Offline", detail: "The service does not answer." });
      }
      if (response.ok) return response;
      const wait = Number(response.headers.get("Retry-After")) || null;
      const problem = await problemOf(response);
      if (![429, 503].includes(response.status) || !wait || wait > LONGEST_WAIT_S || attempt === ATTEMPTS) throw new VermouthError(response.status, problem, wait);
      this.onwait(wait, problem);
      await pause(wait * 1000, signal);
    }
  }

  async json(method, path, options) {
    return (await this.send(method, path, options)).json();
  }

  /** Exchanges a key for a cookie that scripts cannot read; it opens the WebSocket and images too. */
  async openSession(key) {
    this.credentials = "include";
    await this.send("POST", "session", { headers: { "X-API-Key": key } });
    this.hasSession = true;
  }

  /** A POST of a query that may hold files. */
  post(path, query, options = {}) {
    return this.send("POST", path, { body: bodyOf(query), ...options });
  }

  bundle() {
    return this.json("GET", "bundle");
  }

  galleries() {
    return this.json("GET", "galleries");
  }

  gallery(name) {
    return this.json("GET", `galleries/${name}`);
  }

  /** One page of items: `{limit, cursor, filter}`; `next_cursor` of the answer begins the next page. */
  items(gallery, { filter, ...query } = {}) {
    return this.json("GET", `galleries/${gallery}/items`, { query: { ...query, filter: filter && JSON.stringify(filter) } });
  }

  /** Adds items `{id, image: File, metadata}`; the idempotency key makes it safe to send the same call twice. */
  addItems(gallery, items, { idempotencyKey = randomHex(), ...options } = {}) {
    const form = new FormData();
    for (const { image } of items) form.append("image", image, image.name ?? "image");
    form.append("items", JSON.stringify(items.map(({ image, ...fields }) => fields)));
    return this.json("POST", `galleries/${gallery}/items`, { body: form, headers: { "Idempotency-Key": idempotencyKey }, ...options });
  }

  facets(gallery, field, limit = 12) {
    return this.json("GET", `galleries/${gallery}/facets`, { query: { field, limit } });
  }

  /** `query` as the JSON body of `POST /retrieve`; with a file as `sketch` or `image` it is sent as a form. */
  async retrieve(query, options = {}) {
    return (await this.post("retrieve", query, options)).json();
  }

  /** A COCO document gets the name of the file that was sent. */
  async segment(query, options = {}) {
    const answer = await (await this.post("segment", query, options)).json();
    if (answer.images) answer.images[0].file_name = query.image?.name ?? "";
    return answer;
  }

  classify(episode, queries, options = {}) {
    const form = new FormData();
    for (const file of queries) form.append("query", file, file.name ?? "image");
    return this.json("POST", `fewshot/episodes/${episode}/classify`, { body: form, ...options });
  }

  live(handlers) {
    return new LiveSearch(this, handlers);
  }
}

/** Search while drawing: answers come in the order of their queries, the newest last; a broken connection is opened again. */
export class LiveSearch {
  /** `onresults(message, ms)`, `onproblem(problem)` and `onstate("connecting" | "open" | "full" | "key" | "offline")`. */
  constructor(client, { onresults = () => {}, onproblem = () => {}, onstate = () => {} } = {}) {
    Object.assign(this, { client, onresults, onproblem, onstate });
    this.seq = 0;
    this.newest = null; // the query that is unanswered, sent again after a reconnect
    this.answered = 0; // answers up to this one are older than what is shown
    this.sentAt = new Map();
    this.delay = 250;
    this.isClosed = false;
    this.connect();
  }

  /** Searches with `{strokes, width, height, text?, gallery?, k?, filter?}`; of queries that wait the newest is answered. */
  search(query) {
    this.seq += 1;
    this.newest = { ...query, type: "query", seq: this.seq };
    this.flush();
  }

  /** Drops the query that is unanswered. */
  forget() {
    this.seq += 1;
    this.answered = this.seq;
    this.newest = null;
    this.sentAt.clear();
  }

  close() {
    this.isClosed = true;
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.close(); // a browser warns where it was still connecting
  }

  connect() {
    if (this.isClosed) return;
    this.onstate("connecting");
    const url = this.client.url("retrieve/live");
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.onopen = () => {
      if (this.isClosed) return socket.close();
      if (this.client.key) socket.send(JSON.stringify({ type: "auth", key: this.client.key }));
      this.onstate("open");
      this.flush();
    };
    socket.onmessage = ({ data }) => {
      this.delay = 250;
      this.#take(JSON.parse(data));
    };
    socket.onclose = ({ code }) => {
      if (this.isClosed || socket !== this.socket) return;
      if (code === 4401 || code === 4403) return this.onstate("key");
      this.onstate(code === 4429 ? "full" : "offline");
      setTimeout(() => this.connect(), this.delay);
      this.delay = Math.min(8000, this.delay * 2);
    };
  }

  flush() {
    if (this.newest === null || this.socket?.readyState !== WebSocket.OPEN) return;
    this.sentAt.set(this.newest.seq, performance.now());
    this.socket.send(JSON.stringify(this.newest));
  }

  #take(message) {
    if (message.seq !== null && message.seq <= this.answered) return; // older than what is shown
    if (message.type === "results") {
      this.answered = message.seq;
      if (message.seq === this.seq) this.newest = null;
      const sentAt = this.sentAt.get(message.seq) ?? performance.now();
      for (const seq of this.sentAt.keys()) if (seq <= message.seq) this.sentAt.delete(seq);
      this.onresults(message, performance.now() - sentAt);
    } else if (message.seq === null || message.seq === this.seq) {
      const { seq } = this;
      const again = () => seq === this.seq && this.newest && this.search(this.newest); // a number of its own
      if (message.problem.retry_after_s) setTimeout(again, message.problem.retry_after_s * 1000);
      this.onproblem(message.problem);
    }
  }
}

/** A form where a member is a file, else the object itself. */
function bodyOf(query) {
  if (!Object.values(query).some((value) => value instanceof Blob)) return query;
  const form = new FormData();
  for (const [name, value] of Object.entries(query)) {
    if (value === null || value === undefined) continue;
    if (value instanceof Blob) form.append(name, value, value.name ?? "image");
    else if (Array.isArray(value)) for (const each of value) form.append(name, typeof each === "string" ? each : JSON.stringify(each));
    else form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  return form;
}

async function problemOf(response) {
  try {
    return await response.json();
  } catch {
    return { status: response.status, title: response.statusText, detail: `The service answered ${response.status}.` };
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/** Not `crypto.randomUUID`: pages on plain HTTP have it on this machine alone. */
function randomHex() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
