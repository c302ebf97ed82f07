/**
 * A client of the Vermouth API for browsers: one file, no build, no dependency.
 *
 *   import { Vermouth } from "./vermouth.js";
 *   const vermouth = new Vermouth({ base: "https://vermouth.example/", key: "vm_…" });
 *   const { results } = await vermouth.retrieve({ text: "a red fish", k: 12 });
 *   const live = vermouth.live({ onresults: (message) => show(message.results) });
 *   live.search({ strokes, width: 256, height: 256 });
 */

const RETRIES = 3; // of requests that change nothing twice, after 429 and 503
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
  /** `base` is the URL of the service (default: the page's own), `key` an API key. */
  constructor({ base = globalThis.document?.baseURI, key = null } = {}) {
    this.base = new URL(base);
    this.key = key;
    this.onwait = () => {}; // called with the seconds until a request is tried again
  }

  url(path, query = {}) {
    const url = new URL(path.replace(/^\//, ""), this.base);
    for (const [name, value] of Object.entries(query)) if (value != null) url.searchParams.set(name, value);
    return url;
  }

  /** Sends one request; `body` is a FormData, or an object that is sent as JSON. Returns the Response of a success. */
  async send(method, path, { body = null, query = {}, headers = {}, signal = null } = {}) {
    const isForm = body instanceof FormData;
    const sent = { ...headers };
    if (this.key) sent["X-API-Key"] = this.key;
    if (body !== null && !isForm) sent["Content-Type"] = "application/json";
    const init = { method, headers: sent, signal, body: body === null || isForm ? body : JSON.stringify(body) };
    for (let attempt = 1; ; attempt += 1) {
      let response;
      try {
        response = await fetch(this.url(path, query), init);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new VermouthError(0, { title: "Offline", detail: "The service does not answer." });
      }
      if (response.ok || response.status === 304) return response;
      const wait = Number(response.headers.get("Retry-After")) || null;
      const isSafe = method === "GET" || !path.includes("items") || "Idempotency-Key" in sent;
      if ([429, 503].includes(response.status) && wait && wait <= LONGEST_WAIT_S && attempt < RETRIES && isSafe) {
        this.onwait(wait);
        await pause(wait * 1000, signal);
        continue;
      }
      throw new VermouthError(response.status, await problemOf(response), wait);
    }
  }

  async json(method, path, options) {
    return (await this.send(method, path, options)).json();
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

  /** `query` as the JSON body of `POST /retrieve`; with a File or Blob as `sketch` or `image` it is sent as a form. */
  retrieve(query, options = {}) {
    const files = ["sketch", "image"].filter((name) => query[name] instanceof Blob);
    return this.json("POST", "retrieve", { body: files.length ? formOf(query) : query, ...options });
  }

  segment(query, options = {}) {
    return this.json("POST", "segment", { body: query.image instanceof Blob ? formOf(query) : query, ...options });
  }

  /** Shows an image of the service in an `<img>`; with a key it is fetched, as `src` cannot send one. */
  async show(image, path, query = {}) {
    if (!this.key) {
      image.src = this.url(path, query).href;
      return;
    }
    try {
      const url = URL.createObjectURL(await (await this.send("GET", path, { query })).blob());
      image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
      image.src = url;
    } catch {
      image.dispatchEvent(new Event("error"));
    }
  }

  live(handlers) {
    return new LiveSearch(this, handlers);
  }
}

/** Search while drawing: answers come in the order of their queries, the newest last; a broken connection is opened again. */
export class LiveSearch {
  /** `onresults(message)`, `onproblem(problem)` and `onstate("connecting" | "open" | "full" | "key" | "offline")`. */
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
    this.socket?.close();
  }

  connect() {
    if (this.isClosed) return;
    this.onstate("connecting");
    const url = this.client.url("retrieve/live");
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.onopen = () => {
      if (this.client.key) socket.send(JSON.stringify({ type: "auth", key: this.client.key }));
      this.onstate("open");
      this.flush();
    };
    socket.onmessage = ({ data }) => {
      this.delay = 250;
      const message = JSON.parse(data);
      if (message.seq !== null && message.seq <= this.answered) return; // older than what is shown
      if (message.type === "results") {
        this.answered = message.seq;
        if (message.seq === this.seq) this.newest = null;
        this.onresults(message, performance.now() - (this.sentAt.get(message.seq) ?? performance.now()));
        for (const seq of this.sentAt.keys()) if (seq <= message.seq) this.sentAt.delete(seq);
      } else if (message.seq === null || message.seq === this.seq) {
        const { seq } = this;
        const again = () => seq === this.seq && this.newest && this.search(this.newest); // a number of its own
        if (message.problem?.retry_after_s) setTimeout(again, message.problem.retry_after_s * 1000);
        this.onproblem(message.problem);
      }
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
}

function formOf(query) {
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
