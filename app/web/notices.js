import { $, copy, h } from "./dom.js";
import { VermouthError } from "./vermouth.js";

const PROBE_MS = 500; // between questions whether the service is there

/** What the page says when something is not as it should be: one notice below the header, or a whole screen. */
export class Notices {
  /** `onkey(key)` gets what was typed; `onback()` is called when a service that was away answers again. */
  constructor(client, { onkey, onback }) {
    Object.assign(this, { client, onkey, onback });
    this.place = $("#notice");
    this.view = $("#view");
    $("#key-button").addEventListener("click", () => this.askForKey());
    addEventListener("offline", () => this.away({}));
  }

  clear() {
    clearInterval(this.timer);
    if (!this.isAway) this.place.replaceChildren();
  }

  /** Shows an error in the service's own words; what is no answer of the service is a fault of this page and is logged too. */
  problem(error) {
    if (!(error instanceof VermouthError)) {
      console.error(error);
      error = new VermouthError(0, { title: "This did not work", detail: error.message, code: "page" });
    }
    if (error.status === 401 || error.status === 403) return this.#ask(error);
    if ((error.status === 0 && error.code !== "page") || (error.status === 503 && error.code === "unavailable")) return this.away(error.problem);
    this.#show(error);
  }

  /** A refused request that is sent again: counts down until then. */
  busy(seconds, problem) {
    this.#show(new VermouthError(429, { title: "Busy", detail: "The service is busy. This is sent again", request_id: problem?.request_id }, seconds));
  }

  /** Says that the service went away and asks until it is back. */
  async away(problem) {
    if (this.isAway) return;
    this.isAway = true;
    for (;;) {
      const line = problem.detail ? `${problem.detail} This page reconnects by itself.` : "The service does not answer. This page reconnects by itself.";
      this.place.replaceChildren(h("div", { class: "problem-box soft" }, h("span", { class: "swirl small", "aria-hidden": "true" }), h("strong", {}, problem.detail ? "Restarting" : "Offline"), h("span", {}, line)));
      await new Promise((resolve) => setTimeout(resolve, 2 * PROBE_MS));
      const answer = await this.#probe("readyz");
      if (answer === null) break;
      problem = answer;
    }
    this.isAway = false;
    this.clear();
    this.onback();
  }

  /** Waits while the service starts, and shows each stage of it. */
  async untilStarted() {
    const stages = [];
    for (let asked = 0; ; asked += 1) {
      const problem = await this.#probe("startupz");
      if (problem === null) return;
      const stage = /: (.+?)\.?$/.exec(problem.detail ?? "")?.[1];
      if (stage && !stages.includes(stage)) stages.push(stage);
      const text = problem.detail ? "The model is being loaded; this page opens by itself." : "The service does not answer. This page goes on as soon as it does.";
      this.view.replaceChildren(h("div", { class: "waiting" },
        h("div", { class: "swirl", "aria-hidden": "true" }),
        h("h1", {}, problem.detail ? "Starting" : "Offline"),
        h("p", {}, text),
        h("ol", { class: "stages", "aria-label": "Stages" }, stages.map((name, at) => h("li", { class: at < stages.length - 1 ? "done" : "" }, name)))));
      await new Promise((resolve) => setTimeout(resolve, PROBE_MS));
    }
  }

  /** Null where the service is ready, its problem where it is not, and an empty one where it does not answer. */
  async #probe(path) {
    try {
      const response = await fetch(this.client.url(path), { cache: "no-store" });
      return response.ok ? null : await response.json();
    } catch {
      return {};
    }
  }

  async askForKey() {
    this.#ask(null, { isNeeded: await this.#needsKey() });
  }

  /** Whether the service refuses requests without a key. */
  async #needsKey() {
    if (this.client.hasSession) return true;
    const response = await fetch(this.client.url("bundle"), { credentials: "omit" }).catch(() => null);
    return !response?.ok;
  }

  /** Asks for a key, after an error that another one may avert; `isRefused` where that is about the key that was typed. */
  #ask(error, { isNeeded = true, isRefused = false } = {}) {
    const dialog = $("#key-dialog");
    // Of requests that were sent without the key that is being tried, answers still come.
    if (dialog.open || (this.isTrying && error?.status === 401)) return;
    const text = error?.status === 403 ? "The key in use may not do this. Another one may." : "This service asks for a key. It is exchanged for a session of eight hours; this page does not store it.";
    $("#key-text").textContent = isNeeded ? text : "This service needs no key.";
    $("#key-problem").textContent = isRefused ? (error.status === 401 ? "This key is unknown." : error.message) : "";
    for (const element of [$("label", dialog), $(".primary", dialog)]) element.hidden = !isNeeded;
    $(".secondary", dialog).textContent = isNeeded ? "Cancel" : "Close";
    $("form", dialog).onsubmit = ({ submitter }) => {
      const key = $("#key").value.trim();
      if (submitter?.value === "ok" && key) this.#try(key);
    };
    $("#key").value = "";
    dialog.showModal();
  }

  async #try(key) {
    this.isTrying = true;
    const refused = await this.onkey(key).then(() => null, (error) => error);
    this.isTrying = false;
    if (refused?.status === 401 || refused?.status === 403) this.#ask(refused, { isRefused: true });
    else if (refused) this.problem(refused);
  }

  #show(error) {
    this.clear();
    const { problem, requestId, retryAfterS } = error;
    const left = retryAfterS && h("span", { class: "countdown" });
    const id = requestId && h("button", { class: "quiet", title: "Copy the request id", onclick: (event) => copy(requestId, event.currentTarget) }, `request ${requestId.slice(0, 8)}`);
    const fields = (problem.errors?.length > 1 ? problem.errors : []).map((each) => h("li", {}, Object.values(each).filter((value) => typeof value === "string").join(": ")));
    this.place.replaceChildren(h("div", { class: `problem-box ${error.status === 429 ? "soft" : ""}` },
      h("strong", {}, problem.title ?? "Problem"), h("span", {}, error.message, left ? " " : "", left || null), id || null,
      h("button", { class: "quiet", "aria-label": "Dismiss", onclick: () => this.clear() }, "×"), fields.length ? h("ul", {}, fields) : null));
    if (left) this.#countDown(left, retryAfterS);
  }

  #countDown(element, seconds) {
    const endsAt = performance.now() + seconds * 1000;
    const step = () => {
      const left = Math.ceil((endsAt - performance.now()) / 1000);
      element.textContent = left > 0 ? `in ${left} s.` : "now.";
      if (left <= 0) clearInterval(this.timer);
    };
    step();
    this.timer = setInterval(step, 250);
  }
}
