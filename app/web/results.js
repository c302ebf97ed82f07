import { h, isCalm, milliseconds } from "./dom.js";

const PHASES = ["decode", "queue", "inference", "search"];

/** A grid of result cards; cards that stay glide to their new places. */
export class Results {
  /** `actions(result)` gives the buttons of a card, `[label, title, run]` each. */
  constructor(client, { actions = () => [], onmore = null } = {}) {
    this.client = client;
    this.actions = actions;
    this.cards = new Map();
    this.list = h("ol", { class: "results", "aria-label": "Results" });
    this.end = h("div", { class: "end" });
    this.count = h("p", { class: "hidden", "aria-live": "polite" });
    this.element = h("section", { class: "found" }, this.count, this.list, this.end);
    this.observer = new IntersectionObserver((seen) => seen[0].isIntersecting && this.cards.size && onmore?.(), { rootMargin: "200px" });
  }

  show(results) {
    const before = new Map([...this.cards].map(([id, card]) => [id, card.getBoundingClientRect()]));
    const shown = new Map();
    results.forEach((result, rank) => {
      const card = this.cards.get(result.id) ?? this.#card(result);
      card.querySelector(".bar").style.setProperty("--share", Math.max(0.02, Math.min(1, result.score)));
      card.querySelector(".score").textContent = result.score.toFixed(2);
      card.dataset.rank = rank + 1;
      shown.set(result.id, card);
    });
    this.cards = shown;
    this.list.replaceChildren(...shown.values());
    this.count.textContent = `${results.length} results, the best: ${results[0]?.metadata?.name ?? results[0]?.id}`;
    // It reports changes alone: where all results fit, it must look again.
    this.observer.unobserve(this.end);
    this.observer.observe(this.end);
    if (isCalm() || !before.size) return;
    for (const [id, card] of shown) {
      const [from, to] = [before.get(id), card.getBoundingClientRect()];
      if (!from) card.animate([{ opacity: 0, transform: "scale(.92)" }, { opacity: 1, transform: "none" }], { duration: 160, easing: "ease-out" });
      else if (Math.abs(from.left - to.left) + Math.abs(from.top - to.top) > 1)
        card.animate([{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: "none" }], { duration: 220, easing: "cubic-bezier(.2,.8,.2,1)" });
    }
  }

  empty(...content) {
    this.cards.clear();
    this.list.replaceChildren(h("li", { class: "empty" }, ...content));
  }

  #card(result) {
    const name = String(result.metadata?.name ?? result.metadata?.title ?? result.id);
    const ondragstart = (event) => event.dataTransfer.setData("text/uri-list", this.client.url(result.image_url).href);
    const image = h("img", { alt: name, width: 128, height: 128, decoding: "async", draggable: true, ondragstart, onerror: () => card.classList.add("gone") });
    this.client.show(image, result.image_url, { size: 256 });
    const buttons = this.actions(result).map(([label, title, run]) => h("button", { class: "chip", title, "aria-label": `${title}: ${name}`, onclick: run }, label));
    const card = h(
      "li",
      { class: "card", "data-id": result.id },
      h("figure", {}, image, h("figcaption", { title: name }, name)),
      h("div", { class: "meter" }, h("span", { class: "bar" }), h("span", { class: "score" })),
      h("div", { class: "actions" }, buttons),
    );
    return card;
  }
}

/** One thin bar of where the time of a request went. */
export function timingBar(timings, roundTripMs) {
  const known = PHASES.filter((phase) => phase in timings);
  const sum = known.reduce((total, phase) => total + timings[phase], 0);
  const other = Math.max(0, roundTripMs - sum);
  const parts = [...known.map((phase) => [phase, timings[phase]]), ["transfer and rest", other]];
  const label = parts.map(([phase, ms]) => `${phase} ${milliseconds(ms)}`).join(", ");
  return h(
    "div",
    { class: "timing", role: "img", "aria-label": label },
    h("div", { class: "stack" }, parts.map(([phase, ms]) => {
      const part = h("span", { class: `phase ${phase.split(" ")[0]}`, title: `${phase} ${milliseconds(ms)}` });
      part.style.flexGrow = Math.max(ms, 0.01);
      return part;
    })),
    h("ul", { "aria-hidden": "true" }, parts.map(([phase, ms]) => h("li", { class: phase.split(" ")[0] }, `${phase} `, h("b", {}, milliseconds(ms))))),
  );
}
