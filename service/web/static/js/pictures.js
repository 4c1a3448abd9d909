/** Pictures of the service. An <img> cannot send a key: where there is one, its file is fetched. */

import * as api from "./api.js";
import { key } from "./key.js";

const KEPT = 200;
/** Path → its file as an address of this page; the oldest are forgotten. */
const fetched = new Map();

async function source(path) {
  if (key() === null) return api.address(path);
  if (!fetched.has(path)) {
    const [oldest] = fetched.keys();
    if (fetched.size >= KEPT) {
      fetched.get(oldest).then(URL.revokeObjectURL, () => {});
      fetched.delete(oldest);
    }
    const file = api.blob(path).then(URL.createObjectURL);
    fetched.set(path, file);
    file.catch(() => fetched.delete(path));
  }
  return fetched.get(path);
}

/**
 * Let an element show or hold a file of the service.
 * @param {HTMLImageElement|HTMLAnchorElement} element
 * @param {"src"|"href"} attribute
 * @param {string} path
 */
export function point(element, attribute, path) {
  if (element.dataset.path === path) return;
  element.dataset.path = path;
  if (key() === null) {
    element[attribute] = api.address(path);
    return;
  }
  source(path).then(
    (address) => {
      if (element.dataset.path === path) element[attribute] = address;
    },
    () => delete element.dataset.path,
  );
}
