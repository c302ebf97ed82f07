import { isId, rowsOf, typed, typeOf } from "./archive.js";
import { h } from "./dom.js";

const KEYS = ["path", "file", "filename", "image"]; // columns that name an image, the best first
const OF_ITEMS = new Map([["id", "item’s id"], ["caption", "item’s caption"]]);

/** A CSV beside its images: a preview with a type for each column, rows that are rejected, and what the others add to an image. */
export async function tableOf({ path, file }, paths) {
  const numbered = rowsOf(await (file instanceof Blob ? file : await file()).text()).map((cells, at) => ({ cells, number: at + 1 }));
  const [header, ...rows] = numbered.filter(({ cells }) => cells.some((cell) => cell.trim()));
  const names = (header?.cells ?? []).map((name) => name.trim()).map((name) => (OF_ITEMS.has(name.toLowerCase()) ? name.toLowerCase() : name));
  const key = KEYS.map((wanted) => names.findIndex((name) => name.toLowerCase() === wanted)).find((at) => at >= 0) ?? -1;
  const types = names.map((_, at) => typeOf(rows.map(({ cells }) => cells[at] ?? "")));
  const fileOf = finder(path.slice(0, path.lastIndexOf("/") + 1), paths);
  const rejected = [];
  const cellsOf = new Map(); // null for a file whose row is rejected
  for (const { cells, number } of key < 0 ? [] : rows) {
    const named = (cells[key] ?? "").trim().replaceAll("\\", "/").replace(/^\.\//, "");
    const found = fileOf(named);
    const fault = faultOf({ named, found, cells, width: names.length, id: cells[names.indexOf("id")]?.trim() });
    if (fault) rejected.push([`${named} (row ${number})`, fault]);
    cellsOf.set(found, fault ? null : cells);
  }

  /** The `{id, caption, metadata}` of an image, as far as its row has them; null if the row is rejected. */
  const fieldsOf = (image) => {
    const cells = cellsOf.get(image) ?? [];
    if (cellsOf.get(image) === null) return null;
    const own = [...OF_ITEMS.keys()].map((name) => [name, cells[names.indexOf(name)]?.trim()]).filter(([, value]) => value);
    const metadata = names.flatMap((name, at) => {
      const value = at === key || !name || OF_ITEMS.has(name) || types[at] === "leave out" ? undefined : typed(cells[at] ?? "", types[at]);
      return value === undefined ? [] : [[name, value]];
    });
    return { ...Object.fromEntries(own), metadata: Object.fromEntries(metadata) };
  };

  const picker = (at) => h("select", { "aria-label": `Type of ${names[at]}`, onchange: (event) => { types[at] = event.target.value; } }, ["text", "number", "boolean", "leave out"].map((type) => h("option", { selected: type === types[at] }, type)));
  const caption = key < 0 ? `${path} has no column “path”: its values are not used` : `${rows.length} rows of ${path}; the type of each column:`;
  const element = h("table", { class: "columns" }, h("caption", {}, caption), h("tbody", {}, names.flatMap((name, at) => (at === key || !name ? [] : [
    h("tr", {}, h("th", { scope: "row", title: name }, name), h("td", {}, OF_ITEMS.get(name) ?? picker(at)), h("td", {}, rows.slice(0, 3).map(({ cells }) => cells[at]).filter(Boolean).join(", ")))]))));
  return { element, rejected, fieldsOf };
}

function faultOf({ named, found, cells, width, id }) {
  if (cells.slice(width).some((cell) => cell.trim())) return `has ${cells.length} cells for ${width} columns`;
  if (!named) return "names no file";
  if (/^https?:\/\//i.test(named)) return "is a URL; only files beside the table are imported";
  if (!found) return "there is no such file";
  return id && !isId(id) ? `the id “${id}” is not valid: use letters, digits and ._:-` : null;
}

/** Finds a file that a table in `folder` names: there, else the only one whose path ends so, as in a ZIP beside the table. */
function finder(folder, paths) {
  const ends = new Map(paths.map((path) => [`/${path}`, path]));
  for (const path of paths) {
    for (let at = path.indexOf("/"); at >= 0; at = path.indexOf("/", at + 1)) ends.set(path.slice(at), ends.has(path.slice(at)) ? null : path);
  }
  return (named) => (named && (ends.get(`/${folder}${named}`) ?? ends.get(`/${named}`))) || null;
}
