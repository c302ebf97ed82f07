import { $, h } from "./dom.js";

/** The drawer `</>`: the current request as curl, Python and JavaScript. */
export class Code {
  constructor(client, button, drawer) {
    Object.assign(this, { client, button, drawer });
    this.language = "curl";
    this.request = null;
    button.addEventListener("click", () => this.toggle());
    addEventListener("keydown", (event) => event.key === "Escape" && !drawer.hidden && this.toggle());
  }

  toggle() {
    this.drawer.hidden = !this.drawer.hidden;
    this.button.setAttribute("aria-expanded", String(!this.drawer.hidden));
    if (!this.drawer.hidden) this.#render();
  }

  /** `request` is `{method, path, json}` or `{method, path, form: [[name, value or file name]]}`. */
  show(request) {
    this.request = request;
    if (!this.drawer.hidden) this.#render();
  }

  #render() {
    const text = this.request ? WRITERS[this.language](this.request, this.client) : "Send a request first.";
    const pick = (language) =>
      h("button", { "aria-pressed": String(language === this.language), onclick: () => { this.language = language; this.#render(); } }, { curl: "curl", python: "Python", javascript: "JavaScript" }[language]);
    const copy = h("button", { class: "quiet", onclick: async () => {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    } }, "Copy");
    this.drawer.replaceChildren(
      h("div", { class: "languages", role: "group", "aria-label": "Language" }, Object.keys(WRITERS).map(pick), copy, h("button", { class: "quiet", "aria-label": "Close", onclick: () => this.toggle() }, "×")),
      h("pre", { tabindex: "0" }, h("code", {}, text)),
    );
    if (!$(":focus")) (this.drawer.querySelector('[aria-pressed="true"]') ?? this.button).focus();
  }
}

const pretty = (json) => JSON.stringify(json, null, 1).replace(/\[\s+([-\d.,\s]+?)\s+\]/g, (_, inner) => `[${inner.replace(/\s+/g, " ")}]`);
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const WRITERS = {
  curl({ method, path, json, form }, client) {
    const lines = [`curl -s -X ${method} ${quoted(client.url(path).href)}`];
    if (client.key) lines.push(`-H "X-API-Key: $VERMOUTH_API_KEY"`);
    if (json) lines.push("-H 'Content-Type: application/json'", `-d ${quoted(pretty(json))}`);
    for (const [name, value, isFile] of form ?? []) lines.push(`${isFile ? "-F" : "--form-string"} ${quoted(`${name}=${isFile ? "@" : ""}${value}`)}`);
    return lines.join(" \\\n  ");
  },
  python({ method, path, json, form }, client) {
    const key = client.key ? ', headers={"X-API-Key": os.environ["VERMOUTH_API_KEY"]}' : "";
    const lines = [...(client.key ? ["import os", ""] : []), "import httpx", "", `vermouth = httpx.Client(base_url="${client.base.href}"${key}, timeout=60)`];
    const options = [];
    if (json) {
      lines.push(`query = ${pythonOf(json)}`);
      options.push("json=query");
    }
    const files = (form ?? []).filter(([, , isFile]) => isFile);
    if (files.length) options.push(`files=[${files.map(([name, value]) => `("${name}", open(${JSON.stringify(value)}, "rb"))`).join(", ")}]`);
    const fields = (form ?? []).filter(([, , isFile]) => !isFile);
    if (fields.length) options.push(`data=${pythonOf(grouped(fields))}`);
    lines.push(`answer = vermouth.request("${method}", "${path.replace(/^\//, "")}"${options.map((each) => `, ${each}`).join("")})`, "answer.raise_for_status()", "print(answer.json())");
    return lines.join("\n");
  },
  javascript({ method, path, json, form }, client) {
    const key = client.key ? ", key: process.env.VERMOUTH_API_KEY" : "";
    const lines = [`import { Vermouth } from "${client.url("playground/vermouth.js").href}";`, "", `const vermouth = new Vermouth({ base: "${client.base.href}"${key} });`];
    if (form) {
      lines.push("const body = new FormData();");
      for (const [name, value, isFile] of form) lines.push(`body.append(${JSON.stringify(name)}, ${isFile ? `file /* ${value} */` : JSON.stringify(value)});`);
    } else if (json) lines.push(`const body = ${pretty(json)};`);
    lines.push(`const answer = await vermouth.json("${method}", "${path.replace(/^\//, "")}"${json || form ? ", { body }" : ""});`, "console.log(answer);");
    return lines.join("\n");
  },
};

function grouped(fields) {
  const found = {};
  for (const [name, value] of fields) found[name] = name in found ? [found[name], value].flat() : value;
  return found;
}

function pythonOf(json) {
  // A text, or a word outside of texts.
  return pretty(json).replace(/"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b/g, (part) => ({ true: "True", false: "False", null: "None" })[part] ?? part);
}
