/**
 * Boxes ⇄ text. The text is what is sent; boxes show the part of the language that is one operator over prompts.
 * Columns count characters (code points) from 1, as the service counts them.
 *
 * @typedef {{prompt: string, model: string, loras: {name: string, scale: number}[], weight: number|null, not: boolean}} Component
 * @typedef {"and"|"or"|"average"} Operator
 */

/** The operators that boxes can show, with what a component's number means to each (docs/expressions.md). */
export const OPERATORS = {
  and: { word: "AND", weight: "Lift", unit: "nats", hint: "How much more (or less) of this one, in nats; 0 if empty." },
  or: { word: "OR", weight: "Odds", unit: "log", hint: "Its log prior odds in nats; 0 if empty." },
  average: { word: "AVERAGE", weight: "Weight", unit: "×", hint: "Its share of the average; 1 if empty." },
};

const quoted = (text) => `"${text.replace(/["\\]/g, "\\$&")}"`;
const named = (name) => (/^[\w.+-]+$/u.test(name) ? name : quoted(name));

/** A new, empty component. @returns {Component} */
export const emptyComponent = () => ({ prompt: "", model: "", loras: [], weight: null, not: false });

/**
 * The text of boxes, and where in it each box's fields stand.
 * @param {Component[]} components
 * @param {Operator} operator
 * @param {{method?: string, sharpness?: number|null}} options AND's.
 * @returns {{text: string, spans: {from: number, to: number, component: number, field: string}[]}}
 */
export function write(components, operator, options = {}) {
  const spans = [];
  let text = "";
  let column = 1;
  const put = (piece, component = null, field = null) => {
    const from = column;
    text += piece;
    column += [...piece].length;
    if (component !== null) spans.push({ from, to: column, component, field });
  };
  const call = operator === "average" || components.length === 1;
  const chosen = operator === "and" ? chosenOptions(options) : "";
  const bare = components.length === 1 && components[0].weight === null && !chosen && operator !== "average";
  const word = OPERATORS[operator].word;
  if (call && !bare) put(`${word}${chosen}(`);
  components.forEach((component, i) => {
    if (i > 0) put(call ? ", " : ` ${word}${i === 1 ? chosen : ""} `);
    const wrapped = component.not && component.weight !== null;
    if (component.not) put(wrapped ? "(NOT " : "NOT ");
    put(quoted(component.prompt), i, "prompt");
    if (component.model) put(`@${named(component.model)}`, i, "model");
    for (const { name, scale } of component.loras) put(`<lora:${named(name)}:${scale}>`, i, "lora");
    if (wrapped) put(")");
    if (component.weight !== null) put(`:${component.weight}`, i, "weight");
  });
  if (call && !bare) put(")");
  return { text, spans };
}

function chosenOptions({ method, sharpness }) {
  const written = [];
  if (method === "balanced") written.push("balanced");
  if (sharpness !== null && sharpness !== undefined && method !== "balanced") written.push(`sharpness=${sharpness}`);
  return written.length ? `[${written.join(", ")}]` : "";
}

/** The field of a box at a column: the span around it, else the nearest one before it. */
export function spanAt(spans, column) {
  const around = spans.find(({ from, to }) => from <= column && column < to);
  return around ?? spans.filter(({ from }) => from <= column).at(-1) ?? spans[0] ?? null;
}

const TOKEN =
  /\s*(?:("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(<lora:)|([@:()[\],<>{}=])|((?:AND|OR|XOR|NOT|AVERAGE|PRODUCT|AT\s+LEAST)(?=[\s"()[\]{}<>@:\\,']|$))|([^\s"()[\]{}<>@:\\,=]+)|(\S))/suy;

function* tokens(text) {
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.trimEnd().length) {
    const [, quote, lora, sign, operator, word, other] = TOKEN.exec(text);
    if (quote) yield { kind: "quoted", text: unquoted(quote) };
    else if (lora) yield { kind: "<lora:", text: lora };
    else if (sign) yield { kind: sign, text: sign };
    else if (operator) yield { kind: operator, text: operator };
    else if (word) yield { kind: "word", text: word };
    else throw new NotFlat(other);
  }
}

class NotFlat extends Error {}

const unquoted = (quote) =>
  quote
    .slice(1, -1)
    .replace(/\\(?:u([0-9a-fA-F]{4})|(["'\\]))/g, (_, code, sign) =>
      code ? String.fromCharCode(parseInt(code, 16)) : sign,
    );

/**
 * The boxes of a text; null where boxes cannot show it: nesting, other operators or options, or a fault.
 * @param {string} text
 * @returns {{components: Component[], operator: Operator, method: string, sharpness: number|null}|null}
 */
export function read(text) {
  try {
    return new Reader([...tokens(text)]).whole();
  } catch (error) {
    if (error instanceof NotFlat) return null;
    throw error;
  }
}

class Reader {
  constructor(found) {
    this.found = found;
    this.at = 0;
    this.read = { components: [], operator: "and", method: "soft", sharpness: null };
  }

  get kind() {
    return this.found[this.at]?.kind ?? "end";
  }

  take(...kinds) {
    if (!kinds.includes(this.kind)) throw new NotFlat(this.kind);
    return this.found[this.at++].text;
  }

  has(kind) {
    const here = this.kind === kind;
    if (here) this.at += 1;
    return here;
  }

  whole() {
    if (["AND", "OR", "AVERAGE"].includes(this.kind)) this.call();
    else this.chain();
    if (this.kind !== "end") throw new NotFlat(this.kind);
    return this.read;
  }

  call() {
    this.read.operator = this.take("AND", "OR", "AVERAGE").toLowerCase();
    this.options();
    this.take("(");
    do this.term({ inCall: true });
    while (this.has(","));
    this.take(")");
  }

  chain() {
    this.term();
    let word = null;
    while (this.kind !== "end") {
      const next = this.kind === "NOT" ? "AND" : this.take("AND", "OR");
      word ??= next;
      if (next !== word) throw new NotFlat(next);
      this.read.operator = word.toLowerCase();
      this.options();
      this.term();
    }
  }

  options() {
    if (!this.has("[")) return;
    if (this.read.operator !== "and") throw new NotFlat("options");
    do {
      const name = this.take("word");
      if (name === "sharpness" && this.has("=")) this.read.sharpness = this.number();
      else if (name === "balanced" || name === "soft") this.read.method = name;
      else throw new NotFlat(name);
    } while (this.has(","));
    this.take("]");
  }

  number() {
    const value = Number(this.take("word"));
    if (!Number.isFinite(value)) throw new NotFlat("number");
    return value;
  }

  term({ inCall = false } = {}) {
    const component = emptyComponent();
    if (this.has("(")) {
      component.not = this.has("NOT");
      this.leaf(component);
      this.take(")");
    } else {
      component.not = this.has("NOT");
      this.leaf(component, { inCall });
      if (component.not && this.kind === ":") throw new NotFlat("the number of a NOT");
    }
    if (this.has(":")) component.weight = this.number();
    this.read.components.push(component);
  }

  leaf(component, { inCall = false } = {}) {
    if (this.kind === "quoted") component.prompt = this.take("quoted");
    else {
      const words = [this.take("word")];
      while (this.kind === "word" || (!inCall && this.kind === ",")) {
        if (this.kind === ",") words.push(words.pop() + this.take(","));
        else words.push(this.take("word"));
      }
      component.prompt = words.join(" ");
    }
    while (this.kind === "@" || this.kind === "<lora:") {
      if (this.has("@")) component.model = this.take("word", "quoted");
      else {
        this.take("<lora:");
        const name = this.take("word", "quoted");
        component.loras.push({ name, scale: this.has(":") ? this.number() : 1 });
        this.take(">");
      }
    }
  }
}
