import { h, iconButton } from "./dom.js";
import { Facets } from "./facets.js";
import { Importing } from "./importing.js";
import { nameOf } from "./results.js";

const PAGE = 60;
const NAME = /^[a-z0-9][a-z0-9_-]{0,63}$/; // of a gallery

export function open(shell) {
  return new Galleries(shell);
}

/** All galleries, and the items of the current one. */
class Galleries {
  constructor(shell) {
    this.shell = shell;
    this.list = h("ul", { class: "gallery-list", "aria-label": "Galleries" });
    this.detail = h("section", { class: "gallery", "aria-label": "Gallery" });
    this.form = this.#creation();
    this.element = h("div", { class: "galleries" }, h("section", { "aria-label": "All galleries" }, this.list, this.form), this.detail);
    this.observer = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.#next(), { rootMargin: "400px" });
  }

  async show() {
    await this.reload();
    if (this.shell.fill === "demo") this.importing?.demo();
    if (this.shell.fill === "folder") this.importing?.element.scrollIntoView();
    this.shell.fill = null;
  }

  close() {
    this.importing?.stop();
  }

  /** Shows the galleries and the current one's items again. */
  reload() {
    return this.reading = this.#do(async () => {
      this.importing?.stop();
      if (this.shown !== this.shell.gallery) this.detail.replaceChildren(); // nothing goes into the one before
      await this.#list();
      await this.#show(await this.shell.client.gallery(this.shell.gallery));
    });
  }

  async #list() {
    await this.shell.refresh();
    this.list.replaceChildren(...this.shell.galleries.map(({ name, count, description }) =>
      h("li", {}, h("button", { "aria-current": String(name === this.shell.gallery), title: description || name, onclick: () => this.shell.choose(name) }, h("span", {}, name), h("span", { class: "figures" }, count.toLocaleString("en"))))));
  }

  /** Shows the counts again after items were deleted; the grid stays as it is. */
  #recount(name) {
    return this.#do(async () => {
      await this.#list();
      const report = await this.shell.client.gallery(name);
      if (name !== this.shell.gallery) return; // another one was opened meanwhile
      this.#count(report);
      await this.facets.refresh();
    });
  }

  #creation() {
    const problem = h("p", { class: "problem", id: "gallery-problem", role: "alert" });
    const box = h("input", { type: "text", placeholder: "new-gallery", "aria-label": "Name of a new gallery", "aria-describedby": problem.id, oninput: () => problem.replaceChildren() });
    return h("form", { class: "row", onsubmit: (event) => {
      event.preventDefault();
      const name = box.value.trim().toLowerCase().replace(/\s+/g, "-"); // “My Photos” is my-photos
      if (!NAME.test(name)) {
        box.focus();
        return problem.replaceChildren("Name it with up to 64 of the letters a–z, digits, _ and -, the first a letter or digit.");
      }
      return this.#do(async () => {
        await this.shell.client.json("PUT", `galleries/${name}`, { body: {} });
        box.value = "";
        this.shell.choose(name);
      });
    } }, box, h("button", { class: "chip" }, "Create"), problem);
  }

  /** Runs requests and shows the problem of one that fails. */
  async #do(run) {
    try {
      return await run();
    } catch (error) {
      this.shell.problem(error);
    }
  }

  #count({ count, index }) {
    this.count = count;
    const kind = index.kind === "flat" ? "exact index" : `${index.kind.toUpperCase()} index`;
    this.figures.textContent = [`${count.toLocaleString("en")} items`, kind, index.recall === null ? (index.kind === "flat" ? "recall 1" : "recall not measured yet") : `recall@10 ${index.recall.toFixed(3)}`].join(" · ");
  }

  async #show(report) {
    const { name } = report;
    if (name !== this.shell.gallery) return; // another one was opened meanwhile
    const isAgain = this.shown === name && this.detail.firstChild;
    const focused = document.activeElement;
    if (!isAgain) this.deletion = name === "default" ? null : this.#deletion(name); // what was typed there stays
    this.shown = name;
    this.figures = h("span", { class: "figures" });
    this.#count(report);
    this.grid = h("ol", { class: "results items", "aria-label": `Items of ${name}` });
    this.end = h("div", { class: "end" });
    this.facets = new Facets(this.shell.client, () => this.#fill());
    this.importing = new Importing(this.shell, name, () => this.reload());
    this.detail.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, name), this.figures, this.deletion),
      this.importing.element, this.facets.element, this.grid, this.end);
    if (this.deletion?.contains(focused)) focused.focus();
    this.observer.disconnect();
    await this.facets.load(name);
    await this.#fill();
  }

  async #fill() {
    this.turn = (this.turn ?? 0) + 1; // what an earlier question still answers is dropped
    this.isLoading = false;
    this.cursor = undefined;
    this.grid.replaceChildren();
    await this.#next();
  }

  async #next() {
    if (this.isLoading || this.cursor === null) return;
    const { turn } = this;
    const { gallery } = this.shell;
    const query = { limit: PAGE, cursor: this.cursor, filter: this.facets.filter };
    this.isLoading = true;
    this.shell.code.show({ name: "items", method: "GET", path: `galleries/${gallery}/items`, args: [gallery], query: { ...query, cursor: undefined } });
    const page = await this.#do(() => this.shell.client.items(gallery, query));
    if (turn !== this.turn) return;
    this.isLoading = false;
    this.cursor = page?.next_cursor ?? null;
    if (!page) return;
    if (!page.items.length && !this.grid.children.length) this.grid.replaceChildren(h("li", { class: "empty" }, query.filter ? "No item passes the filter." : "Nothing here yet."));
    this.grid.append(...page.items.map((item) => this.#card(item, gallery)));
    // It reports changes alone: where a page leaves the end in sight, it must look again.
    this.observer.unobserve(this.end);
    this.observer.observe(this.end);
  }

  #card(item, gallery) {
    const name = nameOf(item);
    const entries = Object.entries(item.metadata).map(([field, value]) => `${field}: ${JSON.stringify(value)}`);
    const image = h("img", { alt: "", width: 128, height: 128, loading: "lazy", src: this.shell.client.url(item.image_url, { size: 256 }).href });
    const card = h("li", { class: "card", title: [item.id, `${item.width} × ${item.height} px`, ...entries].join("\n") },
      h("figure", {}, image, h("figcaption", {}, name)),
      h("div", { class: "actions" }, iconButton("clear", `Delete ${name}`, () => this.#do(async () => {
        await this.shell.client.send("DELETE", `galleries/${gallery}/items/${item.id}`);
        const next = card.nextElementSibling ?? card.previousElementSibling;
        if (card.contains(document.activeElement)) next?.querySelector("button")?.focus();
        card.remove();
        if (!next) await this.#fill();
        await this.#recount(gallery);
      }))));
    return card;
  }

  #deletion(name) {
    const button = h("button", { class: "chip danger", disabled: true, onclick: async () => {
      button.disabled = true; // once is enough
      await this.reading; // what is still asked for would be gone
      this.grid.replaceChildren(); // and so would images that are not here yet
      const query = { confirm: this.count ? name : null };
      const isGone = await this.#do(async () => !!await this.shell.client.send("DELETE", `galleries/${name}`, { query }));
      if (isGone) return this.shell.choose("default");
      button.disabled = false;
      return this.#fill();
    } }, "Delete");
    const box = h("input", { type: "text", "aria-label": `Type ${name} to delete it`, placeholder: `type “${name}” to delete`, oninput: () => { button.disabled = box.value !== name; } });
    return h("span", { class: "row" }, box, button);
  }
}
