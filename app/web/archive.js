import { sha256 } from "./sha256.js";

/** Reads what people drop: folders, ZIP archives and CSV files, all in the browser. */

/** Every file of a drop, folders included: `[{path, file}]`; paths in a folder dropped alone begin inside it. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ path: file.name, file }));
  const found = [];
  const walk = async (entry, prefix) => {
    if (entry.isFile) {
      found.push({ path: prefix + entry.name, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!part.length) return;
      for (const each of part) await walk(each, `${prefix}${entry.name}/`);
    }
  };
  for (const entry of entries) await walk(entry, "");
  return entries.length === 1 && entries[0].isDirectory ? found.map(({ path, file }) => ({ path: insideOf(path), file })) : found;
}

/** A path without the name of the folder that it begins with. */
export const insideOf = (path) => path.slice(path.indexOf("/") + 1);

/** The files of a ZIP archive, read when they are asked for: `[{path, file}]` with `file` a function. */
export async function unzip(archive) {
  const end = new DataView(await archive.slice(Math.max(0, archive.size - 65557)).arrayBuffer());
  let at = end.byteLength - 22;
  while (at >= 0 && end.getUint32(at, true) !== 0x06054b50) at -= 1;
  if (at < 0) throw new Error(`${archive.name} is not a ZIP archive.`);
  const [count, size, start] = [end.getUint16(at + 10, true), end.getUint32(at + 12, true), end.getUint32(at + 16, true)];
  if (count === 0xffff || start === 0xffffffff) throw new Error(`${archive.name} is too large to read here: use vermouth gallery import.`);
  const directory = new DataView(await archive.slice(start, start + size).arrayBuffer());
  const found = [];
  for (let entry = 0, here = 0; entry < count; entry += 1) {
    const [flags, method, packed, name, extra, comment, local] = [
      directory.getUint16(here + 8, true), directory.getUint16(here + 10, true), directory.getUint32(here + 20, true),
      directory.getUint16(here + 28, true), directory.getUint16(here + 30, true), directory.getUint16(here + 32, true), directory.getUint32(here + 42, true)];
    const path = nameOf(new Uint8Array(directory.buffer, here + 46, name)).replaceAll("\\", "/").replace(/^\.\//, "");
    here += 46 + name + extra + comment;
    if (!path.endsWith("/")) found.push({ path, file: () => unpacked(archive, { path, flags, method, packed, local }) });
  }
  return found;
}

/** A name is UTF-8 whether its flag says so or not, as macOS writes it. */
function nameOf(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
}

async function unpacked(archive, { path, flags, method, packed, local }) {
  if (flags & 1) throw new Error("it is encrypted");
  if (method !== 0 && method !== 8) throw new Error("it is packed by another method than ZIP's own");
  const head = new DataView(await archive.slice(local, local + 30).arrayBuffer());
  const start = local + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  const data = archive.slice(start, start + packed);
  const blob = method === 0 ? data : await new Response(data.stream().pipeThrough(new DecompressionStream("deflate-raw"))).blob();
  return new File([blob], path.split("/").at(-1));
}

/** Rows of a CSV text as arrays, blank ones too; the separator is the one that its first line has most of. */
export function rowsOf(text) {
  const first = text.slice(0, text.search(/\r?\n|$/));
  const separator = [",", ";", "\t", "|"].reduce((best, each) => (first.split(each).length > first.split(best).length ? each : best));
  const rows = [];
  let [row, cell, isQuoted] = [[], "", false];
  for (let at = 0; at < text.length; at += 1) {
    const letter = text[at];
    if (isQuoted) {
      if (letter === '"' && text[at + 1] === '"') {
        cell += '"';
        at += 1;
      } else if (letter === '"') isQuoted = false;
      else cell += letter;
    } else if (letter === '"' && cell === "") isQuoted = true;
    else if (letter === separator || letter === "\n") {
      row.push(cell.replace(/\r$/, ""));
      cell = "";
      if (letter === "\n") {
        rows.push(row);
        row = [];
      }
    } else cell += letter;
  }
  if (cell || row.length) rows.push([...row, cell]);
  return rows;
}

/** How a column is best stored: `number`, `boolean` or `text`; numbers that would change their letters stay text. */
export function typeOf(values) {
  const filled = values.map((value) => value.trim()).filter(Boolean);
  if (filled.length && filled.every((value) => /^(true|false)$/i.test(value))) return "boolean";
  if (filled.length && filled.every((value) => /^-?(0|[1-9]\d*)(\.\d+)?$/.test(value) && Math.abs(Number(value)) <= Number.MAX_SAFE_INTEGER)) return "number";
  return "text";
}

export function typed(value, type) {
  if (value.trim() === "") return undefined;
  if (type === "number") return Number(value);
  if (type === "boolean") return /^true$/i.test(value.trim());
  return value;
}

const ID = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/;

/** Whether the service takes it as the id of an item. */
export const isId = (id) => ID.test(id);

/** The id of an image by its path, as `vermouth gallery import` makes it: itself, or its valid characters and a digest. */
export function idOf(path) {
  if (isId(path)) return path;
  const plain = path.replace(/[^A-Za-z0-9._:-]+/g, "_").replace(/^[._:-]+/, "").slice(0, 96);
  return `${plain || "item"}-${sha256(new TextEncoder().encode(path)).slice(0, 12)}`;
}
