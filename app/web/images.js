import { h } from "./dom.js";
import { VermouthError } from "./vermouth.js";

const SHOWN = /^image\/(png|jpeg|gif|webp|avif|bmp)$/; // by every browser; the service reads more
const OF_AN_IMAGE = ["undecodable-image", "image-too-large", "unsupported-media"]; // problems

/** Whether a file may be an image: by its type or suffix, or as it has none; the service looks at its bytes. */
export const isImage = (file) => file instanceof Blob && (file.type.startsWith("image/") || /(^|\/)[^.]+$|\.(png|jpe?g|webp|avif|gif|bmp|tiff?|svg)$/i.test(file.name ?? ""));

/** Whether it is a file whose bytes may be an image; the browser hands out a dropped folder as a file that it cannot read. */
export const mayBeRead = async (file) => isImage(file) && file.slice(0, 1).arrayBuffer().then(() => true, () => false);

const isSvg = (file) => file.type === "image/svg+xml" || /\.svg$/i.test(file.name ?? "");
const SVG_SIDE = 512; // px; a smaller SVG is drawn until its longest side has it

/** The images among some files, each with pixels: the browser draws what is an SVG. */
export async function imagesIn(files) {
  const images = [];
  for (const file of files) if (await mayBeRead(file)) images.push(await drawn(file)); // a folder may hold thousands of SVGs
  return images;
}

/** An SVG as a PNG; one that the browser cannot draw stays as it is, and the service says why it cannot be read. */
export async function drawn(file) {
  if (!isSvg(file)) return file;
  const image = new Image();
  const address = URL.createObjectURL(new Blob([file], { type: "image/svg+xml" }));
  try {
    image.src = address;
    await image.decode();
    const scale = Math.max(1, SVG_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(image.naturalWidth * scale)), Math.max(1, Math.round(image.naturalHeight * scale)));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const png = new File([await canvas.convertToBlob()], file.name.replace(/\.svg$/i, ".png"), { type: "image/png" });
    return Object.defineProperty(png, "webkitRelativePath", { value: file.webkitRelativePath });
  } catch {
    return file;
  } finally {
    URL.revokeObjectURL(address);
  }
}

const previews = new WeakMap();

/** An object URL of a file, one for its lifetime. */
export function previewOf(file) {
  if (!previews.has(file)) previews.set(file, URL.createObjectURL(file));
  return previews.get(file);
}

/** An image element of a file; the file's name where the browser cannot show it. */
export function thumbnail(file, attributes) {
  const image = h("img", { alt: file.name, src: previewOf(file), ...attributes, onerror: () => image.replaceWith(h("span", { class: "unseen", title: file.name }, file.name)) });
  return image;
}

/** The first image of some files, as `drawn`; throws a problem with the file's name where there is none to show. */
export async function firstImage(files, { mustShow = false } = {}) {
  const picked = files.find(isImage);
  if (!picked || !(await mayBeRead(picked))) throw aboutFile(picked ?? files[0], "is not an image.");
  const file = await drawn(picked);
  const image = new Image();
  image.src = previewOf(file);
  try {
    await image.decode();
  } catch {
    if (SHOWN.test(file.type)) throw aboutFile(picked, "is damaged, or not an image.");
    if (mustShow) throw aboutFile(picked, "has a format that this browser cannot show.");
  }
  return file;
}

/** A problem that begins with the name of a file. */
const aboutFile = (file, detail) => new VermouthError(0, { title: file.name, detail, code: "page" });

export const isOfImage = (error) => OF_AN_IMAGE.includes(error.code);

/** An error of the service; one that is about an image begins with the name of its file. */
export const named = (error, file) => (isOfImage(error) ? new VermouthError(error.status, { ...error.problem, title: file.name }) : error);

/** The files of a drop, or the image that is dragged from this page. */
export async function imagesOf(transfer, client) {
  const files = [...transfer.files];
  const address = transfer.getData("text/uri-list");
  if (files.length || !address) return files;
  const url = new URL(address);
  if (url.origin !== client.base.origin) return [];
  try {
    return [await imageAt(client, url.href, url.pathname.split("/").at(-2))];
  } catch {
    return []; // an address of something else
  }
}

/** A stored image as a file. */
export async function imageAt(client, address, name) {
  const url = client.url(address);
  url.searchParams.delete("size"); // the stored image, not its thumbnail
  const blob = await (await client.send("GET", url)).blob();
  return new File([blob], `${name}.${blob.type.split("/").at(-1)}`, { type: blob.type });
}

/** A drawing as an image file: dark lines on white, as on paper. */
export async function imageOfStrokes(strokes, { width, height }) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.lineWidth = 4;
  context.lineCap = context.lineJoin = "round";
  for (const [xs, ys] of strokes) {
    context.beginPath();
    xs.forEach((x, at) => context.lineTo(x, ys[at]));
    if (xs.length === 1) context.lineTo(xs[0] + 0.1, ys[0]);
    context.stroke();
  }
  return new File([await canvas.convertToBlob()], "drawing.png", { type: "image/png" });
}
