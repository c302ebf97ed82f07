const ROUTE = "fewshot/episodes";

/** An episode of the service: its classes with their examples, and the version that a change must name. */
export class Episode {
  constructor(client) {
    this.client = client;
    this.report = null; // as the service answered it last
  }

  get id() {
    return this.report?.id ?? null;
  }

  get ways() {
    return this.report?.ways ?? [];
  }

  async load(id) {
    await this.#took(await this.client.send("GET", `${ROUTE}/${id}`));
  }

  /** Adds examples `{label, file}`; the first ones, of two labels at least, create the episode. */
  async add(examples) {
    const form = new FormData();
    form.append("options", JSON.stringify({ labels: examples.map(({ label }) => label) }));
    for (const { file } of examples) form.append("support", file, file.name);
    await (this.id ? this.#change("POST", "/support", form) : this.#create(form));
  }

  remove(support) {
    return this.#change("DELETE", `/support/${support}`);
  }

  removeWay(label) {
    return this.#change("DELETE", `/ways/${encodeURIComponent(label)}`);
  }

  rename(label, other) {
    return this.#change("PATCH", "", { labels: { [label]: other } });
  }

  /** The episode with its images, as `POST /fewshot/episodes` takes it. */
  async exported() {
    const ways = [];
    for (const { label, support } of this.ways) {
      const images = [];
      for (const { image_url: address } of support) images.push({ base64: await base64Of(await (await this.client.send("GET", address)).blob()) });
      ways.push({ label, support: images });
    }
    return { name: this.report.name, method: this.report.method, ways };
  }

  imported(episode) {
    return this.#create(episode);
  }

  async #create(body) {
    await this.#took(await this.client.send("POST", ROUTE, { body }));
  }

  async #change(method, path, body = null) {
    await this.#took(await this.client.send(method, `${ROUTE}/${this.id}${path}`, { body, headers: { "If-Match": `"${this.report.version}"` } }));
  }

  async #took(response) {
    this.report = await response.json();
  }
}

async function base64Of(blob) {
  const url = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}
