/**
 * Requests as code. One is `{name, path, query, args?}`: `name` of the method of both clients, `path` of the route,
 * `args` that come before the query's members. A File in it stands for a file of its name.
 */

const LINE = 80;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const isStroke = (value) => Array.isArray(value) && value.every((part) => Array.isArray(part) && part.every(Number.isFinite));

/** JSON in which what is short stands on one line, and so does each stroke. */
function pretty(value, indent = "") {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (isStroke(value)) return JSON.stringify(value).replaceAll(",", ", ");
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const parts = (by) => (open === "[" ? value.map((one) => pretty(one, by)) : present(value).map(([name, one]) => `${JSON.stringify(name)}: ${pretty(one, by)}`));
  const line = parts("").join(", ");
  if (line.length <= LINE && !line.includes("\n")) return `${open}${line}${close}`;
  const inner = `${indent}  `;
  return `${open}\n${inner}${parts(inner).join(`,\n${inner}`)}\n${indent}${close}`;
}

const present = (query) => Object.entries(query).filter(([, value]) => value !== undefined && value !== null);

const hasFile = (query) => present(query).some(([, value]) => [value].flat().some((one) => one instanceof Blob));

export function curl({ method = "POST", path, query }, client) {
  const key = client.hasSession ? ['-H "X-API-Key: $VERMOUTH_API_KEY"'] : [];
  if (method === "GET") {
    const address = client.url(path, Object.fromEntries(present(query).map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : value])));
    return [`curl -s ${quoted(address.href)}`, ...key].join(" \\\n  ");
  }
  const lines = [`curl -s ${quoted(client.url(path).href)}`, ...key];
  if (!hasFile(query)) lines.push("-H 'Content-Type: application/json'", `-d ${quoted(pretty(query))}`);
  else
    for (const [name, value] of present(query))
      for (const one of [value].flat())
        lines.push(one instanceof Blob ? `-F ${quoted(`${name}=@${one.name}`)}` : `--form-string ${quoted(`${name}=${typeof one === "object" ? JSON.stringify(one) : one}`)}`);
  return lines.join(" \\\n  ");
}

export function python({ name, query, args = [], pythonName = name }, client) {
  const all = present(query);
  const isDrawn = all.some(([, value]) => value.strokes);
  const given = all.flatMap(([member, value]) => {
    if (member === "like") return [["like", value.positive], ["unlike", value.negative]].filter(([, ids]) => ids.length);
    return [[member === "query" ? "queries" : member, value]];
  });
  const lines = [
    `from vermouth_client import Client${isDrawn ? ", Strokes" : ""}`,
    "",
    `client = Client("${client.base.href}"${client.hasSession ? ', key="vm_…"' : ""})`,
    `found = client.${pythonName}(`,
    ...args.map((value) => `    ${JSON.stringify(value)},`),
    ...given.map(([member, value]) => `    ${member}=${pythonOf(value)},`),
    ")",
    PRINTED[name],
  ];
  return lines.join("\n");
}

const PRINTED = {
  retrieve: "for one in found.results:\n    print(one.id, one.score, one.metadata)",
  segment: "for one in found.classes:\n    print(one.name, one.fraction, one.bbox)\nfound.show()",
  classify: "for one in found.predictions:\n    print(one.label, one.probability)",
  items: "for one in found.items:\n    print(one.id, one.metadata)",
};

function pythonOf(value) {
  if (value instanceof Blob) return JSON.stringify(value.name);
  if (Array.isArray(value) && value.some((one) => one instanceof Blob)) return `[${value.map(pythonOf).join(", ")}]`;
  if (value.strokes) return `Strokes(${pretty(value.strokes, "    ")}, width=${value.width}, height=${value.height})`;
  // A text, or a word outside of texts.
  return pretty(value, "    ").replace(/"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b/g, (part) => ({ true: "True", false: "False", null: "None" })[part] ?? part);
}

export function javascript({ name, query, args = [] }, client) {
  const files = present(query).flatMap(([, value]) => [value].flat().filter((one) => one instanceof Blob));
  const written = ([member, value]) => `  ${member}: ${[value].flat().some((one) => one instanceof Blob) ? "file" : pretty(value, "  ")},`;
  const last = name === "classify" ? "[file]" : `{\n${present(query).map(written).join("\n")}\n}`;
  return [
    `import { Vermouth } from "${client.url("playground/vermouth.js").href}";`,
    "",
    `const vermouth = new Vermouth({ base: "${client.base.href}"${client.hasSession ? ', key: "vm_…"' : ""} });`,
    ...(files.length ? [`const file = document.querySelector("input[type=file]").files[0]; // ${files.map((file) => file.name).join(", ")}`] : []),
    `const found = await vermouth.${name}(${[...args.map((value) => JSON.stringify(value)), last].join(", ")});`,
    "console.log(found);",
  ].join("\n");
}
