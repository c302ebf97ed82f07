import { filesOf, idOf, rowsOf, typed, typeOf, unzip } from "./archive.js";
import { filePicker, h, onDrop } from "./dom.js";
import { drawn, isImage } from "./images.js";

const BATCH = 16; // images a request
const MOST_REASONS = 200;
const JUNK = /(^|\/)(__MACOSX\/|\.|Thumbs\.db$|desktop\.ini$)/i;

/** Fills a gallery with a folder, images, a ZIP, a CSV with its images, or the demo's. */
export class Importing {
  /** `ondone()` is called after an import, which reports below what it did. */
  constructor(shell, gallery, ondone) {
    Object.assign(this, { shell, gallery, ondone });
    const folder = filePicker((files) => this.#take(files.map((file) => ({ path: file.webkitRelativePath || file.name, file }))), { multiple: true, webkitdirectory: true, accept: null });
    this.report = h("div", { class: "import-report", "aria-live": "polite" });
    const drop = h("div", { class: "drop" }, h("p", {}, "Drop a folder, images, a ZIP, or a CSV with its images"),
      h("div", { class: "row" }, h("button", { class: "secondary", onclick: () => folder.click() }, "Pick a folder…"), h("button", { class: "secondary", onclick: () => this.demo() }, "Add the demo images")), folder, this.report);
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
    const others = found.filter((one) => one !== sheet && !images.includes(one)).map(({ path }) => [path, "has no suffix of an image"]);
    const table = sheet ? await tableOf(sheet) : null;
    const count = images.length.toLocaleString("en");
    const start = () => this.#import(images.map(({ path, file }) => itemOf(path, file, table)), rejected);
    this.report.replaceChildren(...[
      h("p", {}, `${count} images`, rejected.length ? `, ${rejected.length} unreadable` : "", "."), listOf(others, "left out"),
      table?.element, h("button", { class: "primary", disabled: !images.length, onclick: start }, `Import ${count} images into “${this.gallery}”`)].filter(Boolean));
  }

  /** Adds the images of the demo that the gallery lacks. */
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
    const paths = new Map(items.map(({ id, path }) => [id, path]));
    let added = 0;
    for (let start = 0; start < items.length && !this.isStopped; start += BATCH) {
      const batch = [];
      for (const { path, id, metadata, file } of items.slice(start, start + BATCH)) {
        try {
          batch.push({ id, metadata, image: await drawn(file instanceof Blob ? file : await file()) });
        } catch (error) {
          rejected.push([path, error.message]);
        }
      }
      try {
        const { results } = batch.length ? await this.shell.client.addItems(this.gallery, batch) : { results: [] };
        results.forEach((result) => (result.status === "rejected" ? rejected.push([paths.get(result.id), result.problem.detail]) : (added += 1)));
      } catch (error) {
        this.shell.problem(error);
        break;
      }
      bar.value = start + BATCH;
      const left = ((performance.now() - startedAt) / (start + BATCH)) * Math.max(0, items.length - start - BATCH);
      line.textContent = `${added.toLocaleString("en")} of ${items.length.toLocaleString("en")} added${rejected.length ? `, ${rejected.length} rejected` : ""}, about ${Math.ceil(left / 1000)} s left`;
    }
    this.shell.lastImport = { gallery: this.gallery, content: [h("p", {}, `${added.toLocaleString("en")} images added.`), listOf(rejected, "rejected")].filter(Boolean) };
    this.ondone();
  }
}

/** Files with reasons below their number, shown after a click; null if there are none. */
function listOf(files, word) {
  if (!files.length) return null;
  return h("details", {}, h("summary", {}, `${files.length} ${word}`), h("ul", {}, files.slice(0, MOST_REASONS).map(([path, reason]) => h("li", {}, h("b", {}, path), ` ${reason}`))));
}

function itemOf(path, file, table) {
  const name = path.split("/").at(-1).replace(/\.\w+$/, "");
  const folder = path.split("/").at(-2);
  return { path, file, id: idOf(path), metadata: { name, ...(folder && { folder }), ...table?.metadataOf(path) } };
}

/** A CSV as a preview with a type for each column, and the metadata that it has for an image. */
async function tableOf({ path, file }) {
  const [header, ...rows] = rowsOf(await (file instanceof Blob ? file : await file()).text());
  const names = header.map((name) => name.trim().replace(/^\ufeff/, ""));
  const key = names.findIndex((name) => /^(path|file|filename|image)$/i.test(name));
  const types = names.map((_, at) => typeOf(rows.map((row) => row[at] ?? "")));
  const picker = (at) => h("select", { "aria-label": `Type of ${names[at]}`, onchange: (event) => { types[at] = event.target.value; } }, ["text", "number", "boolean", "leave out"].map((type) => h("option", { selected: type === types[at] }, type)));
  const caption = key < 0 ? `${path} has no column “path”: its values are not used` : `${rows.length} rows of ${path}; the type of each column:`;
  const element = h("table", { class: "columns" }, h("caption", {}, caption), h("tbody", {}, names.flatMap((name, at) => (at === key ? [] : [
    h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, picker(at)), h("td", {}, rows.slice(0, 3).map((row) => row[at] ?? "").join(", ")))]))));
  const byPath = new Map(key < 0 ? [] : rows.map((row) => [row[key].trim().replaceAll("\\", "/").replace(/^\.\//, ""), row]));
  const metadataOf = (image) => {
    const row = byPath.get(image) ?? [...byPath].find(([each]) => image.endsWith(`/${each}`))?.[1] ?? [];
    return Object.fromEntries(names.flatMap((name, at) => {
      const value = at === key || types[at] === "leave out" ? undefined : typed(row[at] ?? "", types[at]);
      return value === undefined ? [] : [[name, value]];
    }));
  };
  return { element, metadataOf };
}
