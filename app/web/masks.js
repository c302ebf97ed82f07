/** The label of every pixel, row by row, from an answer of `POST /segment` with COCO's compressed run lengths. */
export function labelsOf({ width, height, classes }) {
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
