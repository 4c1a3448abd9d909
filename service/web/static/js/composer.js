/** What is composed: boxes, or the text that they stand for. */

import { $, h, show } from "./dom.js";
import { OPERATORS, emptyComponent, read, spanAt, write } from "./expression.js";
import { caretLines, mark, sentence, unmark, unmarkAll, withoutColumn } from "./faults.js";
import * as settings from "./settings.js";

/** What the boxes suggest, by the default model; the first prompts are composed where nothing is written. */
const EXAMPLES = {
  emoji: ["a cat", "a pizza", "a lion", "a sunflower"],
  shapes: ["a red circle", "a blue star", "a green square", "a yellow triangle"],
  any: ["a lighthouse in a storm", "a field of sunflowers", "a full moon", "a flock of birds"],
};
const MAX_COMPONENTS = 16;
const COLOURS = 6;

export class Composer {
  /** @param {() => void} changed Called after every change. */
  constructor(changed) {
    this.changed = changed;
    this.models = [];
    this.mode = "boxes";
    this.operator = "and";
    this.components = [emptyComponent(), emptyComponent()];
    for (const radio of this.radios) radio.addEventListener("change", () => this.choose(radio.value));
    $("add").addEventListener("click", () => this.add());
    $("edit-text").addEventListener("click", () => this.editText());
    $("edit-boxes").addEventListener("click", () => this.editBoxes());
    $("text").addEventListener("input", () => {
      this.clearTextFault();
      this.changed();
    });
    for (const name of ["method", "sharpness"]) settings.fieldOf(name).addEventListener("input", () => this.refresh());
    this.render();
  }

  get radios() {
    return [...document.querySelectorAll("input[name=operator]")];
  }

  get examples() {
    const id = this.models[0]?.id ?? "shapes";
    return EXAMPLES[Object.keys(EXAMPLES).find((name) => id.startsWith(name))] ?? EXAMPLES.any;
  }

  /** The composition, as it is kept and taken up again. */
  get draft() {
    const { mode, operator, components } = this;
    return structuredClone({ mode, operator, components, text: $("text").value });
  }

  /** Take a composition up. */
  load({ mode, operator, components, text }) {
    Object.assign(this, structuredClone({ mode, operator, components }));
    $("text").value = text ?? "";
    this.clearFaults();
    this.render();
  }

  /** The models to choose from. */
  offer(models) {
    this.models = models;
    this.render();
  }

  /** Text and spans of the boxes; empty boxes show their examples where all are empty. */
  written(components = this.components) {
    const options = { method: settings.fieldOf("method").value, sharpness: settings.numberOf("sharpness") };
    return write(components, this.operator, options);
  }

  get untouched() {
    return this.components.every(({ prompt }) => prompt.trim() === "");
  }

  withExamples() {
    return this.components.map((component, i) => ({
      ...component,
      prompt: this.takesPrompts(component) ? this.examples[i % this.examples.length] : "",
    }));
  }

  takesPrompts(component) {
    return this.modelOf(component)?.takes_prompts !== false;
  }

  modelOf(component) {
    return component.model ? this.models.find(({ id }) => id === component.model) : this.models[0];
  }

  /**
   * The text to send. Where nothing is written in any box, the examples are.
   * @returns {string|null} null where a box is left empty; it is marked.
   */
  expression() {
    this.clearFaults();
    if (this.mode === "text") {
      if ($("text").value.trim()) return $("text").value;
      this.textFault("Write an expression, or go back to boxes.", null);
      return null;
    }
    if (this.untouched) {
      this.components = this.withExamples();
      this.render();
      this.changed();
    }
    const empty = this.components.findIndex((one) => one.prompt.trim() === "" && this.takesPrompts(one));
    if (empty >= 0) {
      this.fault(empty, "prompt", "Write a prompt, or remove this component.");
      return null;
    }
    return this.written().text;
  }

  /** Show what the service says of the expression. */
  refused({ detail, column }) {
    const text = sentence(withoutColumn(detail));
    if (this.mode === "text") {
      this.textFault(text, column ?? null);
      return;
    }
    const span = column === undefined ? null : spanAt(this.written().spans, column);
    this.fault(span?.component ?? 0, span?.field ?? "prompt", text);
  }

  fault(i, field, text) {
    const wanted = $(`${field}-${i}`) ?? $(`prompt-${i}`);
    mark(wanted, text);
    wanted.focus();
  }

  textFault(text, column) {
    const field = $("text");
    mark(field, column === null ? text : `Column ${column}: ${text}`);
    const caret = $("caret");
    show(caret, column !== null);
    if (column !== null) {
      caret.textContent = caretLines(field.value, column);
      const before = [...field.value].slice(0, column - 1).join("").length;
      field.focus();
      field.setSelectionRange(before, before);
    }
  }

  clearTextFault() {
    unmark($("text"));
    show($("caret"), false);
  }

  clearFaults() {
    unmarkAll($("composer"));
    show($("caret"), false);
  }

  choose(operator) {
    this.operator = operator;
    this.render();
    this.changed();
  }

  add() {
    this.components.push({ ...emptyComponent(), model: this.components.at(-1)?.model ?? "" });
    this.render();
    $(`prompt-${this.components.length - 1}`).focus();
    this.changed();
  }

  remove(i) {
    this.components.splice(i, 1);
    this.render();
    $(`prompt-${Math.min(i, this.components.length - 1)}`).focus();
    this.changed();
  }

  editText() {
    $("text").value = this.untouched ? write(this.withExamples(), this.operator).text : this.written().text;
    this.mode = "text";
    this.clearFaults();
    this.render();
    $("text").focus();
    this.changed();
  }

  editBoxes() {
    const boxes = read($("text").value);
    if (boxes === null) {
      this.textFault("Boxes show one operator over prompts. This text has more, so it stays text.", null);
      return;
    }
    const { components, operator, method, sharpness } = boxes;
    settings.set("method", method);
    settings.set("sharpness", sharpness);
    Object.assign(this, { mode: "boxes", operator, components });
    this.clearFaults();
    this.render();
    $("prompt-0").focus();
    this.changed();
  }

  render() {
    const boxes = this.mode === "boxes";
    for (const element of document.querySelectorAll("[data-mode]")) show(element, element.dataset.mode === this.mode);
    for (const radio of this.radios) radio.checked = radio.value === this.operator;
    $("components").replaceChildren(...this.components.map((component, i) => this.box(component, i)));
    $("components").dataset.word = OPERATORS[this.operator].word;
    show($("add"), boxes && this.components.length < MAX_COMPONENTS);
    show($("and-settings"), boxes && this.operator === "and");
    this.refresh();
  }

  refresh() {
    settings.fieldOf("sharpness").disabled = settings.fieldOf("method").value === "balanced";
    const { text } = this.untouched ? this.written(this.withExamples()) : this.written();
    $("expression").textContent = text;
    $("expression").classList.toggle("example", this.untouched);
  }

  touched(component, change) {
    Object.assign(component, change);
    this.refresh();
    this.changed();
  }

  box(component, i) {
    const { word, weight, unit, hint } = OPERATORS[this.operator];
    const number = i + 1;
    const takes = this.takesPrompts(component);
    const prompt = h("textarea", {
      id: `prompt-${i}`,
      class: "prompt",
      rows: "2",
      spellcheck: "false",
      autocapitalize: "off",
      placeholder: takes ? this.examples[i % this.examples.length] : "This model takes no prompt",
      disabled: !takes,
      input: (event) => {
        unmark(prompt);
        this.touched(component, { prompt: event.target.value.replace(/\n/g, " ") });
      },
    });
    prompt.value = component.prompt;
    const remove = h(
      "button",
      { type: "button", class: "quiet icon", "aria-label": `Remove component ${number}`, title: "Remove", click: () => this.remove(i) },
      "×",
    );
    const not = h("input", { type: "checkbox", id: `not-${i}`, checked: component.not, change: (event) => this.touched(component, { not: event.target.checked }) });
    const number_ = h("input", {
      type: "number",
      id: `weight-${i}`,
      step: "any",
      placeholder: this.operator === "average" ? "1" : "0",
      title: hint,
      input: (event) => {
        unmark(number_);
        this.touched(component, { weight: event.target.value === "" ? null : Number(event.target.value) });
      },
    });
    number_.value = component.weight ?? "";
    return h(
      "li",
      { class: "component", "data-word": word },
      h(
        "div",
        { class: "component-head" },
        h("span", { class: `swatch c${i % COLOURS}`, "aria-hidden": "true" }),
        h("label", { for: `prompt-${i}`, class: "grow" }, `Component ${number}`),
        h("label", { class: "toggle", for: `not-${i}`, title: "Steer away from this one" }, not, h("span", {}, "NOT")),
        this.components.length > 1 ? remove : null,
      ),
      prompt,
      h(
        "div",
        { class: "fields", "data-errors-after": true },
        this.models.length > 1 || component.model ? this.modelPicker(component, i) : null,
        h("div", { class: "field narrow" }, h("label", { for: `weight-${i}` }, `${weight} `, h("span", { class: "dim" }, unit)), number_),
      ),
      this.loras(component, i),
    );
  }

  modelPicker(component, i) {
    const lead = this.modelOf(this.components[0]);
    const names = this.models.map(({ id }) => id);
    if (component.model && !names.includes(component.model)) names.push(component.model);
    const options = names.map((name, k) => {
      const value = k === 0 ? "" : name;
      const apart = i > 0 && lead?.loaded && name !== lead.id && !lead.composes_with?.includes(name);
      const note = apart ? ` (does not compose with ${lead.id})` : "";
      return h("option", { value, selected: value === component.model }, name + note);
    });
    const picker = h(
      "select",
      {
        id: `model-${i}`,
        change: (event) => {
          this.touched(component, { model: event.target.value, loras: [] });
          this.render();
          $(`model-${i}`).focus();
        },
      },
      ...options,
    );
    return h("div", { class: "field" }, h("label", { for: `model-${i}` }, "Model"), picker);
  }

  /** The LoRAs of a box; nothing where its model has none. */
  loras(component, i) {
    const known = this.modelOf(component)?.loras ?? [];
    if (!known.length && !component.loras.length) return h("div", { hidden: true });
    const rows = component.loras.map((lora, k) => this.lora(component, lora, known, i, k));
    const free = known.find((name) => !component.loras.some((lora) => lora.name === name));
    const again = () => {
      this.render();
      this.changed();
      ($(`lora-${i}`) ?? $(`prompt-${i}`)).focus();
    };
    const add = h(
      "button",
      {
        type: "button",
        class: "quiet",
        click: () => {
          component.loras.push({ name: free, scale: 1 });
          again();
        },
      },
      "Add a LoRA",
    );
    return h("div", { class: "loras" }, ...rows, free ? add : null);
  }

  lora(component, lora, known, i, k) {
    const suffix = k === 0 ? `${i}` : `${i}-${k}`;
    const names = known.includes(lora.name) ? known : [...known, lora.name];
    const picker = h(
      "select",
      {
        id: `lora-${suffix}`,
        change: (event) => {
          lora.name = event.target.value;
          this.touched(component, {});
        },
      },
      ...names.map((name) => h("option", { value: name, selected: name === lora.name }, name)),
    );
    const strength = h("input", {
      id: `lora-strength-${suffix}`,
      type: "number",
      step: "0.05",
      input: (event) => {
        lora.scale = event.target.value === "" ? 1 : Number(event.target.value);
        this.touched(component, {});
      },
    });
    strength.value = lora.scale;
    const remove = h(
      "button",
      {
        type: "button",
        class: "quiet icon",
        "aria-label": `Remove the LoRA ${lora.name}`,
        click: () => {
          component.loras.splice(k, 1);
          this.render();
          this.changed();
          $(`prompt-${i}`).focus();
        },
      },
      "×",
    );
    return h(
      "div",
      { class: "fields" },
      h("div", { class: "field" }, h("label", { for: picker.id }, "LoRA"), picker),
      h("div", { class: "field narrow" }, h("label", { for: strength.id }, "Strength"), strength),
      remove,
    );
  }
}
