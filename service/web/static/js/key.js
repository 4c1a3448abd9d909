/** The API key, for services that want one: asked for where it is missing, kept for this tab alone. */

import { $, show } from "./dom.js";

const NAME = "superdiff.key";
let kept = read();

function read() {
  try {
    return sessionStorage.getItem(NAME);
  } catch {
    return null;
  }
}

/** The key; null for none. */
export const key = () => kept;

/** The header that carries it. */
export const carried = () => (kept === null ? {} : { Authorization: `Bearer ${kept}` });

/** The service wants a key, or another one. @param {string} why */
export function want(why) {
  $("key-note").textContent = kept === null ? "It stays in this tab and is forgotten when the tab closes." : why;
  if (!$("key-form").hidden) return;
  show($("key-form"), true);
  $("key").focus();
}

/** Call a function whenever a key is given. @param {() => void} listener */
export function onGiven(listener) {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = $("key").value.trim();
    if (!given) return;
    kept = given;
    try {
      sessionStorage.setItem(NAME, given);
    } catch {
      // Storage is forbidden: the key is kept until the page is left.
    }
    $("key").value = "";
    show($("key-form"), false);
    listener();
  });
}
