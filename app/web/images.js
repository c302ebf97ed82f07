export const isImage = (file) => file instanceof Blob && (file.type.startsWith("image/") || /\.(png|jpe?g|webp|avif|gif|bmp|tiff?)$/i.test(file.name ?? ""));

const previews = new WeakMap();

/** An object URL of a file, one for its lifetime. */
export function previewOf(file) {
  if (!previews.has(file)) previews.set(file, URL.createObjectURL(file));
  return previews.get(file);
}

/** The image behind something dragged from this page or another one; null if it cannot be read. */
export async function fileOf(transfer, client) {
  const address = transfer.getData("text/uri-list");
  if (!address) return null;
  try {
    const url = new URL(address);
    url.searchParams.delete("size"); // the stored image, not its thumbnail
    const response = await (url.origin === client.base.origin ? client.send("GET", url.pathname) : fetch(url));
    const blob = await response.blob();
    return new File([blob], url.pathname.split("/").at(-2) ?? "image", { type: blob.type });
  } catch {
    return null;
  }
}
