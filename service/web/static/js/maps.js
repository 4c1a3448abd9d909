/** A lift map over the picture. */

import * as api from "./api.js";
import { $, show } from "./dom.js";

let wanted = null;

/**
 * Draw a map, its white as nothing, so that the picture shows through also where it is dark.
 * @param {{url: string}|null|undefined} map Nothing to take the map away.
 */
export async function drawMap(map) {
  const canvas = $("lift-map");
  wanted = map?.url ?? null;
  if (!wanted) {
    show(canvas, false);
    return;
  }
  const bitmap = await createImageBitmap(await api.blob(map.url));
  if (wanted !== map.url) return;
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  withoutWhite(pixels.data);
  context.putImageData(pixels, 0, 0);
  canvas.style.opacity = $("opacity").value;
  show(canvas, true);
}

/** Colours mixed with white → the colours alone, as opaque as they were strong. */
export function withoutWhite(data) {
  for (let i = 0; i < data.length; i += 4) {
    const white = Math.min(data[i], data[i + 1], data[i + 2]);
    const alpha = 255 - white;
    for (let k = i; k < i + 3; k += 1) data[k] = alpha ? Math.round(((data[k] - white) * 255) / alpha) : 255;
    data[i + 3] = alpha;
  }
}
