import { choice, debounced, filePicker, h, iconButton, milliseconds, onDrop, percent, save } from "./dom.js";
import { firstImage, imagesOf, named, previewOf } from "./images.js";
import { colourOf, Masks, OPACITY } from "./masks.js";
import { classesIn, Names, textOf } from "./names.js";

const SAMPLES = [
  ["cat", "png", ["cat", "sofa", "dog"]],
  ["coffee", "png", ["cup", "table", "cat", "dog"]],
  ["rocket", "jpg", ["rocket", "sky", "tree", "cat"]],
  ["motorcycle", "png", ["motorcycle", "car", "wall", "cat"]],
];
const MOST_ISLAND = 0.05; // of the image: the largest of the smallest islands

export function open(shell) {
  return new Segment(shell);
}

/** Masks of named things on an image. */
class Segment {
  constructor(shell) {
    this.shell = shell;
    this.search = debounced(() => this.#run(), 250);
    this.masks = new Masks();
    this.names = new Names(shell, classesIn(shell.parameter("classes") ?? ""), () => this.#changed());
    this.element = this.#layout();
    this.onpaste = (event) => this.#take([...event.clipboardData.files]);
  }

  show() {
    addEventListener("paste", this.onpaste);
    this.#changed();
  }

  close() {
    removeEventListener("paste", this.onpaste);
  }

  #layout() {
    const picker = filePicker((files) => this.#take(files));
    this.image = h("img", { alt: "", hidden: true });
    this.masks.canvas.addEventListener("pointermove", (event) => this.#light(this.masks.at(event)));
    this.masks.canvas.addEventListener("pointerleave", () => this.#light(null));
    this.tip = h("output", { class: "tip", hidden: true });
    this.hint = h("div", { class: "drop-hint" },
      h("h2", {}, "Drop or paste an image"),
      h("button", { class: "secondary", onclick: () => picker.click() }, "Pick a file"),
      h("p", {}, "or start with one of these"),
      h("div", { class: "samples" }, SAMPLES.map(([name, kind, classes]) =>
        h("button", { title: name, onclick: () => this.#sample(`${name}.${kind}`, classes) }, h("img", { src: `playground/sample-${name}.${kind}`, alt: name, width: 96, height: 72 })))));
    this.stage = h("div", { class: "stage" }, this.image, this.masks.canvas, this.tip, this.hint);
    onDrop(this.stage, async (transfer) => this.#take(await imagesOf(transfer, this.shell.client)));
    this.legend = h("ol", { class: "legend", "aria-label": "Masks" });
    this.timing = h("p", { class: "live-state", "aria-live": "polite" });
    this.tools = this.#tools(picker);
    this.cutOuts = h("button", { class: "chip", onclick: () => this.#cutOuts() }, "cut-outs");
    this.downloads = h("div", { class: "downloads", hidden: true }, h("span", { class: "field" }, "Download"), ["COCO JSON", "polygons", "label map", "overlay"].map((kind) => h("button", { class: "chip", onclick: () => this.#download(kind) }, kind)), this.cutOuts);
    return h("div", { class: "segment" },
      h("section", { class: "seen", "aria-label": "Image and masks" }, this.stage, this.tools, picker),
      h("section", { class: "asked", "aria-label": "Classes" }, this.names.element, this.legend, this.downloads, this.timing));
  }

  #tools(picker) {
    this.opacity = h("input", { type: "range", min: "0.1", max: "1", step: "0.05", value: String(OPACITY), oninput: () => {
      this.masks.opacity = Number(this.opacity.value);
      this.masks.paint();
    } });
    this.island = h("input", { type: "range", min: "0", max: "1", step: "0.05", value: "0", oninput: () => {
      this.islandSize.textContent = `${this.#minArea.toLocaleString("en")} px`;
      this.search();
    } });
    this.islandSize = h("span", { class: "figures" }, "0 px");
    this.modes = choice("Display", [["fill", "Fill"], ["outline", "Outline"], ["cut", "Cut out"]], "fill", (mode) => {
      this.masks.mode = mode;
      this.masks.paint();
    });
    return h("div", { class: "toolbar", role: "toolbar", "aria-label": "Display", hidden: true },
      this.modes, h("label", {}, "opacity", this.opacity), h("label", {}, "smallest island", this.island, this.islandSize),
      h("span", { class: "space" }), iconButton("image", "Another image", () => picker.click()), iconButton("close", "Back to the samples", () => this.#clear()));
  }

  /** In pixels, from the slider; finer where it is small. */
  get #minArea() {
    return Math.round(Number(this.island.value) ** 3 * MOST_ISLAND * this.image.naturalWidth * this.image.naturalHeight);
  }

  get #query() {
    return { image: this.file, ...this.names.query, min_area: this.#minArea || undefined };
  }

  async #sample(file, classes) {
    const blob = await (await this.shell.client.send("GET", `playground/sample-${file}`)).blob();
    await this.#take([new File([blob], file, { type: blob.type })]);
    const areOfSample = SAMPLES.some(([, , names]) => String(names) === String(this.names.names));
    if (!this.names.names.length || (areOfSample && !this.names.set)) this.names.replace(classes);
  }

  #changed() {
    this.shell.link({ classes: textOf(this.names.names) });
    this.search();
  }

  async #take(files) {
    if (!files.length) return;
    this.taken = files;
    let file;
    try {
      file = await firstImage(files, { mustShow: true });
    } catch (error) {
      return this.shell.problem(error);
    }
    if (this.taken !== files) return; // meanwhile there is another image
    this.shell.problem(null);
    this.#clear();
    this.file = file;
    Object.assign(this.image, { src: previewOf(file), alt: file.name, hidden: false });
    this.hint.hidden = true;
    this.tools.hidden = false;
    this.search();
    if (!this.names.names.length) this.names.input.focus();
  }

  #clear() {
    this.aborter?.abort(); // its answer is about the image before
    this.file = null;
    this.masks.clear();
    this.modes.firstChild.click(); // each image begins with the default display
    this.opacity.value = String(OPACITY);
    this.island.value = "0";
    this.islandSize.textContent = "0 px";
    this.#light(null);
    this.image.hidden = this.tools.hidden = this.downloads.hidden = true;
    this.hint.hidden = false;
    this.legend.replaceChildren();
    this.timing.textContent = "";
    this.stage.classList.remove("busy");
  }

  async #run() {
    this.aborter?.abort();
    if (!this.file || !this.names.names.length) return;
    this.aborter = new AbortController();
    const { signal } = this.aborter;
    this.shell.code.show({ name: "segment", path: "segment", query: this.#query });
    this.stage.classList.add("busy");
    try {
      const answer = await this.shell.client.segment({ ...this.#query, format: "rle" }, { signal });
      this.shell.problem(null);
      this.#show(answer);
    } catch (error) {
      if (error.name !== "AbortError") this.shell.problem(named(error, this.file));
    }
    if (!signal.aborted) this.stage.classList.remove("busy");
  }

  #show(answer) {
    this.shell.took(answer.timings_ms.total);
    this.timing.textContent = `${answer.width} × ${answer.height} px in ${milliseconds(answer.timings_ms.total)}`;
    this.masks.show(answer);
    this.downloads.hidden = false;
    this.cutOuts.disabled = !answer.classes.some((one) => one.area);
    this.legend.replaceChildren(...answer.classes.map((one) => this.#row(one)));
  }

  #row(one) {
    const isAbsent = one.area === 0;
    const swatch = h("i", {});
    swatch.style.background = colourOf(one.index);
    const box = h("input", { type: "checkbox", checked: !this.masks.hidden.has(one.name), disabled: isAbsent, onchange: () => {
      box.checked ? this.masks.hidden.delete(one.name) : this.masks.hidden.add(one.name);
      this.masks.paint();
    } });
    const light = (index) => !isAbsent && this.#light(index);
    return h("li", { class: isAbsent ? "absent" : "", "data-index": one.index, onpointerenter: () => light(one.index), onpointerleave: () => light(null), onfocusin: () => light(one.index), onfocusout: () => light(null) },
      h("label", {}, box, swatch, h("span", { class: "name" }, one.name)),
      isAbsent ? h("span", { class: "figures" }, "not found") : h("span", { class: "figures" }, h("b", {}, percent(one.fraction)), ` · ${one.score.toFixed(2)}`),
      isAbsent ? null : iconButton("download", `Save ${one.name} cut out as PNG`, () => this.#cutOut(one)));
  }

  /** Lights one mask, or none, with its name, share and score. */
  #light(index) {
    if (index === this.masks.lit) return;
    this.masks.lit = index;
    for (const row of this.legend.children) row.classList.toggle("lit", Number(row.dataset.index) === index);
    const one = index && this.masks.answer.classes[index - 1];
    this.tip.hidden = !one;
    if (one) this.tip.replaceChildren(h("b", {}, one.name), ` ${percent(one.fraction)} of the image, score ${one.score.toFixed(2)}`);
    this.masks.paint();
  }

  get #stem() {
    return this.file.name.replace(/\.\w+$/, "");
  }

  async #cutOut(one) {
    save(await this.masks.cutOut(this.image, one), `${this.#stem}-${one.name}.png`);
  }

  async #cutOuts() {
    for (const one of this.masks.answer.classes) if (one.area) await this.#cutOut(one);
  }

  async #download(kind) {
    const { client } = this.shell;
    try {
      const json = async (format) => new Blob([JSON.stringify(await client.segment({ ...this.#query, format }), null, 1)], { type: "application/json" });
      const form = { "label map": {}, overlay: { format: "overlay" } }[kind];
      if (form) save(await (await client.post("segment", { ...this.#query, ...form }, { headers: { Accept: "image/png" } })).blob(), `${this.#stem}-${kind.replace(" ", "-")}.png`);
      else save(await json(kind === "polygons" ? "polygons" : "coco"), `${this.#stem}.${kind === "polygons" ? "polygons" : "coco"}.json`);
    } catch (error) {
      this.shell.problem(error);
    }
  }
}
