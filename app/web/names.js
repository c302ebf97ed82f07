import { h } from "./dom.js";
import { colourOf } from "./masks.js";

/** The class that `name` or `name=synonym,synonym` describes, as the API takes it. */
function classOf(text) {
  const [name, ...rest] = text.split("=").map((part) => part.trim());
  const synonyms = rest.join("=").split(",").map((one) => one.trim()).filter(Boolean);
  return synonyms.length ? { name, synonyms } : name;
}

/** The classes of a text: a comma is between names, a semicolon between classes where one has synonyms. */
export const classesIn = (text) => text.split(/[;=]/.test(text) ? ";" : ",").map((name) => name.trim()).filter(Boolean);

/** Such a text. */
export const textOf = (names) => names.join(names.some((name) => name.includes("=")) ? ";" : ",");

/** The class names to look for: typed as chips, or those of a class set that the service stores. */
export class Names {
  /** `onchange()` is called when `names` or `set` changed. */
  constructor(shell, names, onchange) {
    Object.assign(this, { shell, names, onchange });
    this.set = null; // the name of the class set whose names are unchanged
    this.sets = [];
    this.input = h("input", { type: "text", placeholder: "What to look for, then Enter", "aria-label": "Class names", title: "With synonyms: cat=kitten,tabby", onkeydown: (event) => this.#typed(event), onblur: () => this.#add() });
    this.chips = h("div", { class: "chips name-chips" });
    this.picker = h("select", { "aria-label": "Class set", onchange: () => this.#choose(this.picker.value) });
    this.name = h("input", { type: "text", placeholder: "name of the set", "aria-label": "Name of the class set", pattern: "[a-z0-9][a-z0-9_\\-]{0,63}", title: "a–z, 0–9, - and _", required: true });
    this.form = h("form", { class: "row", hidden: true, onsubmit: (event) => this.#save(event) }, this.name, h("button", { class: "chip" }, "Save"));
    this.saver = h("button", { class: "chip", onclick: () => { this.form.hidden = !this.form.hidden; this.name.focus(); } }, "Save as set…");
    this.remover = h("button", { class: "chip", onclick: () => this.#remove() }, "Delete set");
    this.element = h("div", { class: "names" }, this.input, this.chips, h("div", { class: "row" }, this.picker, this.saver, this.remover), this.form);
    this.#render();
    this.#load();
  }

  /** What `POST /segment` takes for it. */
  get query() {
    return this.set ? { class_set: this.set } : { classes: this.names.map(classOf) };
  }

  replace(names) {
    this.names = names;
    this.#changed();
  }

  #typed(event) {
    if (event.key === "Enter" || (event.key === "," && !this.input.value.includes("="))) {
      event.preventDefault();
      this.#add();
    } else if (event.key === "Backspace" && !this.input.value && this.names.length) this.replace(this.names.slice(0, -1));
  }

  #add() {
    const known = new Set(this.names.map((name) => name.toLowerCase()));
    const added = classesIn(this.input.value).filter((name) => !known.has(name.toLowerCase()));
    this.input.value = "";
    if (added.length) this.replace([...this.names, ...added]);
  }

  #changed() {
    this.set = null;
    this.#render();
    this.onchange();
  }

  #render() {
    this.chips.replaceChildren(...this.names.map((name, at) => {
      const swatch = h("i", {});
      swatch.style.background = colourOf(at + 1);
      return h("button", { class: "chip name", title: "Remove", onclick: () => this.replace(this.names.filter((_, other) => other !== at)) }, swatch, `${name} ×`);
    }));
    this.picker.replaceChildren(h("option", { value: "" }, "Class sets…"), ...this.sets.map(({ name, count }) => h("option", { value: name, selected: name === this.set }, `${name} (${count})`)));
    this.picker.hidden = !this.sets.length;
    this.saver.hidden = !this.names.length || this.set !== null;
    this.remover.hidden = this.set === null;
  }

  /** Runs a request and shows what it left. */
  async #do(request) {
    try {
      await request(this.shell.client);
    } catch (error) {
      this.shell.problem(error);
    }
    this.#render();
  }

  #load() {
    return this.#do(async (client) => {
      this.sets = (await client.json("GET", "class-sets")).class_sets;
    });
  }

  #choose(name) {
    if (!name) return this.#changed();
    return this.#do(async (client) => {
      this.names = (await client.json("GET", `class-sets/${name}`)).classes.map(({ name, synonyms }) => (synonyms.length ? `${name}=${synonyms.join(",")}` : name));
      this.set = name;
      this.onchange();
    });
  }

  #save(event) {
    event.preventDefault();
    const name = this.name.value;
    return this.#do(async (client) => {
      await client.json("PUT", `class-sets/${name}`, { body: { classes: this.names.map(classOf) } });
      this.form.hidden = true;
      await this.#load();
      await this.#choose(name);
    });
  }

  #remove() {
    return this.#do(async (client) => {
      await client.send("DELETE", `class-sets/${this.set}`);
      this.set = null;
      await this.#load();
    });
  }
}
