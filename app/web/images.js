/** Whether a file may be an image: by its type or suffix, or as it has none; the service looks at its bytes. */
export const isImage = (file) => file instanceof Blob && (file.type.startsWith("image/") || /(^|\/)[^.]+$|\.(png|jpe?g|webp|avif|gif|bmp|tiff?)$/i.test(file.name ?? ""));

const previews = new WeakMap();

/** An object URL of a file, one for its lifetime. */
export function previewOf(file) {
  if (!previews.has(file)) previews.set(file, URL.createObjectURL(file));
  return previews.get(file);
}

/** The image files of a drop: files, or the image that is dragged from this page. */
export async function imagesOf(transfer, client) {
  const files = [...transfer.files].filter(isImage);
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
