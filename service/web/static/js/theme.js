/** Light and dark: the system's, until the button says otherwise. */

import { $ } from "./dom.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";

function label() {
  $("theme").setAttribute("aria-pressed", String(isDark()));
}

/** Let the button switch. */
export function start() {
  $("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("superdiff.theme", JSON.stringify(theme));
    } catch {
      // It holds for as long as the page is open.
    }
    label();
  });
  dark.addEventListener("change", label);
  label();
}
