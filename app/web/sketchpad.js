import { h, isCalm } from "./dom.js";
import { densified, SIDE } from "./strokes.js";

const NEAR = 9; // an eraser takes the strokes that come this close
const STEP = 6; // of the keyboard's pen

/** A canvas that is drawn on with a pen, a mouse, a finger or the arrow keys. */
export class Sketchpad {
  /** `onchange(isWhole)` is called while a stroke is drawn and, with `isWhole`, after every change of `strokes`. */
  constructor({ onchange }) {
    this.onchange = onchange;
    this.strokes = [];
    this.drawing = null; // the stroke under the pen
    this.past = []; // earlier values of `strokes`, for undo
    this.future = [];
    this.tool = "pen";
    this.width = 5;
    this.ghost = null; // the drawing that draws itself
    this.cursor = null; // of the keyboard
    this.canvas = h("canvas", { class: "pad", tabindex: "0", role: "application", "aria-label": "Canvas. Arrow keys move the pen, space lifts and lowers it." });
    this.canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => this.#up());
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("blur", () => this.canvas.classList.remove("by-pointer"));
    new ResizeObserver(() => this.paint()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  /** The strokes with the one that is being drawn. */
  get all() {
    return this.drawing && this.drawing[0].length > 2 ? [...this.strokes, this.drawing] : this.strokes;
  }

  get isEmpty() {
    return this.strokes.length === 0;
  }

  /** Replaces the drawing; undo brings the earlier one back. */
  set(strokes) {
    this.stop();
    this.past.push(this.strokes);
    this.future = [];
    this.strokes = strokes;
    this.#changed();
  }

  undo() {
    this.#step(this.past, this.future);
  }

  redo() {
    this.#step(this.future, this.past);
  }

  #step(from, to) {
    this.stop();
    if (!from.length) return;
    to.push(this.strokes);
    this.strokes = from.pop();
    this.#changed();
  }

  #changed() {
    this.paint();
    this.onchange(true);
  }

  /** Draws strokes by itself on an empty canvas, one after another, until the first touch. */
  async play(strokes, { ms = 800 } = {}) {
    const ghost = {};
    this.ghost = ghost;
    this.strokes = [];
    const points = strokes.reduce((sum, [xs]) => sum + xs.length, 0);
    for (const stroke of strokes) {
      const [xs, ys] = densified(stroke);
      const started = performance.now();
      for (let part = 0; part < 1; ) {
        await new Promise(requestAnimationFrame);
        if (this.ghost !== ghost) return;
        part = isCalm() ? 1 : Math.min(1, ((performance.now() - started) * points) / (ms * stroke[0].length));
        const shown = Math.max(2, Math.round(part * xs.length));
        this.drawing = [xs.slice(0, shown), ys.slice(0, shown)];
        this.paint();
      }
      this.drawing = null;
      this.strokes = [...this.strokes, stroke];
      this.#changed();
    }
  }

  /** Ends the drawing that draws itself; what it has drawn stays. */
  stop() {
    if (this.ghost) this.drawing = null;
    this.ghost = null;
  }

  /** Clears what drew itself, as the first touch does. */
  clearGhost() {
    if (!this.ghost) return;
    this.stop();
    this.strokes = [];
    this.past = [];
    this.paint();
  }

  paint() {
    const { canvas } = this;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (side === 0) return;
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    context.setTransform(side / SIDE, 0, 0, side / SIDE, 0, 0);
    context.clearRect(0, 0, SIDE, SIDE);
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = this.width;
    context.strokeStyle = context.fillStyle = style.getPropertyValue(this.ghost ? "--ghost" : "--pen");
    for (const stroke of this.drawing ? [...this.strokes, this.drawing] : this.strokes) trace(context, stroke, this.width);
    if (!this.cursor || document.activeElement !== canvas) return;
    context.beginPath();
    context.arc(this.cursor.x, this.cursor.y, 4, 0, 7);
    context.strokeStyle = context.fillStyle = style.getPropertyValue("--accent");
    context.lineWidth = 1.5;
    context.stroke();
    if (this.cursor.isDown) context.fill();
  }

  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.canvas.classList.add("by-pointer"); // no ring around what the pen shows anyway
    this.canvas.focus({ preventScroll: true });
    try {
      this.canvas.setPointerCapture(event.pointerId);
    } catch {
      // A pointer that is gone already.
    }
    this.clearGhost();
    this.cursor = null;
    const [x, y] = this.#point(event);
    this.isErasing = this.tool === "eraser" || event.pointerType === "eraser";
    if (this.isErasing) this.#erase(x, y);
    else this.drawing = [[x], [y]];
    this.paint();
  }

  #move(event) {
    if (this.ghost || !(event.buttons & 1) || (!this.drawing && !this.isErasing)) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const [x, y] = this.#point(each);
      if (this.isErasing) this.#erase(x, y);
      else if (Math.hypot(x - this.drawing[0].at(-1), y - this.drawing[1].at(-1)) >= 1.5) this.#extend(x, y);
    }
    this.paint();
    if (this.drawing) this.onchange(false);
  }

  #up() {
    this.isErasing = false;
    if (!this.drawing || this.ghost) return;
    const stroke = this.drawing;
    this.drawing = null;
    this.set([...this.strokes, stroke]);
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (value) => Math.round(10 * Math.min(SIDE, Math.max(0, (value * SIDE) / box.width))) / 10;
    return [inside(event.clientX - box.left), inside(event.clientY - box.top)];
  }

  #extend(x, y) {
    this.drawing[0].push(x);
    this.drawing[1].push(y);
  }

  #erase(x, y) {
    const isNear = ([xs, ys]) => xs.some((px, at) => Math.hypot(px - x, ys[at] - y) < NEAR);
    const left = this.strokes.filter((stroke) => !isNear(densified(stroke)));
    if (left.length < this.strokes.length) this.set(left);
  }

  #key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    this.canvas.classList.remove("by-pointer");
    this.clearGhost();
    this.cursor ??= { x: SIDE / 2, y: SIDE / 2, isDown: false };
    const { cursor } = this;
    if (!move) {
      cursor.isDown = !cursor.isDown;
      if (cursor.isDown) this.drawing = [[cursor.x], [cursor.y]];
      else this.#up();
      return this.paint();
    }
    const step = event.shiftKey ? 4 * STEP : STEP;
    cursor.x = Math.min(SIDE, Math.max(0, cursor.x + step * move[0]));
    cursor.y = Math.min(SIDE, Math.max(0, cursor.y + step * move[1]));
    if (cursor.isDown) {
      this.#extend(cursor.x, cursor.y);
      this.onchange(false);
    }
    this.paint();
  }
}

function trace(context, [xs, ys], width) {
  context.beginPath();
  if (xs.length === 1) {
    context.arc(xs[0], ys[0], width / 2, 0, 7);
    context.fill();
    return;
  }
  context.moveTo(xs[0], ys[0]);
  for (let at = 1; at < xs.length - 1; at += 1) {
    // Through the middles, bent by the points: a hand's line is round.
    if (xs.length > 6) context.quadraticCurveTo(xs[at], ys[at], (xs[at] + xs[at + 1]) / 2, (ys[at] + ys[at + 1]) / 2);
    else context.lineTo(xs[at], ys[at]);
  }
  context.lineTo(xs.at(-1), ys.at(-1));
  context.stroke();
}
