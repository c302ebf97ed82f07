import { filePicker, h, iconButton, onDrop, percent, save } from "./dom.js";
import { Episode } from "./episode.js";
import { imagesIn, imagesOf, previewOf } from "./images.js";
import { verdictOf } from "./verdict.js";
import { VermouthError } from "./vermouth.js";

const QUERIES_A_CALL = 32;
const MOST_CHIPS = 6; // classes that a card offers

export function open(shell) {
  return new Teach(shell);
}

/** Classes as columns of examples, and queries that they classify; the service holds the episode. */
class Teach {
  constructor(shell) {
    this.shell = shell;
    this.episode = new Episode(shell.client);
    this.waiting = new Map([["first", []], ["second", []]]); // label → files that the episode does not have yet
    this.queries = []; // `{file, prediction}`
    this.dragged = null; // the query or example under the pointer
    this.work = Promise.resolve(); // changes are sent one after another
    this.element = this.#layout();
    const id = shell.parameter("episode");
    if (id) this.#change(async () => {
      await this.episode.load(id);
      this.waiting.clear();
    });
  }

  show() {
    this.isShown = true;
    this.#link();
    this.#render();
  }

  close() {
    this.isShown = false;
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
  }

  #link() {
    if (this.isShown) this.shell.link({ episode: this.episode.id });
  }

  #layout() {
    this.tray = h("section", { class: "tray", "aria-label": "Examples from Draw" });
    this.board = h("div", { class: "board" });
    this.verdict = h("div", { class: "verdict", "aria-live": "polite" });
    this.cards = h("ol", { class: "queries", "aria-label": "Queries, the most doubtful first" });
    this.slider = h("input", { type: "range", min: "0", max: "1", step: "0.01", value: "0", "aria-label": "Abstain below this probability", oninput: () => this.#abstain() });
    this.answered = h("span", { class: "figures", "aria-live": "polite" });
    const queries = filePicker((files) => this.#ask(files), { multiple: true });
    const folder = filePicker((files) => this.#teachFolders(files), { multiple: true, webkitdirectory: true, accept: null });
    const whole = filePicker(([file]) => this.#import(file), { accept: "application/json,.json" });
    const asking = h("section", { class: "panel asking", "aria-label": "Queries" },
      h("div", { class: "row" }, h("h2", {}, "Try it"), h("button", { class: "chip", onclick: () => queries.click() }, "Pick images…"), queries),
      h("p", { class: "soft" }, "Drop images here, as many as you like: the most doubtful come first."),
      h("label", { class: "row" }, h("span", { class: "soft" }, "abstain below"), this.slider, this.answered),
      this.cards);
    onDrop(asking, async (transfer) => this.#ask(await this.#dropped(transfer)));
    return h("div", { class: "teach" },
      h("section", { "aria-label": "Classes" },
        h("div", { class: "row" }, h("h2", {}, "Classes"),
          h("button", { class: "chip", onclick: () => this.#addClass() }, "Add a class"),
          h("button", { class: "chip", title: "A folder with a folder of images for each class", onclick: () => folder.click() }, "Add a folder…"),
          h("button", { class: "chip", onclick: () => this.#export() }, "Export"),
          h("button", { class: "chip", onclick: () => whole.click() }, "Import…"),
          h("button", { class: "chip", onclick: () => this.#reset() }, "New"), folder, whole),
        this.tray, this.board, this.verdict),
      asking);
  }

  get #labels() {
    return [...new Set([...this.episode.ways.map(({ label }) => label), ...this.waiting.keys()])];
  }

  #render() {
    const stored = new Map(this.episode.ways.map((way) => [way.label, way]));
    this.board.replaceChildren(...this.#labels.map((label) => this.#column(label, stored.get(label)?.support ?? [], this.waiting.get(label) ?? [])));
    this.verdict.replaceChildren(verdictOf(this.episode.ways, this.episode.report?.leave_one_out));
    this.#showTray();
    this.#showQueries();
  }

  #column(label, support, files) {
    const isStored = support.length > 0;
    const name = h("input", { type: "text", value: label, "aria-label": "Name of the class", maxlength: "128", onchange: () => this.#rename(label, name.value.trim(), isStored) });
    const examples = [
      ...support.map((one) => this.#example(this.shell.client.url(one.image_url).href, label, support.length > 1 ? () => this.#change(() => this.episode.remove(one.id)) : null)),
      ...files.map((file) => this.#example(previewOf(file), label, () => {
        files.splice(files.indexOf(file), 1);
        this.#render();
      })),
    ];
    const picker = filePicker((chosen) => this.#teach(label, chosen), { multiple: true });
    const remove = this.#labels.length > 2 ? iconButton("close", `Remove the class ${label}`, () => this.#removeClass(label, isStored)) : null;
    const column = h("section", { class: "panel class-column", "aria-label": label }, h("div", { class: "title" }, name, remove), h("ol", {}, examples),
      h("div", { class: "row" }, h("button", { class: "chip", onclick: () => picker.click() }, "Add images…"), iconButton("camera", `Take a photograph for ${label}`, () => this.#photograph(label)), picker));
    onDrop(column, async (transfer) => this.#teach(label, await this.#dropped(transfer)));
    return column;
  }

  #example(address, label, remove) {
    return h("li", {}, h("img", { src: address, alt: label, width: 64, height: 64 }), remove && h("button", { class: "remove", "aria-label": `Remove this example of ${label}`, onclick: remove }, "×"));
  }

  /** Images that were taken on other tabs; each waits until it is put into a class. */
  #showTray() {
    const { examples } = this.shell;
    this.shell.showExamples();
    this.tray.hidden = !examples.length;
    this.tray.replaceChildren(h("p", { class: "soft" }, "From Draw: drag each into a class, or pick one."),
      h("ol", {}, examples.map((one) => h("li", { draggable: true, ondragstart: () => { this.dragged = one; } },
        h("img", { src: previewOf(one.file), alt: one.name, width: 64, height: 64 }), h("span", {}, one.name),
        this.#chips(this.#labels, (label) => {
          this.#take(one);
          this.#teach(label, [one.file]);
        })))));
  }

  #chips(labels, run) {
    return h("div", { class: "chips" }, labels.slice(0, MOST_CHIPS).map((label) => h("button", { class: "chip", onclick: () => run(label) }, label)));
  }

  /** The files of a drop; a card of this page leaves its place. */
  async #dropped(transfer) {
    const one = this.dragged;
    this.dragged = null;
    if (one === null) return imagesOf(transfer, this.shell.client);
    this.#take(one);
    return [one.file];
  }

  #take(one) {
    this.shell.examples = this.shell.examples.filter((other) => other !== one);
    this.queries = this.queries.filter((other) => other !== one);
  }

  #addClass() {
    let number = this.#labels.length + 1;
    while (this.#labels.includes(`class ${number}`)) number += 1;
    this.waiting.set(`class ${number}`, []);
    this.#render();
    this.board.lastChild.querySelector("input").select();
  }

  #rename(label, other, isStored) {
    if (!other || this.#labels.includes(other)) return this.#render();
    if (this.waiting.has(label)) this.waiting = new Map([...this.waiting].map(([name, files]) => [name === label ? other : name, files]));
    if (isStored) this.#change(() => this.episode.rename(label, other));
    else this.#render();
  }

  #removeClass(label, isStored) {
    this.waiting.delete(label);
    if (isStored) this.#change(() => this.episode.removeWay(label));
    else this.#render();
  }

  /** Each folder of images is a class, by name. */
  async #teachFolders(files) {
    const images = (await imagesIn(files)).sort((one, other) => one.webkitRelativePath.localeCompare(other.webkitRelativePath));
    for (const [label, waiting] of this.waiting) if (images.length && !waiting.length) this.waiting.delete(label);
    for (const file of images) {
      const label = file.webkitRelativePath.split("/").at(-2);
      this.waiting.set(label, [...(this.waiting.get(label) ?? []), file]);
    }
    this.#learn();
  }

  async #teach(label, files) {
    const images = await imagesIn(files);
    if (!images.length || !this.#labels.includes(label)) return this.#render();
    this.waiting.set(label, [...(this.waiting.get(label) ?? []), ...images]);
    this.#learn();
  }

  /** Sends what waits, once there are two classes. */
  #learn() {
    this.#render();
    const full = [...this.waiting].filter(([, each]) => each.length);
    if (!this.episode.id && full.length < 2) return; // an episode begins with two classes
    this.#change(async () => {
      const examples = [...this.waiting].flatMap(([name, each]) => each.map((file) => ({ label: name, file })));
      if (!examples.length) return; // an earlier change took them along
      await this.episode.add(examples);
      for (const { label: name, file } of examples) this.waiting.set(name, this.waiting.get(name).filter((one) => one !== file));
      for (const { label: name } of this.episode.ways) if (!this.waiting.get(name)?.length) this.waiting.delete(name);
    });
  }

  /** Sends one change after those before it, shows the episode as it is then, and classifies the queries again. */
  #change(run) {
    this.work = this.work.then(async () => {
      this.board.setAttribute("aria-busy", "true");
      try {
        await run();
        this.shell.problem(null);
        await this.#classify(this.queries);
      } catch (error) {
        if (error.status === 412) await this.#conflict(error);
        this.shell.problem(error);
      }
      this.board.removeAttribute("aria-busy");
      this.#link();
      this.#render();
    });
  }

  async #conflict(error) {
    error.problem.title = "Changed elsewhere";
    error.message = "Someone changed the episode; it is shown as it is now. Do it again if it still applies.";
    await this.episode.load(this.episode.id);
  }

  #reset() {
    this.work = this.work.then(() => { // after the answer that is still to come
      this.episode = new Episode(this.shell.client);
      this.waiting = new Map([["first", []], ["second", []]]);
      this.queries = [];
      this.#link();
      this.#render();
    });
  }

  async #ask(files) {
    const added = (await imagesIn(files)).map((file) => ({ file, prediction: null }));
    this.queries.push(...added);
    this.#render();
    this.work = this.work.then(() => this.#classify(added)).then(() => this.#showQueries(), (error) => this.shell.problem(error));
  }

  async #classify(queries) {
    if (!this.episode.id) return;
    for (let start = 0; start < queries.length; start += QUERIES_A_CALL) {
      const part = queries.slice(start, start + QUERIES_A_CALL);
      const files = part.map(({ file }) => file);
      this.shell.code.show({ name: "classify", path: `fewshot/episodes/${this.episode.id}/classify`, args: [this.episode.id], query: { query: files } });
      const answer = await this.shell.client.classify(this.episode.id, files);
      answer.predictions.forEach((prediction, at) => { part[at].prediction = prediction; });
      this.shell.took(answer.timings_ms.total);
    }
  }

  #showQueries() {
    const doubt = ({ prediction }) => prediction?.probability ?? -1;
    const sorted = [...this.queries].sort((one, other) => doubt(one) - doubt(other));
    this.cards.replaceChildren(...sorted.map((query) => {
      const { file, prediction } = query;
      const others = this.#labels.filter((label) => label !== prediction?.label);
      return h("li", { class: "query-card", draggable: true, "data-probability": String(doubt(query)), ondragstart: () => { this.dragged = query; } },
        h("img", { src: previewOf(file), alt: file.name, width: 96, height: 96 }),
        h("b", {}, prediction ? prediction.label : "…"),
        h("span", { class: "figures" }, prediction ? percent(prediction.probability) : "waits for classes", h("span", { class: "abstains" }, " · abstains")),
        prediction ? h("div", { class: "correction" }, h("span", { class: "soft" }, "No, it is"), this.#chips(others, (label) => this.#correct(query, label))) : null);
    }));
    this.#abstain();
  }

  #correct(query, label) {
    this.#take(query);
    this.#teach(label, [query.file]);
  }

  #abstain() {
    const threshold = Number(this.slider.value);
    let count = 0;
    for (const card of this.cards.children) {
      const isAnswered = Number(card.dataset.probability) >= threshold;
      card.classList.toggle("abstained", !isAnswered);
      count += isAnswered;
    }
    this.answered.textContent = `${percent(threshold)}${this.queries.length ? `: ${count} of ${this.queries.length} answered` : ""}`;
  }

  async #photograph(label) {
    try {
      this.stream ??= await navigator.mediaDevices.getUserMedia({ video: { width: 640 } });
    } catch {
      return this.shell.problem(new VermouthError(0, { title: "No camera", detail: "The browser gives this page no camera.", code: "page" }));
    }
    if (!this.isShown) return this.close();
    const video = h("video", { autoplay: true, muted: true, playsinline: true });
    video.srcObject = this.stream;
    await video.play();
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => this.#teach(label, [new File([blob], "camera.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.92);
  }

  #export() {
    this.#change(async () => {
      if (this.episode.id) save(new Blob([JSON.stringify(await this.episode.exported())], { type: "application/json" }), `${this.episode.id}.json`);
    });
  }

  #import(file) {
    this.#change(async () => {
      let read;
      try {
        read = JSON.parse(await file.text());
      } catch {
        throw new VermouthError(0, { title: "Not an episode", detail: `${file.name} is not the JSON of an exported episode.`, code: "page" });
      }
      await this.episode.imported(read);
      this.waiting = new Map();
    });
  }
}
