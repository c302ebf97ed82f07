import { filePicker, h, iconButton, onDrop, percent, save } from "./dom.js";
import { Episode } from "./episode.js";
import { imagesIn, imagesOf, isOfImage, mayBeRead, thumbnail } from "./images.js";
import { sha256 } from "./sha256.js";
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
    this.unread = new Map(); // file → why the service cannot read it
    this.digests = new WeakMap(); // file → SHA-256
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
    this.note = h("div", { class: "note soft", role: "status" });
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
        this.note, this.tray, this.board, this.verdict),
      asking);
  }

  /** Adds a line to the note, which the next files replace. */
  #say(...content) {
    this.note.append(h("p", {}, ...content));
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
      ...support.map((one) => this.#example(h("img", { src: this.shell.client.url(one.image_url).href, alt: label, width: 64, height: 64 }), label, support.length > 1 ? () => this.#change(() => this.episode.remove(one.id)) : null)),
      ...files.map((file) => this.#waiting(file, label, () => {
        this.waiting.set(label, files.filter((one) => one !== file));
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

  #waiting(file, label, remove) {
    const why = this.unread.get(file);
    const shown = why ? h("span", { class: "unread" }, h("b", {}, file.name), ` is left out. ${why}`) : thumbnail(file, { alt: label, width: 64, height: 64 });
    return this.#example(shown, label, remove);
  }

  #example(shown, label, remove) {
    return h("li", {}, shown, remove && h("button", { class: "remove", "aria-label": `Remove this example of ${label}`, onclick: remove }, "×"));
  }

  /** Images that were taken on other tabs; each waits until it is put into a class. */
  #showTray() {
    const { examples } = this.shell;
    this.shell.showExamples();
    this.tray.hidden = !examples.length;
    this.tray.replaceChildren(h("p", { class: "soft" }, "From Draw: drag each into a class, or pick one."),
      h("ol", {}, examples.map((one) => h("li", { draggable: true, ondragstart: () => { this.dragged = one; } },
        thumbnail(one.file, { alt: one.name, width: 64, height: 64 }), h("span", {}, one.name),
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
    this.note.replaceChildren();
    const images = (await imagesIn(files)).sort((one, other) => one.webkitRelativePath.localeCompare(other.webkitRelativePath));
    for (const [label, waiting] of this.waiting) if (images.length && !waiting.length) this.waiting.delete(label);
    const classes = Map.groupBy(images, (file) => file.webkitRelativePath.split("/").at(-2));
    for (const [label, members] of classes) await this.#admit(label, members);
    this.#learn();
  }

  async #teach(label, files) {
    const images = await this.#images(files);
    if (!images.length || !this.#labels.includes(label)) return this.#render();
    await this.#admit(label, images);
    this.#learn();
  }

  /** The images among files; the note names the others. */
  async #images(files) {
    this.note.replaceChildren();
    const others = [];
    for (const file of files) if (!(await mayBeRead(file))) others.push(file);
    if (others.length) this.#say(listed(others), others.length > 1 ? " are not images." : " is not an image.");
    return imagesIn(files);
  }

  /** Lets images wait for a class; those that the class has already count once. */
  async #admit(label, files) {
    const repeated = [];
    for (const file of files) {
      const digest = sha256(new Uint8Array(await file.arrayBuffer()));
      this.digests.set(file, digest);
      const waiting = this.waiting.get(label) ?? [];
      const support = this.episode.ways.find((way) => way.label === label)?.support ?? [];
      if (support.some((one) => one.sha256 === digest) || waiting.some((one) => this.digests.get(one) === digest)) repeated.push(file);
      else this.waiting.set(label, [...waiting, file]);
    }
    if (repeated.length) this.#say(listed(repeated), repeated.length > 1 ? " are" : " is", ` in “${label}” already: the same image counts once.`);
  }

  /** Sends what waits, once there are two classes. */
  #learn() {
    this.#render();
    const full = [...this.waiting].filter(([, each]) => each.some((file) => !this.unread.has(file)));
    if (!this.episode.id && full.length < 2) return; // an episode begins with two classes
    this.#change(async () => {
      const examples = [...this.waiting].flatMap(([name, each]) => each.map((file) => ({ label: name, file })));
      await this.#sendReadable(examples, async (readable) => {
        if (!this.episode.id && new Set(readable.map((one) => one.label)).size < 2) return;
        await this.episode.add(readable);
        for (const { label: name, file } of readable) this.waiting.set(name, this.waiting.get(name).filter((one) => one !== file));
      });
      for (const { label: name } of this.episode.ways) if (!this.waiting.get(name)?.length) this.waiting.delete(name);
    });
  }

  /** Sends `{file}`s without those that the service cannot read: it names the first of them, and the others are sent again. */
  async #sendReadable(all, send) {
    const before = this.unread.size;
    for (;;) {
      const readable = all.filter(({ file }) => !this.unread.has(file));
      if (!readable.length) break; // an earlier change took them along
      try {
        await send(readable);
        break;
      } catch (error) {
        const [prefix, number] = /^Image (\d+) of \d+: /.exec(error.message) ?? ["", readable.length === 1 ? 1 : null];
        if (!isOfImage(error) || number === null) throw error;
        this.unread.set(readable[number - 1].file, error.message.slice(prefix.length));
      }
    }
    const found = [...this.unread.keys()].slice(before);
    if (found.length) this.#say(listed(found), ` cannot be read and ${found.length > 1 ? "are" : "is"} left out.`);
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
    this.work = this.work.then(() => this.#replace({ episode: new Episode(this.shell.client), waiting: new Map([["first", []], ["second", []]]), queries: [] })); // after the answer that is still to come
  }

  /** Shows another episode; until the next files, the one before it can be brought back. */
  #replace(next) {
    const { episode, waiting, queries } = this;
    const count = episode.ways.reduce((sum, { shots }) => sum + shots, 0) + [...waiting.values()].flat().length;
    const undo = h("button", { class: "chip", onclick: () => {
      this.work = this.work.then(() => this.#replace({ episode, waiting, queries })).then(() => this.note.replaceChildren());
    } }, "Undo");
    Object.assign(this, next);
    this.note.replaceChildren();
    if (count) this.#say(`${count === 1 ? "One example" : `${count} examples`} and the classes are cleared. `, undo);
    else if (queries.length > this.queries.length) this.#say("The queries are cleared. ", undo);
    this.#link();
    this.#render();
  }

  async #ask(files) {
    const added = (await this.#images(files)).map((file) => ({ file, prediction: null }));
    this.queries.push(...added);
    this.#render();
    this.work = this.work.then(() => this.#classify(added)).then(() => this.#showQueries(), (error) => this.shell.problem(error));
  }

  async #classify(queries) {
    if (!this.episode.id) return;
    for (let start = 0; start < queries.length; start += QUERIES_A_CALL) {
      await this.#sendReadable(queries.slice(start, start + QUERIES_A_CALL), async (part) => {
        const files = part.map(({ file }) => file);
        this.shell.code.show({ name: "classify", path: `fewshot/episodes/${this.episode.id}/classify`, args: [this.episode.id], query: { query: files } });
        const answer = await this.shell.client.classify(this.episode.id, files);
        answer.predictions.forEach((prediction, at) => { part[at].prediction = prediction; });
        this.shell.took(answer.timings_ms.total);
      });
    }
    this.queries = this.queries.filter(({ file }) => !this.unread.has(file));
  }

  #showQueries() {
    const doubt = ({ prediction }) => prediction?.probability ?? -1;
    const sorted = [...this.queries].sort((one, other) => doubt(one) - doubt(other));
    this.cards.replaceChildren(...sorted.map((query) => {
      const { file, prediction } = query;
      const others = this.#labels.filter((label) => label !== prediction?.label);
      return h("li", { class: "query-card", draggable: true, "data-probability": String(doubt(query)), ondragstart: () => { this.dragged = query; } },
        thumbnail(file, { width: 96, height: 96 }),
        h("b", {}, prediction ? prediction.label : "…"),
        h("span", { class: "figures" }, prediction ? [percent(prediction.probability), h("span", { class: "abstains" }, " · abstains")] : "waits for classes"),
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
      const probability = Number(card.dataset.probability);
      const isAnswered = probability >= threshold;
      card.classList.toggle("abstained", probability >= 0 && !isAnswered);
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
      const episode = new Episode(this.shell.client);
      await episode.imported(read);
      this.#replace({ episode, waiting: new Map() });
    });
  }
}

/** The names of a few files, or how many there are. */
const listed = (files) => (files.length > 3 ? `${files.length} files` : files.map(({ name }) => name).join(", "));
