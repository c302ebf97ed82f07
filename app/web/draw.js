import { choice, debounced, filePicker, h, iconButton, onDrop } from "./dom.js";
import { Facets } from "./facets.js";
import { icon } from "./icons.js";
import { firstImage, imageAt, imageOfStrokes, imagesOf, isOfImage, named, thumbnail } from "./images.js";
import { nameOf, Results, timingBar } from "./results.js";
import { Sketchpad } from "./sketchpad.js";
import { HOUSE, read, SIDE, written } from "./strokes.js";
import { VermouthError } from "./vermouth.js";

const PAGE = 24;
const WHILE_DRAWING_MS = 60; // least rest between an answer and the next query of one stroke

export function open(shell) {
  return new Draw(shell);
}

/** Search by drawing, image and words; each change of the query searches again. */
class Draw {
  constructor(shell) {
    this.shell = shell;
    this.like = { positive: new Map(), negative: new Map() }; // id → name
    this.file = null;
    this.fileIs = "image"; // or a "sketch"
    this.refusal = null; // the problem of a file, shown until the next search
    this.results = new Results(shell.client, {
      onmore: () => this.#more(),
      actions: [
        ["more", "More like this", (result) => this.#resemble(result, "positive", "negative")],
        ["less", "Less like this", (result) => this.#resemble(result, "negative", "positive")],
        ["example", "Use as example", (result) => this.#keepResult(result)],
      ],
    });
    this.facets = new Facets(shell.client, () => this.search());
    this.pad = new Sketchpad({ onchange: (isWhole) => this.#drawn(isWhole) });
    this.onpaste = (event) => this.#takeImage([...event.clipboardData.files]);
    this.searchSoon = debounced(() => this.search(), 180);
    this.element = this.#layout();
    this.start = read(shell.parameter("d") ?? ""); // what the address says
  }

  show() {
    const { shell } = this;
    this.live = shell.client.live({
      onresults: (answer, ms) => {
        this.restUntil = performance.now() + Math.max(WHILE_DRAWING_MS, 2 * ms); // the pen mostly rises while nothing is computed
        this.#answered(answer, ms);
      },
      onproblem: (problem) => shell.problem(new VermouthError(problem.status, problem, problem.retry_after_s ?? null)),
      onstate: (state) => this.#connection(state),
    });
    addEventListener("paste", this.onpaste);
    this.#loadFacets();
    if (this.start?.length) this.pad.set(this.start);
    else if (this.start && !this.words.value) this.#welcome();
    else this.#drawn(true);
    this.start = null;
  }

  #welcome() {
    this.state.textContent = "Draw over the house, write a word, or drop an image.";
    this.pad.play(HOUSE);
  }

  close() {
    this.live.close();
    this.aborter?.abort();
    if (this.pad.ghost) this.start = []; // nobody has drawn yet: the house draws itself again
    this.pad.stop();
    this.taken = null;
    removeEventListener("paste", this.onpaste);
  }

  reload() {
    this.like.positive.clear();
    this.like.negative.clear();
    this.#showLikes();
    this.#loadFacets();
    this.search();
  }

  #loadFacets() {
    this.facets.load(this.shell.gallery).catch((error) => this.shell.problem(error));
  }

  #layout() {
    const picker = filePicker((files) => this.#takeImage(files));
    this.sheet = h("div", { class: "sheet" }, this.pad.canvas);
    onDrop(this.sheet, async (transfer) => this.#takeImage(await imagesOf(transfer, this.shell.client)));
    this.words = h("input", { type: "search", placeholder: "Say it in words", "aria-label": "Words", value: this.shell.parameter("q") ?? "", oninput: () => this.#written() });
    this.balance = h("input", { type: "range", min: "0", max: "1", step: "0.05", value: "0.5", "aria-label": "Drawing against words", oninput: debounced(() => this.search(), 80) });
    this.weighing = h("label", { class: "balance" }, h("span", {}, "drawing"), this.balance, h("span", {}, "words"));
    this.likes = h("div", { class: "chips" });
    this.state = h("p", { class: "live-state", "aria-live": "polite" });
    this.timing = h("div", { class: "timing-slot" });
    return h("div", { class: "draw" },
      h("section", { class: "left", "aria-label": "Query", onkeydown: (event) => this.#shortcut(event) },
        this.sheet, this.#tools(picker),
        h("div", { class: "words" }, this.words, this.weighing), this.likes, this.state, picker),
      h("div", { class: "right" }, this.facets.element, this.results.element, this.timing));
  }

  #tools(picker) {
    const width = h("input", { type: "range", min: "2", max: "14", value: "5", title: "Stroke width", "aria-label": "Stroke width", oninput: () => {
      this.pad.width = Number(width.value);
      this.pad.paint();
    } });
    return h("div", { class: "toolbar", role: "toolbar", "aria-label": "Drawing tools" },
      choice("Tool", [["pen", icon("pen"), "Pen"], ["eraser", icon("eraser"), "Eraser: takes whole strokes"]], "pen", (tool) => { this.pad.tool = tool; }),
      width,
      iconButton("undo", "Undo", () => this.pad.undo()),
      iconButton("redo", "Redo", () => this.pad.redo()),
      iconButton("clear", "Clear", () => this.#clear()),
      h("span", { class: "space" }),
      iconButton("example", "Use the drawing as example", () => this.#keepDrawing()),
      iconButton("image", "Search by an image: pick, paste or drop one", () => picker.click()));
  }

  #shortcut(event) {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || event.target === this.words) return;
    event.preventDefault();
    event.shiftKey ? this.pad.redo() : this.pad.undo();
  }

  get #query() {
    const { positive, negative } = this.like;
    const strokes = this.pad.all;
    const text = this.words.value.trim() || undefined;
    const shown = this.file ? { [this.fileIs]: this.file } : strokes.length ? { sketch: { strokes, width: SIDE, height: SIDE } } : {};
    const isBoth = text && Object.keys(shown).length > 0;
    this.balance.disabled = !isBoth;
    if (!isBoth) this.balance.value = "0.5"; // else it would stay where nothing is weighed
    return {
      ...shown,
      text,
      text_weight: isBoth && this.balance.value !== "0.5" ? Number(this.balance.value) : undefined,
      like: positive.size + negative.size ? { positive: [...positive.keys()], negative: [...negative.keys()] } : undefined,
      gallery: this.shell.gallery,
      k: PAGE,
      filter: this.facets.filter,
    };
  }

  #drawn(isWhole) {
    const now = performance.now();
    if (!this.pad.isEmpty || this.pad.drawing) this.#dropImage();
    if (isWhole) {
      this.shell.link({ d: this.pad.ghost ? null : written(this.pad.strokes) });
      if (!this.pad.ghost) this.state.textContent = "";
    } else if (!this.pad.all.length || this.live.newest || now < this.restUntil) return; // a dot is no drawing yet
    this.search();
    this.penUp = isWhole ? { at: now, seq: this.live.seq } : null;
  }

  /** The first word takes the place of the house, as the first stroke does. */
  #written() {
    this.#clearGhost();
    this.searchSoon();
  }

  #clearGhost() {
    if (this.pad.ghost) this.state.textContent = "";
    this.pad.clearGhost();
  }

  /** Searches for what is drawn, written and chosen; a drawing goes over the WebSocket, what that cannot say over HTTP. */
  async search() {
    const query = this.#query;
    if (!this.pad.ghost) this.refusal = null;
    this.shell.link({ q: query.text });
    const isLive = query.sketch?.strokes && !query.like && query.text_weight === undefined;
    this.aborter?.abort(); // of two searches the later one wins, whichever way it goes
    if (!isLive) this.live.forget();
    this.query = query.sketch || query.image || query.text || query.like ? query : null;
    this.shell.code.show(this.query && { name: "retrieve", path: "retrieve", query });
    if (!this.query) return this.#nothing();
    if (isLive) {
      const { sketch, ...rest } = query;
      return this.live.search({ ...rest, ...sketch });
    }
    this.aborter = new AbortController();
    const started = performance.now();
    await this.#asked(query, (answer) => this.#answered(answer, performance.now() - started));
  }

  async #asked(query, take) {
    try {
      take(await this.shell.client.retrieve(query, { signal: this.aborter.signal }));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (this.file && isOfImage(error)) this.#refused(error);
      else this.shell.problem(error);
    }
  }

  /** The service cannot read the image: the drawing before it comes back. */
  #refused(error) {
    const { file } = this;
    this.#dropImage();
    if (this.hasDrawingBefore) this.pad.undo();
    else this.search();
    this.#refuse(named(error, file));
  }

  /** Shows why a file is not searched for; answers of a search before it leave that in place. */
  #refuse(error) {
    this.refusal = error;
    this.shell.problem(error);
  }

  #answered(answer, ms) {
    if (answer.seq < this.penUp?.seq) return; // the whole stroke's answer is next: showing this one would slow it
    this.shell.problem(this.refusal);
    this.shell.took(answer.timings_ms.total);
    this.timing.replaceChildren(timingBar(answer.timings_ms, ms));
    this.total = answer.total;
    if (answer.results.length) this.results.show(answer.results);
    else this.#empty();
    if (answer.seq && answer.seq === this.penUp?.seq) this.#painted(this.penUp.at);
  }

  /** Measures from the pen's rise until its results are painted; tests and benchmarks read it. */
  #painted(start) {
    this.penUp = null;
    requestAnimationFrame(() => setTimeout(() => performance.measure("pen-up to results", { start })));
  }

  /** The next page of the same query. */
  async #more() {
    const { query } = this;
    const offset = this.results.cards.size;
    if (!query || this.isPaging || offset >= this.total) return;
    this.isPaging = true;
    this.aborter ??= new AbortController();
    await this.#asked({ ...query, offset }, ({ results }) => query === this.query && this.results.append(results));
    this.isPaging = false;
  }

  #empty() {
    const { gallery } = this.shell;
    this.timing.replaceChildren();
    if (this.facets.filter) return this.results.empty(h("h2", {}, "Nothing passes the filter"), h("p", {}, "Take one of the chips back."));
    this.results.empty(
      h("h2", {}, `“${gallery}” is empty`),
      h("p", {}, "Fill it with the demo’s 1,656 images, or with images of your own."),
      h("div", { class: "row" },
        h("button", { class: "primary", onclick: () => this.#fill("demo") }, "Add the demo images"),
        h("button", { class: "secondary", onclick: () => this.#fill("folder") }, "Import my folder")));
  }

  #fill(source) {
    this.shell.fill = source;
    this.shell.open("galleries");
  }

  #nothing() {
    this.timing.replaceChildren();
    this.results.empty(h("h2", {}, "Draw something"), h("p", {}, "A few lines are enough. Or write a word, or drop an image on the canvas."));
  }

  #connection(state) {
    if (state === "full") this.state.textContent = "Too many people draw at once; trying again.";
    if (state === "offline") this.shell.problem(new VermouthError(0, {}));
    if (state === "key") this.shell.problem(new VermouthError(401, { detail: "Live search needs an API key." }));
  }

  #resemble(result, side, other) {
    this.like[other].delete(result.id);
    this.like[side].set(result.id, nameOf(result));
    this.#showLikes();
    this.search();
  }

  #showLikes() {
    const chips = [["positive", "+"], ["negative", "−"]].flatMap(([side, sign]) =>
      [...this.like[side]].map(([id, name]) => h("button", { class: `chip ${side}`, title: "Remove", onclick: () => {
        this.like[side].delete(id);
        this.#showLikes();
        this.search();
      } }, `${sign} ${name} ×`)));
    this.likes.replaceChildren(...chips);
  }

  async #keepResult(result) {
    try {
      this.#keep(await imageAt(this.shell.client, result.image_url, result.id), nameOf(result));
    } catch (error) {
      this.shell.problem(error);
    }
  }

  async #keepDrawing() {
    if (!this.pad.isEmpty) this.#keep(await imageOfStrokes(this.pad.strokes, { width: SIDE, height: SIDE }), this.words.value.trim() || "drawing");
  }

  #keep(file, name) {
    this.shell.examples.push({ file, name });
    this.shell.showExamples();
    this.state.textContent = `“${name}” waits on Teach.`;
  }

  #clear() {
    this.#dropImage();
    this.pad.set([]);
  }

  async #takeImage(files) {
    if (!files.length) return;
    this.taken = files;
    let file;
    try {
      file = await firstImage(files);
    } catch (error) {
      return this.#refuse(error);
    }
    if (this.taken !== files) return; // meanwhile there is another image, or a drawing
    this.#dropImage();
    this.#clearGhost();
    this.file = file;
    this.preview = h("div", { class: "query-image" },
      thumbnail(file, { alt: `Query: ${file.name}` }),
      choice("The image is", [["image", "an image"], ["sketch", "a sketch"]], this.fileIs, (kind) => {
        this.fileIs = kind;
        this.search();
      }),
      iconButton("close", "Remove the image", () => this.#clear()));
    this.sheet.append(this.preview);
    this.hasDrawingBefore = !this.pad.isEmpty;
    if (this.hasDrawingBefore) this.pad.set([]); // searches too
    else this.search();
  }

  #dropImage() {
    this.preview?.remove();
    this.preview = this.file = this.taken = null;
  }
}
