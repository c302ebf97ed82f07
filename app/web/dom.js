import { icon } from "./icons.js";

/** An element: `h("button", {class: "quiet", onclick: go, disabled: false}, "Go")`. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (selector, root = document) => root.querySelector(selector);

/** A button that shows an icon; `title` names it. */
export const iconButton = (name, title, onclick, attributes = {}) => h("button", { type: "button", class: "tool", title, "aria-label": title, onclick, ...attributes }, icon(name));

/** A hidden picker of files and the function that opens it: `take` gets the files. */
export function filePicker(take, attributes = {}) {
  const input = h("input", { type: "file", accept: "image/*", hidden: true, ...attributes, onchange: () => {
    const files = [...input.files];
    input.value = ""; // else the same file could not be picked twice
    if (files.length) take(files);
  } });
  return input;
}

/** Makes an element take what is dropped on it: `take(transfer)`. */
export function onDrop(element, take) {
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", (event) => element.contains(event.relatedTarget) || element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("over");
    take(event.dataTransfer);
  });
}

/** Buttons of which one is pressed: `choices` is `[[value, content, title?]]`. */
export function choice(label, choices, chosen, pick) {
  const buttons = choices.map(([value, content, title]) => h("button", { type: "button", class: "tool", title: title ?? null, "aria-label": title ?? null, "aria-pressed": String(value === chosen), onclick: () => {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(choices[at][0] === value)));
    pick(value);
  } }, content));
  return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

export const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Calls `run` once, `ms` after the last call. */
export function debounced(run, ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(run, ms, ...values);
  };
}

/** Hands a file to the browser's downloads. */
export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Copies a text; the button says so for a moment. Pages on plain HTTP have no clipboard on other machines. */
export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select and copy it by hand";
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}

export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

export const milliseconds = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
