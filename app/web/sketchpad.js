import { h, isCalm } from "./dom.js";

export const SIDE = 256; // the canvas in the units of its strokes
const NEAR = 9; // an eraser takes the strokes that come this close
const STEP = 6; // of the keyboard's pen

/** A canvas that is drawn on with a pen, a mouse, a finger or the arrow keys. Strokes are `[[x…], [y…]]` as the API takes them. */
export class Sketchpad {
  /** `onchange(strokes, isWhole)` is called while a stroke is drawn and, with `isWhole`, when it ends. */
  constructor({ onchange }) {
    this.onchange = onchange;
    this.strokes = [];
    this.undone = [];
    this.tool = "pen";
    this.width = 5;
    this.ghost = null;
    this.cursor = null; // of the keyboard
    this.canvas = h("canvas", { class: "pad", tabindex: "0", role: "application", "aria-label": "Canvas. Arrow keys move the pen, space lifts and lowers it." });
    this.element = this.canvas;
    this.canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => this.#up());
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.paint()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  get isEmpty() {
    return this.strokes.length === 0;
  }

  set(strokes) {
    this.stop();
    this.strokes = strokes;
    this.undone = [];
    this.#changed(true);
  }

  clear() {
    this.stop();
    if (this.isEmpty) return;
    this.undone = [{ cleared: this.strokes }];
    this.ghost = null;
    this.strokes = [];
    this.#changed(true);
  }

  undo() {
    this.stop();
    const last = this.undone.at(-1);
    if (this.isEmpty && last?.cleared) {
      this.strokes = this.undone.pop().cleared;
    } else if (!this.isEmpty) {
      this.undone.push({ stroke: this.strokes.at(-1) });
      this.strokes = this.strokes.slice(0, -1);
    }
    this.#changed(true);
  }

  redo() {
    const last = this.undone.pop();
    if (last?.stroke) this.strokes = [...this.strokes, last.stroke];
    else if (last) this.undone.push(last);
    this.#changed(true);
  }

  /** Draws strokes by itself, one after another, until the first touch. */
  async play(strokes, { ms = 1100 } = {}) {
    const ghost = { done: false };
    this.ghost = ghost;
    this.strokes = [];
    const points = strokes.reduce((sum, [xs]) => sum + xs.length, 0);
    for (const [xs, ys] of strokes) {
      const dense = densified(xs, ys);
      const share = xs.length / points;
      const started = performance.now();
      const length = dense[0].length;
      for (let shown = 2; ; ) {
        if (this.ghost !== ghost) return false;
        const part = isCalm() ? 1 : Math.min(1, (performance.now() - started) / (ms * share));
        shown = Math.max(2, Math.round(part * length));
        this.drawing = [dense[0].slice(0, shown), dense[1].slice(0, shown)];
        this.paint();
        if (part >= 1) break;
        await new Promise(requestAnimationFrame);
      }
      this.drawing = null;
      this.strokes = [...this.strokes, [xs, ys]];
      this.paint();
      this.onchange(this.strokes, true);
    }
    return true;
  }

  paint() {
    const { canvas } = this;
    const side = canvas.clientWidth * devicePixelRatio;
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
    if (this.cursor && document.activeElement === canvas) {
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, 4, 0, 7);
      context.strokeStyle = style.getPropertyValue("--accent");
      context.lineWidth = 1.5;
      context.stroke();
      if (this.cursor.isDown) context.fill();
    }
  }

  /** Ends the drawing that draws itself; what it has drawn stays. */
  stop() {
    if (this.ghost) this.drawing = null; // the stroke that draws itself
    this.ghost = null;
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = SIDE / box.width;
    const inside = (value) => Math.round(10 * Math.min(SIDE, Math.max(0, value * scale))) / 10;
    return [inside(event.clientX - box.left), inside(event.clientY - box.top)];
  }

  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    try {
      this.canvas.setPointerCapture(event.pointerId);
    } catch {
      // A pointer that is gone already.
    }
    if (this.ghost) {
      this.stop();
      this.strokes = [];
    }
    this.cursor = null;
    const [x, y] = this.#point(event);
    if (this.tool === "eraser") {
      this.erasing = true;
      this.#erase(x, y);
    } else {
      this.drawing = [[x], [y]];
      this.paint();
    }
  }

  #move(event) {
    if (this.ghost || !(event.buttons & 1) || (!this.drawing && !this.erasing)) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const [x, y] = this.#point(each);
      if (this.erasing) this.#erase(x, y);
      else if (Math.hypot(x - this.drawing[0].at(-1), y - this.drawing[1].at(-1)) >= 1.5) {
        this.drawing[0].push(x);
        this.drawing[1].push(y);
      }
    }
    this.paint();
    if (this.drawing) this.onchange([...this.strokes, this.drawing], false);
  }

  #up() {
    if (this.erasing) {
      this.erasing = false;
      return;
    }
    if (!this.drawing) return;
    this.strokes = [...this.strokes, this.drawing];
    this.undone = [];
    this.drawing = null;
    this.#changed(true);
  }

  #erase(x, y) {
    const left = this.strokes.filter(([xs, ys]) => !densified(xs, ys)[0].some((px, at) => Math.hypot(px - x, densified(xs, ys)[1][at] - y) < NEAR));
    if (left.length === this.strokes.length) return;
    this.undone = [];
    this.strokes = left;
    this.#changed(true);
  }

  #key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (this.ghost) {
      this.stop();
      this.strokes = [];
    }
    this.cursor ??= { x: SIDE / 2, y: SIDE / 2, isDown: false };
    const { cursor } = this;
    if (!move) {
      cursor.isDown = !cursor.isDown;
      if (cursor.isDown) this.drawing = [[cursor.x], [cursor.y]];
      else this.#up();
      this.paint();
      return;
    }
    const step = event.shiftKey ? 4 * STEP : STEP;
    cursor.x = Math.min(SIDE, Math.max(0, cursor.x + step * move[0]));
    cursor.y = Math.min(SIDE, Math.max(0, cursor.y + step * move[1]));
    if (cursor.isDown) {
      this.drawing[0].push(cursor.x);
      this.drawing[1].push(cursor.y);
      this.onchange([...this.strokes, this.drawing], false);
    }
    this.paint();
  }

  #changed(isWhole) {
    this.paint();
    this.onchange(this.strokes, isWhole);
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

/** The same line with a point every two units or so. */
function densified(xs, ys) {
  const [x, y] = [[xs[0]], [ys[0]]];
  for (let at = 1; at < xs.length; at += 1) {
    const steps = Math.max(1, Math.ceil(Math.hypot(xs[at] - xs[at - 1], ys[at] - ys[at - 1]) / 2));
    for (let step = 1; step <= steps; step += 1) {
      x.push(xs[at - 1] + ((xs[at] - xs[at - 1]) * step) / steps);
      y.push(ys[at - 1] + ((ys[at] - ys[at - 1]) * step) / steps);
    }
  }
  return [x, y];
}
