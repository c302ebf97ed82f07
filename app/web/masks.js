import { h } from "./dom.js";

export const COLOURS = ["#e5484d", "#2f80d0", "#e2a336", "#30a46c", "#8e5cd9", "#e0559b", "#12a5a0", "#c2703d", "#86a92c", "#5b6ee1", "#a8476f", "#4f9bb5"];
export const OPACITY = 0.55; // of masks, where nobody changed it
export const colourOf = (index) => COLOURS[(index - 1) % COLOURS.length];

/** The masks of an answer of `POST /segment`, painted over its image. */
export class Masks {
  constructor() {
    this.canvas = h("canvas", { class: "masks", role: "img", "aria-label": "Masks" });
    this.mode = "fill"; // or "outline", "cut"
    this.lit = null; // the index that is lit
    this.clear();
  }

  /** Removes the masks; what comes next is shown whole. */
  clear() {
    this.answer = this.labels = null;
    this.opacity = OPACITY;
    this.hidden = new Set(); // names
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  show(answer) {
    this.answer = answer;
    this.labels = labelsOf(answer);
    this.paint();
  }

  /** The index of the mask under a pointer, or null. */
  at(event) {
    if (!this.labels) return null;
    const { width, height } = this.answer;
    const box = this.canvas.getBoundingClientRect();
    const cell = (value, size) => Math.min(size - 1, Math.max(0, Math.floor(value * size)));
    return this.labels[cell((event.clientY - box.top) / box.height, height) * width + cell((event.clientX - box.left) / box.width, width)] || null;
  }

  paint() {
    if (!this.labels) return;
    const { width, height, classes } = this.answer;
    Object.assign(this.canvas, { width, height }); // clears it
    const context = this.canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    const packed = new Uint32Array(pixels.data.buffer); // little-endian: alpha, blue, green, red
    const isShown = [false, ...classes.map(({ name }) => !this.hidden.has(name))];
    const colours = [0, ...classes.map(({ index }) => parseInt(colourOf(index).slice(1).replace(/(..)(..)(..)/, "$3$2$1"), 16))];
    const { labels } = this;
    const edge = Math.max(1, Math.round(Math.max(width, height) / 400));
    for (let at = 0; at < labels.length; at += 1) {
      const label = labels[at];
      const isEdge = labels[at + edge] !== label || labels[at - edge] !== label || labels[at + edge * width] !== label || labels[at - edge * width] !== label;
      const alpha = this.#alpha(label, isShown[label], isEdge);
      if (alpha) packed[at] = ((Math.round(255 * alpha) << 24) | (this.mode === "cut" ? 0x101214 : colours[label])) >>> 0;
    }
    context.putImageData(pixels, 0, 0);
  }

  #alpha(label, isShown, isEdge) {
    const isLit = this.lit === label;
    if (this.mode === "cut") return isShown && (!this.lit || isLit) ? 0 : 0.9;
    if (!isShown) return 0;
    if (this.mode === "outline") return isEdge ? 1 : isLit ? 0.25 : 0;
    const alpha = this.lit ? (isLit ? Math.min(1, this.opacity + 0.2) : this.opacity * 0.3) : this.opacity;
    return isEdge ? Math.min(1, alpha + 0.35) : alpha;
  }

  /** The pixels of one mask on nothing, as a PNG. */
  cutOut(image, { index, bbox: [left, top, width, height] }) {
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.drawImage(image, -left, -top, this.answer.width, this.answer.height);
    const pixels = context.getImageData(0, 0, width, height);
    for (let at = 0; at < width * height; at += 1)
      if (this.labels[(top + Math.floor(at / width)) * this.answer.width + left + (at % width)] !== index) pixels.data[4 * at + 3] = 0;
    context.putImageData(pixels, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve));
  }
}

/** The label of every pixel, row by row, from masks in COCO's compressed run lengths. */
function labelsOf({ width, height, classes }) {
  const labels = new Uint8Array(width * height);
  for (const { index, mask } of classes) {
    if (!mask) continue;
    let at = 0;
    let isInside = false;
    for (const run of runsOf(mask.counts)) {
      // Runs go down the columns.
      if (isInside) for (let step = at; step < at + run; step += 1) labels[(step % height) * width + Math.floor(step / height)] = index;
      at += run;
      isInside = !isInside;
    }
  }
  return labels;
}

/** Run lengths from their text: five bits a character, from the third on as differences to the one before last. */
function runsOf(text) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let [value, shift, more] = [0, 0, true];
    while (more) {
      const code = text.charCodeAt(at) - 48;
      value |= (code & 0x1f) << shift;
      more = (code & 0x20) !== 0;
      at += 1;
      shift += 5;
      if (!more && code & 0x10) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs.at(-2) : value);
  }
  return runs;
}
