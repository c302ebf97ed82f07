import { h, percent } from "./dom.js";

const FEW = 4; // examples a class, below which the leave-one-out figure says little
const MOST_CLASSES = 12; // of a confusion grid that can be read

/** How well the classes of an episode are distinguished, from its leave-one-out result. */
export function verdictOf(ways, leaveOneOut) {
  if (!ways.length) return h("p", { class: "soft" }, "Give two classes a few images each: files, results and drawings from Draw, or the camera.");
  if (!leaveOneOut) return h("p", { class: "soft" }, "Give every class a second example to see how well they are distinguished.");
  const [low, high] = leaveOneOut.ci95;
  const isFew = Math.min(...ways.map(({ shots }) => shots)) < FEW;
  const scale = h("div", { class: "scale", role: "img", "aria-label": `between ${percent(low)} and ${percent(high)}` }, h("span", { class: "interval" }), h("span", { class: "point" }));
  for (const [name, value] of [["--low", low], ["--high", high], ["--point", leaveOneOut.accuracy]]) scale.style.setProperty(name, value);
  return h("div", {},
    h("p", {}, h("b", { class: "accuracy" }, percent(leaveOneOut.accuracy)), " of the examples are recognised by the others. ",
      h("span", { class: "soft" }, `95 % interval ${percent(low)} to ${percent(high)}. `), isFew ? h("em", {}, `Too few to trust: give each class ${FEW}.`) : null),
    scale,
    ways.length <= MOST_CLASSES ? confusionGrid(ways.map(({ label }) => label), leaveOneOut.confusion) : null);
}

function confusionGrid(labels, confusion) {
  const cell = (truth, answer) => {
    const count = confusion[truth]?.[answer] ?? 0;
    return h("td", { class: count ? (truth === answer ? "right" : "wrong") : "" }, count || "");
  };
  return h("table", { class: "confusion" }, h("caption", {}, "Rows are true, columns are answered"),
    h("thead", {}, h("tr", {}, h("td", {}), labels.map((label) => h("th", { scope: "col", title: label }, label)))),
    h("tbody", {}, labels.map((truth) => h("tr", {}, h("th", { scope: "row", title: truth }, truth), labels.map((answer) => cell(truth, answer))))));
}
