import { h } from "./dom.js";

const SAMPLED = 50; // items that are asked for their fields
const MOST_FIELDS = 4;
const MOST_VALUES = 12;
const RESERVED = ["and", "or", "not", "field", "op"]; // fields of such names have another form

/** Filter chips of a gallery: the values of its metadata fields that several items share. */
export class Facets {
  /** `onchange()` is called when `filter` has changed. */
  constructor(client, onchange) {
    Object.assign(this, { client, onchange });
    this.element = h("div", { class: "facets", role: "group", "aria-label": "Filter" });
    this.chosen = new Map(); // field → Set of values
  }

  /** The filter of the API, or undefined where nothing is chosen. */
  get filter() {
    const fields = [...this.chosen].filter(([, values]) => values.size).map(([field, values]) => (RESERVED.includes(field) ? { field, op: "in", value: [...values] } : { [field]: { in: [...values] } }));
    return fields.length > 1 ? { and: fields } : fields[0];
  }

  load(gallery) {
    this.gallery = gallery;
    this.chosen.clear();
    this.element.replaceChildren();
    return this.refresh();
  }

  /** Counts again; what is chosen stays, as far as there still are items of it. */
  async refresh() {
    const { gallery } = this;
    const { items } = await this.client.items(gallery, { limit: SAMPLED });
    const seen = new Map(); // field → its values, one an item
    for (const { metadata } of items)
      for (const [field, value] of Object.entries(metadata)) if (["string", "number", "boolean"].includes(typeof value)) seen.set(field, [...(seen.get(field) ?? []), value]);
    const shared = [...seen].filter(([field, values]) => this.chosen.get(field)?.size || isShared(values)).slice(0, MOST_FIELDS);
    const found = await Promise.all(shared.map(([field]) => this.client.facets(gallery, field, MOST_VALUES)));
    if (gallery !== this.gallery) return; // another one was loaded meanwhile
    const before = JSON.stringify(this.filter);
    const left = new Map(found.map(({ field, facets }) => [field, facets.map(({ value }) => value)]));
    for (const [field, values] of this.chosen) for (const value of values) if (!left.get(field)?.includes(value)) values.delete(value);
    this.element.replaceChildren(...found.map((each) => this.#field(each)));
    if (JSON.stringify(this.filter) !== before) this.onchange();
  }

  #field({ field, facets, total }) {
    const chips = facets.filter(({ value }) => value !== null).map(({ value, count }) => {
      const chip = h("button", { class: "chip", "aria-pressed": String(this.chosen.get(field)?.has(value) ?? false), onclick: () => {
        const values = this.chosen.get(field) ?? new Set();
        this.chosen.set(field, values);
        if (!values.delete(value)) values.add(value);
        chip.setAttribute("aria-pressed", String(values.has(value)));
        this.onchange();
      } }, String(value), h("span", { class: "figures" }, count.toLocaleString("en")));
      return chip;
    });
    return h("div", { class: "chips" }, h("span", { class: "field" }, field), chips, total > facets.length ? h("span", { class: "figures" }, `and ${total - facets.length} more`) : null);
  }
}

/** Whether values sort items into kinds: two or three, or more of which most have three items; else they are names. */
function isShared(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  if (counts.size <= 3) return counts.size < values.length;
  return 2 * values.filter((value) => counts.get(value) >= 3).length >= values.length;
}
