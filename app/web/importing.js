import { filesOf, idOf, insideOf, unzip } from "./archive.js";
import { filePicker, h, onDrop } from "./dom.js";
import { drawn, isImage } from "./images.js";
import { tableOf } from "./table.js";

const BATCH = 16; // images a request
const MOST_REASONS = 200;
const JUNK = /(^|\/)(__MACOSX\/|\.|Thumbs\.db$|desktop\.ini$)/i;

/** Fills a gallery with a folder, images, a ZIP, a CSV with its images, or the demo's. */
export class Importing {
  /** `ondone()` is called after an import, which reports below what it did. */
  constructor(shell, gallery, ondone) {
    Object.assign(this, { shell, gallery, ondone });
    const picker = (options) => filePicker((files) => this.#take(files.map((file) => ({ path: insideOf(file.webkitRelativePath) || file.name, file }))), { multiple: true, accept: null, ...options });
    const [folder, several] = [picker({ webkitdirectory: true }), picker()];
    const button = (text, onclick) => h("button", { class: "secondary", onclick }, text);
    this.report = h("div", { class: "import-report", "aria-live": "polite" });
    const drop = h("div", { class: "drop" }, h("p", {}, "Drop a folder, images, a ZIP, or a CSV with its images"),
      h("div", { class: "row" }, button("Pick a folder…", () => folder.click()), button("Pick files…", () => several.click()), button("Add the demo images", () => this.demo())), folder, several, this.report);
    onDrop(drop, async (transfer) => this.#take(await filesOf(transfer)));
    this.element = drop;
    const last = shell.lastImport;
    if (last?.gallery === gallery) this.report.append(...last.content);
  }

  stop() {
    this.isStopped = true;
  }

  /** Sorts what was dropped, shows it, and imports it after a click. */
  async #take(dropped) {
    const rejected = [];
    const found = [];
    for (const { path, file } of dropped) {
      if (JUNK.test(path)) continue;
      if (/\.zip$/i.test(path)) {
        try {
          found.push(...(await unzip(file)).filter((each) => !JUNK.test(each.path)));
        } catch (error) {
          rejected.push([path, error.message]);
        }
      } else found.push({ path, file });
    }
    const sheet = found.find(({ path }) => /\.csv$/i.test(path));
    const images = found.filter(({ path, file }) => isImage(file instanceof Blob ? file : new File([], path)));
    const others = found.filter((one) => one !== sheet && !images.includes(one)).map(({ path }) => [path, /\.csv$/i.test(path) ? "only one table at a time is read" : "is not an image"]);
    const table = sheet ? await tableOf(sheet, found.map(({ path }) => path)) : null;
    const accepted = images.filter(({ path }) => table?.fieldsOf(path) !== null);
    rejected.push(...(table?.rejected ?? []));
    const lists = [listOf(others, "left out"), listOf(rejected, "rejected")];
    const count = countOf(accepted.length);
    const start = () => this.#import(accepted.map((one) => itemOf(one, table)), rejected);
    const content = accepted.length ? [h("p", {}, `${count}.`), ...lists, table?.element, h("button", { class: "primary", onclick: start }, `Import ${count} into “${this.gallery}”`)] : [h("p", {}, whyNone(images.length ? null : sheet, others)), ...lists];
    this.report.replaceChildren(...content.filter(Boolean));
  }

  /** Adds the images of the demo. */
  async demo() {
    try {
      const { client } = this.shell;
      const items = await client.json("GET", "playground/demo");
      const file = (id) => async () => new File([await (await client.send("GET", `playground/demo/${id}`)).blob()], `${id}.png`, { type: "image/png" });
      await this.#import(items.map(({ id, metadata }) => ({ path: id, id, metadata, file: file(id) })), []);
    } catch (error) {
      this.shell.problem(error);
    }
  }

  async #import(items, rejected) {
    const bar = h("progress", { max: items.length, value: 0, "aria-label": "Progress" });
    const line = h("p", { class: "figures" }, "");
    const stop = h("button", { class: "chip", onclick: () => this.stop() }, "Stop");
    this.isStopped = false;
    this.report.replaceChildren(bar, h("div", { class: "row" }, line, stop));
    const startedAt = performance.now();
    const paths = new Map();
    let [added, replaced] = [0, 0];
    for (let start = 0; start < items.length && !this.isStopped; start += BATCH) {
      const batch = [];
      for (const { path, id, caption, metadata, file } of items.slice(start, start + BATCH)) {
        if (paths.has(id)) {
          rejected.push([path, `its id “${id}” was already used in this import`]);
          continue;
        }
        paths.set(id, path);
        try {
          batch.push({ id, caption, metadata, image: await drawn(file instanceof Blob ? file : await file()) });
        } catch (error) {
          rejected.push([path, error.message]);
        }
      }
      try {
        const { results } = batch.length ? await this.shell.client.addItems(this.gallery, batch) : { results: [] };
        for (const { id, status, problem } of results) {
          if (status === "rejected") rejected.push([paths.get(id), problem.detail]);
          else if (status === "replaced") replaced += 1;
          else added += 1;
        }
      } catch (error) {
        this.shell.problem(error);
        break;
      }
      bar.value = start + BATCH;
      const left = ((performance.now() - startedAt) / (start + BATCH)) * Math.max(0, items.length - start - BATCH);
      line.textContent = `${added.toLocaleString("en")} of ${items.length.toLocaleString("en")} added${replaced ? `, ${replaced.toLocaleString("en")} replaced` : ""}${rejected.length ? `, ${rejected.length} rejected` : ""}, about ${Math.ceil(left / 1000)} s left`;
    }
    const done = [added || !replaced ? `${countOf(added)} added` : null, replaced ? `${countOf(replaced)} replaced (already in the gallery)` : null].filter(Boolean).join(", ");
    this.shell.lastImport = { gallery: this.gallery, content: [h("p", {}, `${done}.`), listOf(rejected, "rejected")].filter(Boolean) };
    this.ondone();
  }
}

const countOf = (count) => `${count.toLocaleString("en")} image${count === 1 ? "" : "s"}`;

/** Why there is nothing to import. */
function whyNone(sheet, others) {
  if (sheet) return `“${sheet.path}” names images but has none itself: drop or pick it together with them.`;
  return others.length === 1 ? `“${others[0][0]}” is not an image.` : "There is no image to import here.";
}

/** Files with reasons below their number, shown after a click; null if there are none. */
function listOf(files, word) {
  if (!files.length) return null;
  return h("details", {}, h("summary", {}, `${files.length} ${word}`), h("ul", {}, files.slice(0, MOST_REASONS).map(([path, reason]) => h("li", {}, h("b", {}, path), `: ${reason}`))));
}

function itemOf({ path, file }, table) {
  const folder = path.split("/").at(-2);
  const { id = idOf(path), caption, metadata } = table?.fieldsOf(path) ?? {};
  return { path, file, id, caption, metadata: { path, ...(folder && { folder }), ...metadata } };
}
