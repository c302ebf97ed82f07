import { debounced, h } from "./dom.js";
import { Results, timingBar } from "./results.js";
import { SIDE, Sketchpad } from "./sketchpad.js";

const PAGE = 24;
const MOST = 240;
const WHILE_DRAWING_MS = 60; // between queries of one stroke
const HOUSE = [
  [[48, 48, 208, 208, 48], [120, 226, 226, 120, 120]],
  [[30, 128, 226], [124, 36, 124]],
  [[108, 108, 148, 148], [226, 168, 168, 226]],
];

export function open(shell, view) {
  return new Draw(shell, view);
}

class Draw {
  constructor(shell, view) {
    this.shell = shell;
    this.k = PAGE;
    this.like = { positive: new Map(), negative: new Map() };
    this.file = null;
    this.words = h("input", { type: "search", placeholder: "…or say it in words", "aria-label": "Words", value: shell.parameter("q") ?? "", oninput: debounced(() => this.#search(), 180) });
    this.balance = h("input", { type: "range", min: "0", max: "1", step: "0.05", value: "0.5", "aria-label": "Drawing against words", oninput: debounced(() => this.#search(), 80) });
    this.pad = new Sketchpad({ onchange: (strokes, isWhole) => this.#drawn(isWhole) });
    this.results = new Results(shell.client, { actions: (result) => this.#actions(result), onmore: () => this.#more() });
    this.timing = h("div", { class: "timing-slot" });
    this.chips = h("div", { class: "chips" });
    this.state = h("p", { class: "live-state", "aria-live": "polite" });
    this.live = shell.client.live({
      onresults: (message, ms) => this.#answered(message, ms),
      onproblem: (problem) => this.#refused(problem),
      onstate: (state) => this.#connection(state),
    });
    view.replaceChildren(this.#layout());
    this.onpaste = (event) => this.#take(event.clipboardData?.files, event);
    addEventListener("paste", this.onpaste);
    if (this.words.value) this.#search();
    else this.pad.play(HOUSE);
  }

  close() {
    this.isClosed = true;
    this.live.close();
    this.aborter?.abort();
    this.pad.stop();
    removeEventListener("paste", this.onpaste);
  }

  reload() {
    this.k = PAGE;
    this.like.positive.clear();
    this.like.negative.clear();
    this.#search();
  }

  #layout() {
    const tool = (name, label, title) =>
      h("button", { class: "tool", title, "aria-pressed": String(name === "pen"), "data-tool": name, onclick: (event) => {
        this.pad.tool = name;
        for (const each of event.currentTarget.parentElement.querySelectorAll("[data-tool]")) each.setAttribute("aria-pressed", String(each.dataset.tool === name));
      } }, label);
    const width = h("input", { type: "range", min: "2", max: "14", value: "5", "aria-label": "Stroke width", oninput: () => { this.pad.width = Number(width.value); this.pad.paint(); } });
    const picker = h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => this.#take(picker.files) });
    this.sheet = h("div", { class: "sheet" }, this.pad.element);
    for (const name of ["dragover", "drop"]) this.sheet.addEventListener(name, (event) => {
      event.preventDefault();
      this.sheet.classList.toggle("over", name === "dragover");
      if (name === "drop") this.#take(event.dataTransfer.files);
    });
    this.sheet.addEventListener("dragleave", () => this.sheet.classList.remove("over"));
    return h(
      "div",
      { class: "draw" },
      h(
        "section",
        { class: "left", "aria-label": "Query" },
        this.sheet,
        h(
          "div",
          { class: "toolbar", role: "toolbar", "aria-label": "Drawing tools" },
          tool("pen", "Pen", "Pen"),
          tool("eraser", "Eraser", "Eraser: takes whole strokes"),
          width,
          h("button", { class: "tool", title: "Undo", onclick: () => this.pad.undo() }, "Undo"),
          h("button", { class: "tool", title: "Redo", onclick: () => this.pad.redo() }, "Redo"),
          h("button", { class: "tool", title: "Clear", onclick: () => this.#clear() }, "Clear"),
          h("button", { class: "tool", title: "Search by an image: pick, paste or drop one", onclick: () => picker.click() }, "Image…"),
          picker,
        ),
        h("div", { class: "words" }, this.words, h("label", { class: "balance" }, h("span", {}, "drawing"), this.balance, h("span", {}, "words"))),
        this.chips,
        this.state,
      ),
      h("div", { class: "right" }, this.results.element, this.timing),
    );
  }

  get #query() {
    const query = { gallery: this.shell.gallery, k: this.k };
    if (this.file) query.sketch = this.file;
    else if (this.#strokes.length) query.sketch = { strokes: this.#strokes, width: SIDE, height: SIDE };
    if (this.words.value.trim()) query.text = this.words.value.trim();
    if (query.sketch && query.text) query.text_weight = Number(this.balance.value);
    const [positive, negative] = [[...this.like.positive.keys()], [...this.like.negative.keys()]];
    if (positive.length || negative.length) query.like = { positive, negative };
    return query;
  }

  get #strokes() {
    return this.pad.drawing && this.pad.drawing[0].length > 2 ? [...this.pad.strokes, this.pad.drawing] : this.pad.strokes;
  }

  #drawn(isWhole) {
    if (this.file && !this.pad.isEmpty) this.#forgetFile();
    if (isWhole) this.k = PAGE;
    const now = performance.now();
    if (!isWhole && now - (this.lastSent ?? 0) < WHILE_DRAWING_MS) return;
    this.lastSent = now;
    this.#search();
  }

  async #search() {
    if (this.isClosed) return;
    const query = this.#query;
    this.shell.link({ q: query.text });
    const isLive = query.sketch?.strokes && !query.like && (query.text === undefined || query.text_weight === 0.5);
    this.aborter?.abort(); // of two searches the later one wins, whichever way it goes
    if (!isLive) this.live.forget();
    if (!query.sketch && !query.text && !query.like) return this.#nothing();
    this.shell.code.show(requestOf(query));
    if (isLive) {
      const { sketch, text_weight, ...rest } = query;
      return this.live.search({ ...rest, ...sketch });
    }
    this.aborter = new AbortController();
    const started = performance.now();
    try {
      this.#answered(await this.shell.client.retrieve(query, { signal: this.aborter.signal }), performance.now() - started);
    } catch (error) {
      if (error.name !== "AbortError") this.shell.problem(error);
    }
  }

  #answered(answer, ms) {
    this.shell.problem(null);
    this.shell.took(answer.timings_ms.total);
    this.timing.replaceChildren(timingBar(answer.timings_ms, ms));
    this.last = answer.results;
    if (answer.results.length) this.results.show(answer.results);
    else this.#emptyGallery();
  }

  #emptyGallery() {
    this.results.empty(
      h("h2", {}, `The gallery “${this.shell.gallery}” is empty`),
      h("p", {}, "Fill it with the demo images, or with your own:"),
      h("pre", {}, "vermouth gallery demo\nvermouth gallery import my-images/"),
      h("button", { class: "primary", onclick: () => this.shell.open("galleries") }, "Import a folder here"),
    );
  }

  #nothing() {
    this.timing.replaceChildren();
    this.results.empty(h("h2", {}, "Draw something"), h("p", {}, "A few lines are enough. Or write a word, or drop an image on the canvas."));
  }

  #refused(problem) {
    import("./vermouth.js").then(({ VermouthError }) => this.shell.problem(new VermouthError(problem.status, problem, problem.retry_after_s ?? null)));
  }

  #connection(state) {
    const texts = { connecting: "", open: "", full: "Too many people draw at once; trying again.", offline: "Connection lost; trying again.", key: "" };
    this.state.textContent = texts[state];
    if (state === "key") import("./vermouth.js").then(({ VermouthError }) => this.shell.problem(new VermouthError(401, { title: "Key needed", detail: "Live search needs an API key." })));
  }

  #more() {
    if (this.k >= MOST || (this.last?.length ?? 0) < this.k) return;
    this.k = Math.min(MOST, this.k + PAGE);
    this.#search();
  }

  #actions({ id, metadata }) {
    const name = String(metadata?.name ?? id);
    const add = (side, other) => {
      this.like[other].delete(id);
      this.like[side].set(id, name);
      this.#showChips();
      this.#search();
    };
    return [["more", "More like this", () => add("positive", "negative")], ["less", "Less like this", () => add("negative", "positive")]];
  }

  #showChips() {
    const chips = [["positive", "+"], ["negative", "−"]].flatMap(([side, sign]) =>
      [...this.like[side]].map(([id, name]) =>
        h("button", { class: `chip ${side}`, title: "Remove", onclick: () => { this.like[side].delete(id); this.#showChips(); this.#search(); } }, `${sign} ${name} ×`)));
    this.chips.replaceChildren(...chips);
  }

  #clear() {
    this.#forgetFile();
    this.pad.clear();
    this.#search();
  }

  #take(files, event = null) {
    const file = [...(files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event?.preventDefault();
    this.#forgetFile();
    this.pad.set([]);
    this.file = file;
    this.preview = h("img", { class: "query-image", alt: `Query: ${file.name}`, src: URL.createObjectURL(file) });
    this.sheet.append(this.preview);
    this.k = PAGE;
    this.#search();
  }

  #forgetFile() {
    if (this.preview) URL.revokeObjectURL(this.preview.src);
    this.preview?.remove();
    this.preview = this.file = null;
  }
}

function requestOf(query) {
  if (!(query.sketch instanceof Blob)) return { method: "POST", path: "retrieve", json: query };
  const form = Object.entries(query).map(([name, value]) =>
    value instanceof Blob ? [name, value.name || "image.png", true] : [name, typeof value === "object" ? JSON.stringify(value) : String(value), false]);
  return { method: "POST", path: "retrieve", form };
}
