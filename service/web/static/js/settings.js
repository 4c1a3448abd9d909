/** The fields under Settings: named as in the request's body, empty for the model's own default. */

import { $ } from "./dom.js";
import { mark, unmark } from "./faults.js";

/** What goes into the expression's text instead of the body. */
const IN_EXPRESSION = new Set(["method", "sharpness"]);

const fields = () => [...$("settings").querySelectorAll("[name]")];

/** Every setting as it stands. @returns {Object<string, string>} */
export const values = () => Object.fromEntries(fields().map((field) => [field.name, field.value]));

/** Set every field; what is not named gets its default. @param {Object<string, string>} given */
export function fill(given) {
  for (const field of fields()) {
    unmark(field);
    field.value = given[field.name] ?? field.dataset.default ?? "";
  }
}

/** Set one field. */
export function set(name, value) {
  fieldOf(name).value = value ?? "";
}

/** The field of a name; null where there is none. */
export const fieldOf = (name) => fields().find((field) => field.name === name) ?? null;

/** The number in a field; null where it is empty. */
export const numberOf = (name) => (fieldOf(name).value === "" ? null : Number(fieldOf(name).value));

/**
 * The part of the request's body that is written here.
 * @returns {Object|null} null where a field holds no number; it is marked.
 */
export function body() {
  const read = {};
  let sound = true;
  for (const field of fields()) {
    if (field.validity.badInput) {
      mark(field, "Write a number.");
      sound = false;
    } else if (field.value !== "" && !IN_EXPRESSION.has(field.name)) {
      read[field.name] = field.type === "number" ? Number(field.value) : field.value;
    }
  }
  return sound ? read : null;
}
