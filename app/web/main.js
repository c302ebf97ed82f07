import { Code } from "./code.js";
import { $, h, milliseconds } from "./dom.js";
import { Notices } from "./notices.js";
import { Vermouth } from "./vermouth.js";

const TABS = ["draw", "segment", "teach", "galleries"];
const client = new Vermouth();
const view = $("#view");
const notices = new Notices(client, {
  onkey: async (key) => {
    await client.openSession(key);
    sessionStorage.setItem("vermouth-session", "1"); // that there is one: the key itself is not stored
    await boot();
  },
  onback: () => boot(),
});
client.hasSession = sessionStorage.getItem("vermouth-session") !== null;
client.onwait = (seconds, problem) => notices.busy(seconds, problem);

let bundle = null;
const opened = {}; // tabs stay as they were left
let current = null;
let turns = 0; // of tabs that were opened

/** What every tab gets. */
const shell = {
  client,
  gallery: parameter("gallery") ?? "default",
  galleries: [],
  examples: [], // images that were taken on other tabs for Teach: `{file, name}`
  code: new Code(client, $("#code-button"), $("#code")),
  problem: (error) => (error === null ? notices.clear() : notices.problem(error)),
  parameter,
  /** Sets the live badge: how long the last answer took. */
  took(ms) {
    $("#badge").textContent = [bundle?.name, bundle?.device.toUpperCase(), ms === null ? null : milliseconds(ms)].filter(Boolean).join(" · ");
  },
  /** Puts what the tab shows into the address, so that it can be passed on. */
  link(parameters) {
    const url = new URL(location.href);
    for (const [name, value] of Object.entries(parameters)) value ? url.searchParams.set(name, value) : url.searchParams.delete(name);
    if (url.href !== location.href) history.replaceState(null, "", url);
  },
  open: (tab) => openTab(tab),
  /** Makes a gallery the current one of every tab. */
  choose(name) {
    shell.gallery = name;
    shell.link({ gallery: name === "default" ? null : name });
    $("#gallery").value = name;
    current?.reload?.();
  },
  async refresh() {
    shell.galleries = (await client.galleries()).galleries;
    if (!shell.galleries.some(({ name }) => name === shell.gallery)) shell.gallery = "default";
    $("#gallery").replaceChildren(...shell.galleries.map(({ name, count }) => h("option", { value: name, selected: name === shell.gallery }, `${name} (${count.toLocaleString("en")})`)));
  },
  /** Counts the examples that wait for Teach. */
  showExamples() {
    $("#waiting").textContent = shell.examples.length || "";
  },
};

function parameter(name) {
  return new URLSearchParams(location.search).get(name);
}

async function boot() {
  notices.clear();
  await notices.untilStarted();
  openTab(TABS.includes(parameter("tab")) ? parameter("tab") : "draw"); // it draws while the rest is asked for
  try {
    [bundle] = await Promise.all([client.bundle(), shell.refresh()]);
  } catch (error) {
    return notices.problem(error);
  }
  $("#note").textContent = bundle.manifest.good_for || `The bundle “${bundle.name}” is loaded.`;
  if (!$("#badge").textContent.includes("ms")) shell.took(null);
}

async function openTab(name) {
  current?.close?.();
  current = null;
  view.setAttribute("aria-busy", "true");
  turns += 1;
  const turn = turns;
  for (const button of $("#tabs").children) {
    const isOpen = button.dataset.tab === name;
    button.setAttribute("aria-selected", String(isOpen));
    button.tabIndex = isOpen ? 0 : -1;
  }
  view.setAttribute("aria-labelledby", `tab-${name}`);
  const module = await import(`./${name}.js`);
  if (turn !== turns) return; // another tab was chosen meanwhile
  notices.clear();
  shell.code.show(null);
  current = opened[name] ??= module.open(shell); // reads its parameters; then the address shows this tab's alone
  shell.link({ tab: name === "draw" ? null : name, q: null, d: null, classes: null, episode: null });
  view.replaceChildren(current.element);
  current.show();
  view.setAttribute("aria-busy", "false");
}

$("#gallery").addEventListener("change", (event) => shell.choose(event.target.value));
$("#tabs").addEventListener("click", (event) => {
  const tab = event.target.closest("[data-tab]");
  if (tab) openTab(tab.dataset.tab);
});
$("#tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = TABS[(TABS.indexOf(event.target.dataset.tab) + step + TABS.length) % TABS.length];
  $(`#tab-${next}`).focus();
  openTab(next);
});
boot();
