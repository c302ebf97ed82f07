/** Drawings as the API takes them, `[[[x…], [y…]], …]` on a square of `SIDE`. */
export const SIDE = 256;
const STEP = 5; // between the points that an address holds

export const HOUSE = [
  [[48, 48, 208, 208, 48], [120, 226, 226, 120, 120]],
  [[30, 128, 226], [124, 36, 124]],
  [[108, 108, 148, 148], [226, 168, 168, 226]],
];

/** A drawing as a text for an address: two hexadecimal digits a coordinate, a dot between strokes. */
export function written(strokes) {
  const digits = (value) => Math.min(255, Math.round(value)).toString(16).padStart(2, "0");
  return strokes.map(([xs, ys]) => {
    let [text, last] = ["", null];
    xs.forEach((x, at) => {
      if (last && at < xs.length - 1 && Math.hypot(x - last[0], ys[at] - last[1]) < STEP) return;
      last = [x, ys[at]];
      text += digits(x) + digits(ys[at]);
    });
    return text;
  }).join(".");
}

/** The drawing of such a text; strokes that are none are left out. */
export function read(text) {
  return text.split(".").filter((stroke) => /^([0-9a-f]{4})+$/.test(stroke)).map((stroke) => {
    const values = stroke.match(/../g).map((digits) => parseInt(digits, 16));
    return [values.filter((_, at) => at % 2 === 0), values.filter((_, at) => at % 2 === 1)];
  });
}

/** The same line with a point every two units or so. */
export function densified([xs, ys]) {
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
