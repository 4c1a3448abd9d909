/** Small helpers over the DOM. */

/** The element of an id. @param {string} id */
export const $ = (id) => document.getElementById(id);

/**
 * Build an element.
 * @param {string} tag
 * @param {Object} attributes Attributes; a function is a listener, true an empty attribute; false and null are left out.
 * @param {...(Node|string|null)} children
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Build an SVG element; see h. */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Show or hide an element. */
export function show(element, visible) {
  element.hidden = !visible;
}

/**
 * Tell something in the status region.
 * @param {string} text
 * @param {"info"|"error"|"good"} kind
 */
export function say(text, kind = "info") {
  const status = $("status");
  status.dataset.kind = kind;
  status.textContent = text;
}

/** A number in few digits, with a true minus sign; "–" for null. */
export function number(value, digits = 1) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const text = Math.abs(value) >= 1e5 ? value.toExponential(1) : value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

/** Copy a text, also where the page came over plain HTTP and there is no navigator.clipboard. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const field = h("textarea", { class: "off-screen", "aria-hidden": "true", tabindex: "-1" });
  field.value = text;
  const before = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  if (!done) throw new Error("the browser does not allow copying");
}
