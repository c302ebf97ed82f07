import { debounced, h, milliseconds, percent, save } from "./dom.js";
import { labelsOf } from "./masks.js";

const COLOURS = ["#d6453d", "#2f86c9", "#e3a32b", "#3a9a5f", "#8d5bb8", "#d9699b", "#5b8f93", "#b4713a", "#7a9a2e", "#5566c3", "#c9503f", "#2aa7a0"];
const SAMPLES = [
  ["cat", "png", "cat, sofa, dog"],
  ["coffee", "png", "cup, spoon, table, cat"],
  ["astronaut", "png", "person, flag, rocket, dog"],
  ["rocket", "jpg", "rocket, sky, tower, tree"],
  ["motorcycle", "png", "motorcycle, car, wall, cat"],
];

export function open(shell, view) {
  return new Segment(shell, view);
}

class Segment {
  constructor(shell, view) {
    this.shell = shell;
    this.names = (shell.parameter("classes") ?? "").split(",").map((name) => name.trim()).filter(Boolean);
    this.hidden = new Set();
    this.lit = null;
    this.mode = "fill";
    this.search = debounced(() => this.#run(), 250);
    view.replaceChildren(this.#layout());
    this.onpaste = (event) => this.#take(event.clipboardData?.files, event);
    addEventListener("paste", this.onpaste);
    this.#showNames();
  }

  close() {
    removeEventListener("paste", this.onpaste);
    this.aborter?.abort();
    this.file = null; // a search that is still to come finds nothing
    URL.revokeObjectURL(this.image.src);
  }

  #layout() {
    const picker = h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => this.#take(picker.files) });
    this.image = h("img", { alt: "", hidden: true });
    this.masks = h("canvas", { class: "masks", role: "img", "aria-label": "Masks" });
    this.masks.addEventListener("pointermove", (event) => this.#hover(event));
    this.masks.addEventListener("pointerleave", () => this.#light(null));
    this.hint = h("div", { class: "drop-hint" }, h("p", {}, "Drop or paste an image, or ", h("button", { class: "inline", onclick: () => picker.click() }, "pick a file"), "."), h("p", {}, "Or start with one of these:"), this.#samples());
    this.stage = h("div", { class: "stage", "aria-label": "Image" }, this.image, this.masks, this.hint);
    for (const name of ["dragover", "drop"]) this.stage.addEventListener(name, (event) => {
      event.preventDefault();
      this.stage.classList.toggle("over", name === "dragover");
      if (name === "drop") this.#take(event.dataTransfer.files);
    });
    this.stage.addEventListener("dragleave", () => this.stage.classList.remove("over"));
    this.input = h("input", { type: "text", placeholder: "Name what to look for, then Enter or a comma", "aria-label": "Class names", onkeydown: (event) => this.#typed(event), onblur: () => this.#add(this.input.value) });
    this.chips = h("div", { class: "chips name-chips" });
    this.legend = h("ol", { class: "legend", "aria-label": "Masks" });
    this.opacity = h("input", { type: "range", min: "0.1", max: "1", step: "0.05", value: "0.55", "aria-label": "Opacity", oninput: () => this.#paint() });
    const mode = (name, label) => h("button", { class: "tool", "aria-pressed": String(name === "fill"), onclick: (event) => {
      this.mode = name;
      for (const each of event.currentTarget.parentElement.querySelectorAll(".tool")) each.setAttribute("aria-pressed", String(each === event.currentTarget));
      this.#paint();
    } }, label);
    this.tools = h("div", { class: "toolbar", role: "toolbar", "aria-label": "Display", hidden: true }, mode("fill", "Fill"), mode("outline", "Outline"), mode("cut", "Cut out"), this.opacity, h("button", { class: "tool", onclick: () => picker.click() }, "Other image…"));
    this.downloads = h("div", { class: "downloads", hidden: true },
      h("button", { class: "chip", onclick: () => this.#download("coco") }, "COCO JSON"),
      h("button", { class: "chip", onclick: () => this.#download("labels") }, "label map"),
      h("button", { class: "chip", onclick: () => this.#download("overlay") }, "overlay"));
    this.timing = h("p", { class: "live-state", "aria-live": "polite" });
    return h("div", { class: "segment" },
      h("section", { class: "seen", "aria-label": "Image and masks" }, this.stage, this.tools),
      h("section", { class: "asked", "aria-label": "Classes" }, h("label", { class: "names" }, this.input), this.chips, this.legend, this.downloads, this.timing, picker));
  }

  #samples() {
    return h("div", { class: "samples" }, SAMPLES.map(([name, kind, classes]) => h("button", { title: name, onclick: () => this.#sample(name, kind, classes) }, h("img", { src: `playground/sample-${name}.${kind}`, alt: name, width: 92, height: 70, loading: "lazy" }))));
  }

  async #sample(name, kind, classes) {
    const blob = await (await fetch(`playground/sample-${name}.${kind}`)).blob();
    if (!this.names.length) this.names = classes.split(", ");
    this.#take([new File([blob], `${name}.${kind}`, { type: blob.type })]);
    this.#showNames();
  }

  #typed(event) {
    if (event.key === "Enter" || event.key === ",") {
      event.preventDefault();
      this.#add(this.input.value);
    } else if (event.key === "Backspace" && !this.input.value && this.names.length) {
      this.names.pop();
      this.#changed();
    }
  }

  #add(text) {
    const added = text.split(",").map((name) => name.trim()).filter((name) => name && !this.names.some((one) => one.toLowerCase() === name.toLowerCase()));
    this.input.value = "";
    if (!added.length) return;
    this.names.push(...added);
    this.#changed();
  }

  #changed() {
    this.#showNames();
    this.search();
  }

  #showNames() {
    this.shell.link({ classes: this.names.join(",") });
    this.chips.replaceChildren(...this.names.map((name, at) => {
      const chip = h("button", { class: "chip name", title: "Remove", onclick: () => { this.names.splice(at, 1); this.#changed(); } }, h("i", {}), `${name} ×`);
      chip.querySelector("i").style.background = COLOURS[at % COLOURS.length];
      return chip;
    }));
  }

  #take(files, event = null) {
    const file = [...(files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event?.preventDefault();
    this.file = file;
    this.aborter?.abort(); // its answer is about the image before
    this.stage.classList.remove("busy");
    this.downloads.hidden = true;
    this.answer = this.labels = null;
    URL.revokeObjectURL(this.image.src);
    this.image.src = URL.createObjectURL(file);
    this.image.alt = file.name;
    this.image.hidden = false;
    this.hint.hidden = true;
    this.tools.hidden = false;
    this.legend.replaceChildren();
    this.masks.getContext("2d").clearRect(0, 0, this.masks.width, this.masks.height);
    this.search();
    if (!this.names.length) this.input.focus();
  }

  async #run() {
    this.aborter?.abort();
    if (!this.file || !this.names.length) return;
    this.aborter = new AbortController();
    const query = { image: this.file, classes: this.names, format: "rle" };
    this.shell.code.show({ method: "POST", path: "segment", form: [["image", this.file.name, true], ...this.names.map((name) => ["classes", name, false]), ["format", "rle", false]] });
    this.stage.classList.add("busy");
    try {
      this.answer = await this.shell.client.segment(query, { signal: this.aborter.signal });
    } catch (error) {
      if (error.name === "AbortError") return;
      this.stage.classList.remove("busy");
      return this.shell.problem(error);
    }
    this.stage.classList.remove("busy");
    this.shell.problem(null);
    this.shell.took(this.answer.timings_ms.total);
    this.timing.textContent = `${this.answer.width} × ${this.answer.height} px in ${milliseconds(this.answer.timings_ms.total)}`;
    this.labels = labelsOf(this.answer);
    this.downloads.hidden = false;
    this.#showLegend();
    this.#paint();
  }

  #showLegend() {
    const rows = this.answer.classes.map((one) => {
      const isAbsent = one.area === 0;
      const swatch = h("i", {});
      swatch.style.background = COLOURS[(one.index - 1) % COLOURS.length];
      return h("li", { class: isAbsent ? "absent" : "", "data-index": one.index, onpointerenter: () => this.#light(one.index), onpointerleave: () => this.#light(null) },
        h("label", {}, h("input", { type: "checkbox", checked: !this.hidden.has(one.name), disabled: isAbsent, onchange: (event) => { event.target.checked ? this.hidden.delete(one.name) : this.hidden.add(one.name); this.#paint(); } }), swatch, h("span", { class: "name" }, one.name)),
        isAbsent ? h("span", { class: "figures" }, "not found") : h("span", { class: "figures" }, h("b", {}, percent(one.fraction)), ` · score ${one.score.toFixed(2)}`),
        isAbsent ? null : h("button", { class: "quiet", title: `Save ${one.name} cut out as PNG`, onclick: () => this.#cutOut(one) }, "↓"));
    });
    this.legend.replaceChildren(...rows);
  }

  #hover(event) {
    if (!this.labels) return;
    const box = this.masks.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const index = this.labels[Math.min(this.answer.height - 1, Math.floor(y * this.answer.height)) * this.answer.width + Math.min(this.answer.width - 1, Math.floor(x * this.answer.width))];
    this.#light(index || null);
  }

  #light(index) {
    if (index === this.lit) return;
    this.lit = index;
    for (const row of this.legend.children) row.classList.toggle("lit", Number(row.dataset.index) === index);
    this.#paint();
  }

  #paint() {
    if (!this.labels) return;
    const { width, height, classes } = this.answer;
    const { masks } = this;
    if (masks.width !== width) masks.width = width;
    if (masks.height !== height) masks.height = height;
    const context = masks.getContext("2d");
    const pixels = context.createImageData(width, height);
    const shown = classes.map((one) => !this.hidden.has(one.name));
    const colours = classes.map((_, at) => COLOURS[at % COLOURS.length].match(/\w\w/g).map((hex) => parseInt(hex, 16)));
    const opacity = Number(this.opacity.value);
    const labels = this.labels;
    const edge = Math.max(1, Math.round(Math.max(width, height) / 320));
    for (let at = 0; at < labels.length; at += 1) {
      const label = labels[at];
      const isShown = label > 0 && shown[label - 1];
      const to = 4 * at;
      if (this.mode === "cut") {
        if (!isShown || (this.lit && label !== this.lit)) pixels.data.set([24, 18, 18, 225], to);
        continue;
      }
      if (!isShown) continue;
      let alpha = this.lit ? (label === this.lit ? Math.min(1, opacity + 0.25) : opacity * 0.3) : opacity;
      const isEdge = labels[at + edge] !== label || labels[at - edge] !== label || labels[at + edge * width] !== label || labels[at - edge * width] !== label;
      if (this.mode === "outline") alpha = isEdge ? 1 : this.lit === label ? 0.25 : 0;
      else if (isEdge) alpha = Math.min(1, alpha + 0.3);
      const [red, green, blue] = colours[label - 1];
      pixels.data[to] = red;
      pixels.data[to + 1] = green;
      pixels.data[to + 2] = blue;
      pixels.data[to + 3] = 255 * alpha;
    }
    context.putImageData(pixels, 0, 0);
  }

  async #cutOut({ index, name, bbox: [x, y, w, hgt] }) {
    const { width } = this.answer;
    const canvas = h("canvas", { width: w, height: hgt });
    const context = canvas.getContext("2d");
    context.drawImage(this.image, -x, -y, this.answer.width, this.answer.height);
    const pixels = context.getImageData(0, 0, w, hgt);
    for (let row = 0; row < hgt; row += 1) for (let column = 0; column < w; column += 1) if (this.labels[(y + row) * width + x + column] !== index) pixels.data[4 * (row * w + column) + 3] = 0;
    context.putImageData(pixels, 0, 0);
    canvas.toBlob((blob) => save(blob, `${this.#stem}-${name}.png`));
  }

  get #stem() {
    return this.file.name.replace(/\.\w+$/, "");
  }

  #download(kind) {
    const { width, height, classes } = this.answer;
    if (kind === "coco") {
      const found = classes.filter((one) => one.area > 0);
      const document = {
        images: [{ id: 1, file_name: this.file.name, width, height }],
        categories: classes.map(({ index, name }) => ({ id: index, name })),
        annotations: found.map((one, at) => ({ id: at + 1, image_id: 1, category_id: one.index, segmentation: one.mask, area: one.area, bbox: one.bbox, iscrowd: 1, score: one.score })),
      };
      return save(new Blob([JSON.stringify(document, null, 1)], { type: "application/json" }), `${this.#stem}.coco.json`);
    }
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d");
    if (kind === "overlay") {
      context.drawImage(this.image, 0, 0, width, height);
      context.drawImage(this.masks, 0, 0);
    } else {
      const pixels = context.createImageData(width, height);
      this.labels.forEach((label, at) => pixels.data.set([label, label, label, 255], 4 * at));
      context.putImageData(pixels, 0, 0);
    }
    canvas.toBlob((blob) => save(blob, `${this.#stem}-${kind}.png`));
  }
}
