import { h, iconButton, isCalm, milliseconds } from "./dom.js";

const PHASES = ["decode", "queue", "inference", "search"];

/** A grid of result cards; cards that stay glide to their new places. */
export class Results {
  /** `actions` is `[icon, title, run(result)]` of each button of a card; `onmore()` is called near the end of the list. */
  constructor(client, { actions = [], onmore }) {
    Object.assign(this, { client, actions });
    this.cards = new Map();
    this.list = h("ol", { class: "results", "aria-label": "Results" });
    this.end = h("div", { class: "end" });
    this.count = h("p", { class: "hidden", "aria-live": "polite" });
    this.element = h("section", { class: "found", "aria-label": "Results" }, this.count, this.list, this.end);
    this.observer = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.cards.size && onmore(), { rootMargin: "200px" });
  }

  show(results) {
    const before = new Map([...this.cards].map(([key, card]) => [key, card.getBoundingClientRect()]));
    this.cards = new Map(results.map((result) => [keyOf(result), this.#updated(this.cards.get(keyOf(result)) ?? this.#card(result), result)]));
    this.list.replaceChildren(...this.cards.values());
    this.count.textContent = `${results.length} results, the best: ${nameOf(results[0])}`;
    this.#watchEnd();
    if (!isCalm() && before.size) this.#glide(before);
  }

  append(results) {
    for (const result of results) {
      if (this.cards.has(keyOf(result))) continue;
      const card = this.#updated(this.#card(result), result);
      this.cards.set(keyOf(result), card);
      this.list.append(card);
    }
    this.#watchEnd();
  }

  empty(...content) {
    this.cards.clear();
    this.list.replaceChildren(h("li", { class: "empty" }, ...content));
  }

  close() {
    this.observer.disconnect();
  }

  /** The observer reports changes alone: where all results fit, it must look again. */
  #watchEnd() {
    this.observer.unobserve(this.end);
    this.observer.observe(this.end);
  }

  #glide(before) {
    const moves = [...this.cards].map(([key, card]) => [card, before.get(key), card.getBoundingClientRect()]); // all read before the first write
    for (const [card, from, to] of moves) {
      if (to.top > innerHeight) continue;
      if (!from) card.animate([{ opacity: 0, transform: "scale(.94)" }, { opacity: 1, transform: "none" }], { duration: 180, easing: "ease-out" });
      else if (Math.abs(from.left - to.left) + Math.abs(from.top - to.top) > 1)
        card.animate([{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: "none" }], { duration: 260, easing: "cubic-bezier(.2,.8,.2,1)" });
    }
  }

  #updated(card, result) {
    card.querySelector(".bar").style.setProperty("--share", Math.max(0.02, Math.min(1, result.score)));
    card.querySelector(".score").textContent = result.score.toFixed(2);
    return card;
  }

  #card(result) {
    const name = nameOf(result);
    const address = this.client.url(result.image_url, { size: 256 }).href;
    const image = h("img", { alt: "", width: 128, height: 128, draggable: true, src: address, onerror: () => card.classList.add("gone"), ondragstart: (event) => event.dataTransfer.setData("text/uri-list", address) });
    const buttons = this.actions.map(([shape, title, run]) => iconButton(shape, `${title}: ${name}`, () => run(result)));
    const card = h("li", { class: "card", "data-id": result.id },
      h("figure", {}, image, h("figcaption", { title: name }, name)),
      h("div", { class: "meter" }, h("span", { class: "bar" }), h("span", { class: "score" })),
      h("div", { class: "actions" }, buttons));
    return card;
  }
}

/** What stays the same of an item: its gallery and id, without a signature. */
const keyOf = ({ image_url: address }) => address.split("?")[0];

/** The name of an item: of its metadata, else of its file. */
export const nameOf = ({ id, metadata }) => String(metadata?.name ?? metadata?.title ?? (String(metadata?.path ?? "").split("/").at(-1).replace(/\.\w+$/, "") || id));

/** One thin bar of where the time of a request went. */
export function timingBar(timings, roundTripMs) {
  const known = PHASES.filter((phase) => phase in timings).map((phase) => [phase, timings[phase]]);
  const parts = [...known, ["transfer", Math.max(0, roundTripMs - known.reduce((sum, [, ms]) => sum + ms, 0))]];
  const stack = parts.map(([phase, ms]) => {
    const part = h("span", { class: `phase ${phase}`, title: `${phase} ${milliseconds(ms)}` });
    part.style.flexGrow = Math.max(ms, 0.01);
    return part;
  });
  return h("div", { class: "timing", role: "img", "aria-label": parts.map(([phase, ms]) => `${phase} ${milliseconds(ms)}`).join(", ") },
    h("div", { class: "stack" }, stack),
    h("ul", {}, parts.map(([phase, ms]) => h("li", { class: phase }, `${phase} `, h("b", {}, milliseconds(ms))))));
}
