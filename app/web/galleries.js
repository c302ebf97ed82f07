import { filesOf, rowsOf, typed, typeOf, unzip } from "./archive.js";
import { h } from "./dom.js";
import { isImage } from "./images.js";

const BATCH = 16; // images a request
const PAGE = 60;
const JUNK = /(^|\/)(__MACOSX\/|\.|Thumbs\.db$|desktop\.ini$)/i;

export function open(shell, view) {
  return new Galleries(shell, view);
}

class Galleries {
  constructor(shell, view) {
    Object.assign(this, { shell });
    this.list = h("ul", { class: "gallery-list", "aria-label": "Galleries" });
    this.detail = h("section", { class: "gallery", "aria-label": "Gallery" });
    const name = h("input", { type: "text", placeholder: "new-gallery", "aria-label": "Name of a new gallery", pattern: "[a-z0-9][a-z0-9_\\-]{0,63}", title: "a–z, 0–9, - and _" });
    const form = h("form", { class: "row", onsubmit: (event) => { event.preventDefault(); this.#create(name.value); name.value = ""; } }, name, h("button", { class: "chip" }, "Create"));
    view.replaceChildren(h("div", { class: "galleries" }, h("section", { "aria-label": "All galleries" }, this.list, form), this.detail));
    this.reload();
  }

  close() {
    this.isClosed = true;
  }

  async reload() {
    try {
      await this.shell.refresh();
      this.list.replaceChildren(...this.shell.galleries.map(({ name, count, description }) =>
        h("li", {}, h("button", { "aria-current": String(name === this.shell.gallery), title: description, onclick: () => this.#open(name) }, h("span", {}, name), h("span", { class: "figures" }, count.toLocaleString())))));
      await this.#show();
    } catch (error) {
      this.shell.problem(error);
    }
  }

  #open(name) {
    this.shell.choose(name);
    this.reload();
  }

  async #create(name) {
    if (!name) return;
    try {
      await this.shell.client.json("PUT", `galleries/${name}`, { body: {} });
      this.#open(name);
    } catch (error) {
      this.shell.problem(error);
    }
  }

  async #show() {
    const name = this.shell.gallery;
    const { count, index } = await this.shell.client.gallery(name);
    if (name !== this.shell.gallery) return; // another one was opened meanwhile
    const figures = [`${count.toLocaleString()} items`, index.kind === "flat" ? "exact index" : `${index.kind} index`, index.recall === null ? null : `recall@10 ${index.recall.toFixed(3)}`].filter(Boolean);
    this.grid = h("ol", { class: "results items", "aria-label": `Items of ${name}` });
    this.end = h("div", { class: "end" });
    this.report = h("div", { class: "import-report", "aria-live": "polite" });
    const field = h("input", { type: "text", placeholder: "field", "aria-label": "Filter by this field" });
    const value = h("input", { type: "text", placeholder: "value", "aria-label": "Value of the field" });
    const apply = () => {
      this.filter = field.value && value.value ? JSON.stringify({ or: [{ [field.value]: value.value }, ...(Number.isFinite(Number(value.value)) ? [{ [field.value]: Number(value.value) }] : [])] }) : null;
      this.#fill();
    };
    const picker = h("input", { type: "file", multiple: true, webkitdirectory: true, hidden: true, onchange: () => this.#take([...picker.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }))) });
    const drop = h("div", { class: "drop" }, h("p", {}, "Drop a folder, images, a ZIP, or a CSV with its images"), h("button", { class: "chip", onclick: () => picker.click() }, "Pick a folder…"), picker);
    drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", async (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      this.#take(await filesOf(event.dataTransfer));
    });
    this.detail.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, name), h("span", { class: "figures" }, figures.join(" · ")), name === "default" ? null : this.#deletion(name, count)),
      drop, this.report,
      h("form", { class: "row filter", onsubmit: (event) => { event.preventDefault(); apply(); } }, field, value, h("button", { class: "chip" }, "Filter")),
      this.grid, this.end);
    this.filter = null;
    this.observer?.disconnect();
    this.observer = new IntersectionObserver((seen) => seen[0].isIntersecting && this.#next(), { rootMargin: "400px" });
    await this.#fill();
  }

  async #fill() {
    this.turn = (this.turn ?? 0) + 1; // what an earlier question still answers is dropped
    this.isLoading = false;
    this.cursor = undefined;
    this.grid.replaceChildren();
    await this.#next();
  }

  async #next() {
    if (this.isLoading || this.cursor === null) return;
    const { turn } = this;
    this.isLoading = true;
    try {
      const name = this.shell.gallery;
      const page = await this.shell.client.json("GET", `galleries/${name}/items`, { query: { limit: PAGE, cursor: this.cursor, filter: this.filter } });
      if (turn !== this.turn) return;
      this.cursor = page.next_cursor;
      if (!page.items.length && !this.grid.children.length) this.grid.replaceChildren(h("li", { class: "empty" }, this.filter ? "No item passes the filter." : "Nothing here yet."));
      this.grid.append(...page.items.map((item) => this.#card(item, name)));
    } catch (error) {
      if (turn !== this.turn) return;
      this.cursor = null;
      this.shell.problem(error);
    }
    this.isLoading = false;
    // It reports changes alone: where a page leaves the end in sight, it must look again.
    this.observer.unobserve(this.end);
    this.observer.observe(this.end);
  }

  #card(item, gallery) {
    const label = String(item.metadata.name ?? item.id);
    const image = h("img", { alt: label, width: 128, height: 128, loading: "lazy", decoding: "async" });
    this.shell.client.show(image, item.image_url, { size: 256 });
    const entries = Object.entries(item.metadata).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join("\n");
    const card = h("li", { class: "card", title: `${item.id}\n${item.width} × ${item.height}\n${entries}` }, h("figure", {}, image, h("figcaption", {}, label)),
      h("div", { class: "actions" }, h("button", { class: "chip", "aria-label": `Delete ${label}`, onclick: async () => {
        try {
          await this.shell.client.send("DELETE", `galleries/${gallery}/items/${item.id}`);
          card.remove();
        } catch (error) {
          this.shell.problem(error);
        }
      } }, "delete")));
    return card;
  }

  #deletion(name, count) {
    const box = h("input", { type: "text", "aria-label": `Type ${name} to delete it`, placeholder: `type “${name}” to delete` });
    const button = h("button", { class: "chip negative", disabled: true, onclick: async () => {
      try {
        await this.shell.client.send("DELETE", `galleries/${name}`, { query: count ? { confirm: name } : {} });
        this.#open("default");
      } catch (error) {
        this.shell.problem(error);
      }
    } }, "Delete");
    box.addEventListener("input", () => { button.disabled = box.value !== name; });
    return h("span", { class: "row" }, box, button);
  }

  /** Sorts what was dropped, shows it, and imports it after a click. */
  async #take(dropped) {
    const problems = [];
    const found = [];
    for (const { path, file } of dropped) {
      if (JUNK.test(path)) continue;
      if (/\.zip$/i.test(path)) {
        try {
          found.push(...(await unzip(file)).filter((each) => !JUNK.test(each.path)));
        } catch (error) {
          problems.push([path, error.message]);
        }
      } else found.push({ path, file });
    }
    const table = found.find(({ path }) => /\.csv$/i.test(path));
    const images = found.filter(({ path, file }) => isImage(file instanceof Blob ? file : new File([], path)));
    const others = found.length - images.length - (table ? 1 : 0);
    const columns = table ? await this.#columns(table) : null;
    const { gallery } = this.shell;
    const button = h("button", { class: "primary", disabled: !images.length, onclick: () => this.#import(gallery, images, columns, problems) }, `Import ${images.length.toLocaleString()} images into “${gallery}”`);
    this.report.replaceChildren(...[
      h("p", {}, `${images.length.toLocaleString()} images`, others ? `, ${others} other files left out` : "", problems.length ? `, ${problems.length} unreadable` : "", "."),
      columns?.element ?? null, button].filter(Boolean));
  }

  async #columns({ path, file }) {
    const [header, ...rows] = rowsOf(await (file instanceof Blob ? file : await file()).text());
    const names = header.map((name) => name.trim().replace(/^\ufeff/, ""));
    const key = names.findIndex((name) => /^(path|file|filename|image)$/i.test(name));
    const types = names.map((_, at) => typeOf(rows.map((row) => row[at] ?? "")));
    const element = h("table", { class: "confusion" }, h("caption", {}, key < 0 ? `${path} has no column “path”: its values are not used` : `${rows.length} rows of ${path}; the type of each column:`),
      h("tbody", {}, names.map((name, at) => (at === key ? null : h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, h("select", { "aria-label": `Type of ${name}`, onchange: (event) => { types[at] = event.target.value; } }, ["text", "number", "boolean", "leave out"].map((type) => h("option", { selected: type === types[at] }, type)))), h("td", {}, rows[0]?.[at] ?? ""))))));
    const byPath = new Map(key < 0 ? [] : rows.map((row) => [row[key].trim().replaceAll("\\", "/").replace(/^\.\//, ""), row]));
    const metadataOf = (image) => {
      const row = byPath.get(image) ?? [...byPath].find(([path]) => image.endsWith(`/${path}`))?.[1];
      return row ? Object.fromEntries(names.flatMap((name, at) => (at === key || types[at] === "leave out" || typed(row[at] ?? "", types[at]) === undefined ? [] : [[name, typed(row[at], types[at])]]))) : {};
    };
    return { element, metadataOf };
  }

  async #import(gallery, images, columns, rejected) {
    const bar = h("progress", { max: images.length, value: 0 });
    const line = h("p", {}, "");
    this.report.replaceChildren(bar, line);
    let added = 0;
    for (let start = 0; start < images.length && !this.isClosed; start += BATCH) {
      const form = new FormData();
      const items = [];
      for (const { path, file } of images.slice(start, start + BATCH)) {
        try {
          form.append("image", file instanceof Blob ? file : await file(), path.split("/").at(-1));
          items.push({ id: idOf(path), metadata: { name: path.split("/").at(-1).replace(/\.\w+$/, ""), ...columns?.metadataOf(path) } });
        } catch (error) {
          rejected.push([path, error.message]);
        }
      }
      form.append("items", JSON.stringify(items));
      try {
        const answer = await this.shell.client.json("POST", `galleries/${gallery}/items`, { body: form, headers: { "Idempotency-Key": randomHex() } });
        answer.results.forEach((result, at) => (result.status === "rejected" ? rejected.push([items[at].id, result.problem.detail]) : (added += 1)));
      } catch (error) {
        this.shell.problem(error);
        break;
      }
      bar.value = start + BATCH;
      line.textContent = `${added.toLocaleString()} of ${images.length.toLocaleString()} added${rejected.length ? `, ${rejected.length} rejected` : ""}`;
    }
    const reasons = rejected.length ? h("details", {}, h("summary", {}, `${rejected.length} rejected`), h("ul", {}, rejected.slice(0, 200).map(([path, reason]) => h("li", {}, h("b", {}, path), ` ${reason}`)))) : null;
    await this.reload();
    this.report.replaceChildren(...[h("p", {}, `${added.toLocaleString()} images added.`), reasons].filter(Boolean));
  }
}

/** An id of the letters that the service takes, from a path. */
function idOf(path) {
  const plain = path.replace(/\.\w+$/, "").normalize("NFKD").replace(/[^A-Za-z0-9._:-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 100);
  return `${plain || "i"}-${hashOf(path)}`;
}

/** 53 bits of a text: paths that differ in letters that an id cannot hold stay apart. */
function hashOf(path) {
  let [high, low] = [0xdeadbeef, 0x41c6ce57];
  for (let at = 0; at < path.length; at += 1) {
    high = Math.imul(high ^ path.charCodeAt(at), 2654435761);
    low = Math.imul(low ^ path.charCodeAt(at), 1597334677);
  }
  return ((high >>> 0) * 2 ** 21 + (low >>> 11)).toString(36);
}

/** Not `crypto.randomUUID`: pages on plain HTTP have it on this machine alone. */
function randomHex() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
