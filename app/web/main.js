import { Code } from "./code.js";
import { $, h, milliseconds } from "./dom.js";
import { Vermouth, VermouthError } from "./vermouth.js";

const TABS = ["draw", "segment", "teach", "galleries"];
const PROBE_MS = 400; // between questions whether the service is ready
const client = new Vermouth({ key: sessionStorage.getItem("vermouth-key") });
const view = $("#view");

/** What every tab gets. */
export const shell = {
  client,
  gallery: "default",
  galleries: [],
  code: new Code(client, $("#code-button"), $("#code")),
  /** Shows a problem in words, or nothing; 401 and 403 ask for a key. */
  problem(error) {
    if (error === null) return $("#notice").replaceChildren();
    if (!(error instanceof VermouthError)) {
      console.error(error);
      error = new VermouthError(0, { title: "This did not work", detail: error.message });
    }
    if (error.status === 401 || error.status === 403) return askForKey(error.message);
    $("#notice").replaceChildren(problemNotice(error));
  },
  /** Sets the live badge: how long the last answer took. */
  took(ms) {
    $("#badge").replaceChildren(...[bundle?.name, bundle?.device.toUpperCase(), milliseconds(ms)].filter(Boolean).flatMap((part, at) => (at ? [" · ", part] : [part])));
  },
  /** Puts what the tab shows into the address, so that it can be passed on. */
  link(parameters) {
    const url = new URL(location.href);
    for (const [name, value] of Object.entries(parameters)) value ? url.searchParams.set(name, value) : url.searchParams.delete(name);
    history.replaceState(null, "", url);
  },
  parameter: (name) => new URLSearchParams(location.search).get(name),
  open: (tab) => openTab(tab),
  refresh: () => loadGalleries(),
  /** Makes a gallery the current one of every tab. */
  choose(name) {
    shell.gallery = name;
    shell.link({ gallery: name });
  },
};

let bundle = null;
let current = null;
let turns = 0; // of tabs that were opened

async function boot() {
  await untilReady();
  try {
    bundle = await client.bundle();
    await loadGalleries();
  } catch (error) {
    if (!(error instanceof VermouthError)) throw error;
    shell.problem(error);
    if (error.status !== 401 && error.status !== 403) setTimeout(boot, 2000);
    return;
  }
  $("#note").textContent = `The bundle “${bundle.name}” is loaded.`;
  shell.took(0);
  $("#badge").textContent = `${bundle.name} · ${bundle.device.toUpperCase()}`;
  openTab(TABS.includes(shell.parameter("tab")) ? shell.parameter("tab") : "draw");
}

/** Waits while the service starts, drains or is away, and says which. */
async function untilReady() {
  for (let asked = 0; ; asked += 1) {
    let status = 0;
    let problem = {};
    try {
      const response = await fetch(client.url("startupz"), { cache: "no-store" });
      if (response.ok) return;
      status = response.status;
      problem = await response.json();
    } catch {
      // The service does not answer: offline.
    }
    if (asked > 0) view.replaceChildren(waiting(status ? "Starting" : "Offline", problem.detail ?? "The service does not answer. This page goes on as soon as it does."));
    await new Promise((resolve) => setTimeout(resolve, PROBE_MS));
  }
}

async function loadGalleries() {
  shell.galleries = (await client.galleries()).galleries;
  const wanted = shell.parameter("gallery");
  if (shell.galleries.some(({ name }) => name === wanted)) shell.gallery = wanted;
  const picker = $("#gallery");
  picker.replaceChildren(...shell.galleries.map(({ name, count }) => h("option", { value: name, selected: name === shell.gallery }, `${name} (${count})`)));
  picker.onchange = () => {
    shell.choose(picker.value);
    current?.reload?.();
  };
}

async function openTab(name) {
  current?.close?.();
  current = null;
  turns += 1;
  const turn = turns;
  for (const button of $("#tabs").children) {
    const isOpen = button.dataset.tab === name;
    button.setAttribute("aria-selected", String(isOpen));
    button.tabIndex = isOpen ? 0 : -1;
  }
  shell.link({ tab: name === "draw" ? null : name });
  view.setAttribute("aria-labelledby", `tab-${name}`);
  view.setAttribute("aria-busy", "true");
  const module = await import(`./${name}.js`);
  if (turn !== turns) return; // another tab was chosen meanwhile
  shell.problem(null);
  current = module.open(shell, view);
  view.setAttribute("aria-busy", "false");
}

function waiting(title, text) {
  return h("div", { class: "waiting" }, h("div", { class: "swirl", "aria-hidden": "true" }), h("h2", {}, title), h("p", {}, text));
}

function problemNotice(error) {
  const { problem } = error;
  const id = error.requestId && h("button", { class: "quiet", title: "Copy the request id", onclick: () => navigator.clipboard.writeText(error.requestId) }, `request ${error.requestId.slice(0, 8)}`);
  const close = h("button", { class: "quiet", "aria-label": "Dismiss", onclick: () => shell.problem(null) }, "×");
  const box = h("div", { class: `problem-box ${error.status === 429 || error.status === 503 ? "soft" : ""}` }, h("strong", {}, problem.title ?? "Problem"), h("span", {}, error.message), id || null, close);
  if (error.retryAfterS) countDown(box, error.retryAfterS);
  return box;
}

function countDown(box, seconds) {
  const left = h("span", { class: "countdown" }, `again in ${Math.ceil(seconds)} s`);
  box.insertBefore(left, box.lastChild);
  const timer = setInterval(() => {
    seconds -= 1;
    left.textContent = seconds > 0 ? `again in ${Math.ceil(seconds)} s` : "now";
    if (seconds <= 0) clearInterval(timer);
  }, 1000);
}

function askForKey(reason = "") {
  const dialog = $("#key-dialog");
  $("#key-problem").hidden = !reason || !client.key;
  $("#key-problem").textContent = reason;
  if (!dialog.open) {
    dialog.returnValue = ""; // else Escape would mean what the last click meant
    dialog.showModal();
  }
  dialog.onclose = () => {
    if (dialog.returnValue !== "ok") return;
    client.key = $("#key").value.trim() || null;
    if (client.key) sessionStorage.setItem("vermouth-key", client.key);
    else sessionStorage.removeItem("vermouth-key");
    boot();
  };
}

client.onwait = (seconds) => shell.problem(new VermouthError(429, { title: "Busy", detail: "The service is busy; the request is sent again." }, seconds));
$("#key-button").addEventListener("click", () => askForKey());
$("#tabs").addEventListener("click", (event) => event.target.dataset.tab && openTab(event.target.dataset.tab));
$("#tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = TABS[(TABS.indexOf(event.target.dataset.tab) + step + TABS.length) % TABS.length];
  $(`#tab-${next}`).focus();
  openTab(next);
});
boot();
