import { h, percent, save } from "./dom.js";
import { fileOf, isImage, previewOf } from "./images.js";

const FEW = 4; // examples a class, below which the leave-one-out figure says little
const DRAGGED = "application/x-vermouth-query";

export function open(shell, view) {
  return new Teach(shell, view);
}

/** An episode: classes as columns of examples; the service holds it, this page shows it. */
class Teach {
  constructor(shell, view) {
    Object.assign(this, { shell, view });
    this.columns = [new Column("first"), new Column("second")]; // not in the episode yet
    this.episode = null; // as the service answered it
    this.version = null;
    this.queries = [];
    this.threshold = 0;
    this.work = Promise.resolve(); // changes are sent one after another
    view.replaceChildren(this.#layout());
    const id = shell.parameter("episode");
    if (id) this.#load(id);
    else this.#render();
  }

  close() {
    this.isClosed = true;
    this.stream?.getTracks().forEach((track) => track.stop());
  }

  #layout() {
    this.board = h("div", { class: "board" });
    this.verdict = h("div", { class: "verdict", "aria-live": "polite" });
    this.cards = h("ol", { class: "queries", "aria-label": "Queries, the most doubtful first" });
    this.slider = h("input", { type: "range", min: "0", max: "1", step: "0.01", value: "0", "aria-label": "Abstain below this probability", oninput: () => this.#abstain() });
    this.answered = h("span", { class: "figures" });
    const queries = h("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => this.#ask(queries.files) });
    const whole = h("input", { type: "file", accept: "application/json,.json", hidden: true, onchange: () => this.#import(whole.files[0]) });
    const drop = h("section", { class: "asking", "aria-label": "Queries" },
      h("div", { class: "row" }, h("h2", {}, "Try it"), h("button", { class: "chip", onclick: () => queries.click() }, "Pick images…"), queries),
      h("p", { class: "soft" }, "Drop images here to classify them."),
      h("label", { class: "row" }, h("span", { class: "soft" }, "abstain below"), this.slider, this.answered),
      this.cards);
    onDrop(drop, (files) => this.#ask(files));
    return h("div", { class: "teach" },
      h("section", { "aria-label": "Classes" },
        h("div", { class: "row" }, h("h2", {}, "Classes"),
          h("button", { class: "chip", onclick: () => { this.columns.push(new Column(this.#freeName())); this.#render(); } }, "Add a class"),
          h("button", { class: "chip", onclick: () => this.#export() }, "Export"),
          h("button", { class: "chip", onclick: () => whole.click() }, "Import…"),
          h("button", { class: "chip", onclick: () => this.#reset() }, "New"), whole),
        this.board, this.verdict),
      drop);
  }

  #freeName() {
    let number = this.#labels().length + 1;
    while (this.#labels().includes(`class ${number}`)) number += 1;
    return `class ${number}`;
  }

  #labels() {
    return [...(this.episode?.ways.map(({ label }) => label) ?? []), ...this.columns.map(({ label }) => label)];
  }

  #render() {
    const stored = (this.episode?.ways ?? []).map((way) => this.#storedColumn(way));
    this.board.replaceChildren(...stored, ...this.columns.map((column) => this.#newColumn(column)));
    this.#showVerdict();
  }

  #storedColumn(way) {
    const images = way.support.map((one) => {
      const image = h("img", { alt: way.label, width: 72, height: 72, loading: "lazy" });
      this.shell.client.show(image, one.image_url);
      return h("li", {}, image, way.shots > 1 ? h("button", { class: "remove", "aria-label": `Remove this example of ${way.label}`, onclick: () => this.#remove(one.id) }, "×") : null);
    });
    return this.#column(h("h3", {}, way.label), images, way.label);
  }

  #newColumn(column) {
    const name = h("input", { type: "text", value: column.label, "aria-label": "Name of the class", maxlength: "128", onchange: () => { column.label = name.value.trim() || column.label; this.#send(); } });
    const images = column.examples.map((example) => h("li", {}, h("img", { src: example.url, alt: column.label, width: 72, height: 72 })));
    return this.#column(name, images, column.label, column);
  }

  #column(title, images, label, column = null) {
    const picker = h("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => this.#teach(label, picker.files, column) });
    const element = h("section", { class: "class-column", "aria-label": label }, title, h("ol", {}, images),
      h("div", { class: "row" }, h("button", { class: "chip", onclick: () => picker.click() }, "Add images…"), h("button", { class: "chip", title: "Take a photograph", "aria-label": `Take a photograph for ${label}`, onclick: () => this.#photograph(label, column) }, "Camera"), picker));
    onDrop(element, (files, transfer) => {
      const query = transfer.getData(DRAGGED);
      if (query) this.#teach(label, [this.queries[Number(query)].file], column);
      else this.#teach(label, files, column, transfer);
    });
    return element;
  }

  async #teach(label, files, column = null, transfer = null) {
    const images = [...files].filter(isImage);
    if (!images.length && transfer) {
      const dragged = await fileOf(transfer, this.shell.client);
      if (dragged) images.push(dragged);
    }
    if (!images.length) return;
    if (column) {
      column.examples.push(...images.map((file) => ({ file, url: previewOf(file) })));
      this.#render();
      return this.#send();
    }
    this.#change(async (client) => {
      const form = new FormData();
      form.append("options", JSON.stringify({ labels: images.map(() => label) }));
      for (const file of images) form.append("support", file, file.name);
      return client.send("POST", `fewshot/episodes/${this.episode.id}/support`, { body: form, headers: { "If-Match": `"${this.version}"` } });
    });
  }

  /** Sends classes that have a name and examples: a new episode takes two, an existing one any. */
  #send() {
    const whole = this.columns.filter(({ examples }) => examples.length);
    if (!whole.length || (!this.episode && whole.length < 2)) return;
    this.columns = this.columns.filter(({ examples }) => !examples.length);
    this.#change(async (client) => {
      const form = new FormData();
      form.append("options", JSON.stringify({ labels: whole.flatMap(({ label, examples }) => examples.map(() => label)) }));
      for (const { examples } of whole) for (const { file } of examples) form.append("support", file, file.name);
      try {
        if (this.episode) return await client.send("POST", `fewshot/episodes/${this.episode.id}/support`, { body: form, headers: { "If-Match": `"${this.version}"` } });
        return await client.send("POST", "fewshot/episodes", { body: form });
      } catch (error) {
        this.columns.unshift(...whole); // nothing that was given is lost
        this.#render();
        throw error;
      }
    });
  }

  #remove(support) {
    this.#change((client) => client.send("DELETE", `fewshot/episodes/${this.episode.id}/support/${support}`, { headers: { "If-Match": `"${this.version}"` } }));
  }

  #change(send) {
    this.work = this.work.then(async () => {
      this.board.setAttribute("aria-busy", "true");
      try {
        await this.#took(await send(this.shell.client));
        this.shell.problem(null);
        await this.#classify(this.queries);
      } catch (error) {
        if (error.status === 412) {
          error.message = "The episode was changed elsewhere and is shown as it is now. Do it again if it still applies.";
          await this.#load(this.episode.id);
        }
        this.shell.problem(error);
      }
      this.board.removeAttribute("aria-busy");
    });
  }

  async #took(response) {
    this.version = response.headers.get("ETag").replaceAll('"', "");
    this.episode = await response.json();
    this.shell.link({ episode: this.episode.id });
    this.shell.code.show({ method: "POST", path: `fewshot/episodes/${this.episode.id}/classify`, form: [["query", "image.jpg", true]] });
    this.#render();
  }

  async #load(id) {
    try {
      await this.#took(await this.shell.client.send("GET", `fewshot/episodes/${id}`));
      this.columns = [];
      this.#render();
    } catch (error) {
      this.shell.link({ episode: null });
      this.shell.problem(error);
      this.#render();
    }
  }

  #reset() {
    this.work = this.work.then(() => { // after the answer that is still to come
      this.episode = null;
      this.columns = [new Column("first"), new Column("second")];
      this.queries = [];
      this.cards.replaceChildren();
      this.shell.link({ episode: null });
      this.#render();
    });
  }

  #showVerdict() {
    const found = this.episode?.leave_one_out;
    if (!this.episode) return this.verdict.replaceChildren(h("p", { class: "soft" }, "Name two classes and give each a few images: files, results dragged from Draw, or the camera."));
    const fewest = Math.min(...this.episode.ways.map(({ shots }) => shots));
    if (!found) return this.verdict.replaceChildren(h("p", { class: "soft" }, "Give every class a second example to see how well they tell apart."));
    const [low, high] = found.ci95;
    const labels = this.episode.ways.map(({ label }) => label);
    const grid = h("table", { class: "confusion" }, h("caption", {}, "Leave one out: rows are true, columns are answered"),
      h("thead", {}, h("tr", {}, h("td", {}), labels.map((label) => h("th", { scope: "col" }, label)))),
      h("tbody", {}, labels.map((truth) => h("tr", {}, h("th", { scope: "row" }, truth), labels.map((answer) => {
        const count = found.confusion[truth]?.[answer] ?? 0;
        return h("td", { class: count ? (truth === answer ? "right" : "wrong") : "" }, count ? String(count) : "");
      })))));
    this.verdict.replaceChildren(
      h("p", {}, h("b", {}, percent(found.accuracy)), ` of the examples are recognised by the others (95 % interval ${percent(low)} to ${percent(high)}).`, fewest < FEW ? h("em", {}, " Too few to trust: give each class four.") : ""),
      labels.length <= 12 ? grid : null);
  }

  #ask(files) {
    const added = [...files].filter(isImage).map((file) => ({ file, url: previewOf(file), prediction: null }));
    this.queries.push(...added);
    if (!this.episode) this.shell.problem(null);
    this.#showQueries();
    this.work = this.work.then(() => this.#classify(added).catch((error) => this.shell.problem(error)));
  }

  async #classify(queries) {
    if (!this.episode || !queries.length) return;
    for (let start = 0; start < queries.length; start += 32) {
      const part = queries.slice(start, start + 32);
      const form = new FormData();
      for (const { file } of part) form.append("query", file, file.name);
      const answer = await this.shell.client.json("POST", `fewshot/episodes/${this.episode.id}/classify`, { body: form });
      answer.predictions.forEach((prediction, at) => { part[at].prediction = prediction; });
      this.shell.took(answer.timings_ms.total);
    }
    this.#showQueries();
  }

  #showQueries() {
    const doubt = ({ prediction }) => prediction?.probability ?? -1;
    const sorted = this.queries.map((query, at) => [query, at]).sort(([one], [other]) => doubt(one) - doubt(other));
    this.cards.replaceChildren(...sorted.map(([query, at]) => {
      const { prediction } = query;
      const others = prediction ? this.episode.ways.map(({ label }) => label).filter((label) => label !== prediction.label).slice(0, 8) : [];
      const card = h("li", { class: "query-card", draggable: "true", "data-probability": String(doubt(query)), ondragstart: (event) => event.dataTransfer.setData(DRAGGED, String(at)) },
        h("img", { src: query.url, alt: query.file.name, width: 96, height: 96 }),
        h("b", {}, prediction ? prediction.label : "…"),
        prediction ? h("span", { class: "figures" }, percent(prediction.probability)) : null,
        h("span", { class: "figures abstains" }, "abstains"),
        prediction ? h("details", {}, h("summary", {}, "wrong?"), h("div", { class: "chips" }, others.map((label) => h("button", { class: "chip", onclick: () => this.#correct(at, label) }, label)))) : null);
      return card;
    }));
    this.#abstain();
  }

  #correct(at, label) {
    const [query] = this.queries.splice(at, 1);
    this.#showQueries();
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
    this.answered.textContent = this.queries.length ? `${threshold.toFixed(2)}: ${count} of ${this.queries.length} answered` : "";
  }

  async #photograph(label, column) {
    try {
      this.stream ??= await navigator.mediaDevices.getUserMedia({ video: { width: 640 } });
    } catch {
      return this.shell.problem(Object.assign(new (await import("./vermouth.js")).VermouthError(0, { title: "No camera", detail: "The browser gives this page no camera." })));
    }
    if (this.isClosed) return this.close();
    const video = h("video", { autoplay: true, muted: true, playsinline: true });
    video.srcObject = this.stream;
    await video.play();
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => this.#teach(label, [new File([blob], "camera.jpg", { type: "image/jpeg" })], column), "image/jpeg", 0.92);
  }

  async #export() {
    if (!this.episode) return;
    const ways = [];
    for (const { label, support } of this.episode.ways) {
      const images = [];
      for (const { image_url: path } of support) images.push({ base64: await base64Of(await (await this.shell.client.send("GET", path)).blob()) });
      ways.push({ label, support: images });
    }
    const blob = new Blob([JSON.stringify({ name: this.episode.name, method: this.episode.method, ways })], { type: "application/json" });
    save(blob, `${this.episode.id}.json`);
  }

  #import(file) {
    if (!file) return;
    this.#change(async (client) => {
      const answer = await client.send("POST", "fewshot/episodes", { body: JSON.parse(await file.text()) });
      this.columns = [];
      return answer;
    });
  }
}

class Column {
  constructor(label) {
    this.label = label;
    this.examples = [];
  }
}

function onDrop(element, take) {
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("over");
    take(event.dataTransfer.files, event.dataTransfer);
  });
}

async function base64Of(blob) {
  const url = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}
