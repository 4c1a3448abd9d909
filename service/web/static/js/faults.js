/** Errors at the field that they are about. */

import { h } from "./dom.js";

/**
 * Show an error at a field: below it, tied to it for screen readers, and its section opened.
 * @param {HTMLElement} field
 * @param {string} text
 */
export function mark(field, text) {
  const id = `${field.id}-error`;
  const line = document.getElementById(id) ?? h("p", { id, class: "error" });
  line.textContent = text;
  (field.closest("[data-errors-after]") ?? field).after(line);
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", id);
  field.setAttribute("aria-describedby", [...described(field).filter((each) => each !== id), id].join(" "));
  for (let details = field.closest("details"); details; details = details.parentElement.closest("details")) {
    details.open = true;
  }
}

/** Take the error of a field away. */
export function unmark(field) {
  const id = `${field.id}-error`;
  document.getElementById(id)?.remove();
  field.removeAttribute("aria-invalid");
  field.removeAttribute("aria-errormessage");
  const left = described(field).filter((each) => each !== id);
  if (left.length) field.setAttribute("aria-describedby", left.join(" "));
  else field.removeAttribute("aria-describedby");
}

/** Take all errors below an element away. */
export function unmarkAll(root) {
  for (const field of root.querySelectorAll("[aria-invalid]")) unmark(field);
}

const described = (field) => (field.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean);

/** What the service says, as a sentence of its own. */
export function sentence(text) {
  const begun = text.slice(0, 1).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** A message of the service without the column that it begins with. */
export const withoutColumn = (detail) => detail.replace(/^at column \d+: /, "");

/** Where a text is at fault: its line, and a caret below the column. */
export function caretLines(text, column) {
  const characters = [...text];
  const at = Math.min(column - 1, characters.length);
  const from = characters.lastIndexOf("\n", at - 1) + 1;
  const end = characters.indexOf("\n", at);
  const line = characters.slice(from, end === -1 ? undefined : end);
  const before = Math.max(0, at - from - 24);
  const shown = line.slice(before, before + 60);
  const cut = before > 0 ? "…" : "";
  return `${cut}${shown.join("")}\n${" ".repeat(cut.length + at - from - before)}^`;
}
