/** A picture to begin from, and a mask painted over it. The mask has exactly the picture's pixels. */

import { $, h, say, show } from "./dom.js";
import { mark, unmark } from "./faults.js";

const LONGEST_SIDE = 2048;
const UNDO_BYTES = 64 * 2 ** 20;
const SMALL = 160;
/** The service's own strengths (`strength` of /v1/superpose), shown until the user chooses. */
const STRENGTH = { alone: 0.75, masked: 1 };

export class Editor {
  /** @param {(size: {width: number, height: number}) => {width: number, height: number}|null} sized Where a picture is
   *   drawn at another size than its own, that size. */
  constructor(sized) {
    this.sized = sized;
    this.picture = $("source");
    this.canvas = $("mask");
    this.done = [];
    this.undone = [];
    this.cursor = null;
    this.stroke = null;
    /** Of image-to-image; null for the service's own, which differs with and without a mask. */
    this.strength = null;
    this.buttons();
    this.pointer();
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.moveCursor(0, 0));
    this.canvas.addEventListener("blur", () => show($("brush-cursor"), false));
    this.ways();
    this.clear();
  }

  get size() {
    return { width: this.canvas.width, height: this.canvas.height };
  }

  get brush() {
    return Number($("brush").value);
  }

  get erasing() {
    return $("tool-erase").checked;
  }

  /** Load a picture file; one that is larger than is of use is made smaller. */
  async load(blob) {
    unmark($("file"));
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      mark($("file"), "This file is not a picture that the browser can read.");
      return;
    }
    const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
    for (const canvas of [this.picture, this.canvas]) Object.assign(canvas, { width, height });
    this.picture.getContext("2d").drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    this.has = true;
    this.done = [];
    this.undone = [];
    this.cursor = { x: width / 2, y: height / 2 };
    const longest = Math.max(width, height);
    Object.assign($("brush"), { min: 1, max: Math.ceil(longest / 2), value: Math.max(2, Math.round(longest / 8)) });
    $("canvas").classList.toggle("small", longest <= SMALL);
    $("from-picture").open = true;
    this.shown();
    say(`Picture loaded: ${width} × ${height}. Paint over the part to change, or paint nothing to change all of it.`);
  }

  /** Take the picture and the mask away. */
  clear() {
    this.has = false;
    this.done = [];
    this.undone = [];
    $("file").value = "";
    this.shown();
  }

  /** Whether anything is painted. */
  get painted() {
    return this.has && this.alpha().some((value) => value > 127);
  }

  /**
   * What to send.
   * @returns {{image: string, mask?: string, strength?: number}|null} PNGs as data: URIs; no mask where nothing is painted.
   */
  value() {
    if (!this.has) return null;
    const image = this.picture.toDataURL("image/png");
    const strength = this.strength === null ? {} : { strength: this.strength };
    return this.painted ? { image, mask: this.maskPng(), ...strength } : { image, ...strength };
  }

  /** The mask as a PNG: white where it is painted, black elsewhere, nothing between. */
  maskPng() {
    const { width, height } = this.size;
    const canvas = h("canvas", { width, height });
    const pixels = new ImageData(width, height);
    this.alpha().forEach((value, i) => pixels.data.set(value > 127 ? [255, 255, 255, 255] : [0, 0, 0, 255], i * 4));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas.toDataURL("image/png");
  }

  get context() {
    return this.canvas.getContext("2d", { willReadFrequently: true });
  }

  alpha() {
    const { width, height } = this.size;
    return this.context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 3);
  }

  setAlpha(alpha) {
    const { width, height } = this.size;
    const pixels = new ImageData(width, height);
    alpha.forEach((value, i) => (pixels.data[i * 4 + 3] = value));
    this.context.putImageData(pixels, 0, 0);
    this.tint();
  }

  /** Give what is painted the theme's colour; only its alpha means anything. */
  tint() {
    const context = this.context;
    context.globalCompositeOperation = "source-in";
    context.fillStyle = getComputedStyle(this.canvas).color;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.globalCompositeOperation = "source-over";
  }

  remember() {
    this.done.push(this.alpha());
    this.undone = [];
    const kept = Math.max(2, Math.floor(UNDO_BYTES / (this.canvas.width * this.canvas.height)));
    this.done.splice(0, Math.max(0, this.done.length - kept));
  }

  step(from, to, word) {
    if (!from.length) return;
    to.push(this.alpha());
    this.setAlpha(from.pop());
    this.shown();
    say(word);
  }

  undo() {
    this.step(this.done, this.undone, "Undone.");
  }

  redo() {
    this.step(this.undone, this.done, "Done again.");
  }

  replace(of, word) {
    if (!this.has) return;
    this.remember();
    this.setAlpha(this.alpha().map(of));
    this.shown();
    say(word);
  }

  shown() {
    show($("picture-editor"), this.has);
    $("choose-told").textContent = this.has ? "Choose another" : "Choose a picture";
    $("undo").disabled = !this.done.length;
    $("redo").disabled = !this.undone.length;
    const painted = this.painted;
    const told = painted
      ? "The painted part is redrawn; the rest stays as it is."
      : "Nothing is painted: the whole picture changes.";
    const size = this.has ? this.sized(this.size) : null;
    $("mask-told").textContent = size ? `${told} It is drawn at ${size.width} × ${size.height}.` : told;
    this.showStrength(painted);
  }

  showStrength(painted = this.painted) {
    const value = this.strength ?? (painted ? STRENGTH.masked : STRENGTH.alone);
    $("strength").value = value;
    $("strength-told").textContent = value.toFixed(2);
  }

  /** Take a strength up; null for the service's own. */
  setStrength(value) {
    this.strength = value;
    this.showStrength();
  }

  buttons() {
    const on = (id, action) => $(id).addEventListener("click", action);
    $("strength").addEventListener("input", () => this.setStrength(Number($("strength").value)));
    on("undo", () => this.undo());
    on("redo", () => this.redo());
    on("invert", () => this.replace((value) => 255 - value, "Inverted."));
    on("clear-mask", () => this.replace(() => 0, "Nothing is painted."));
    on("fill-mask", () => this.replace(() => 255, "All is painted."));
    on("remove-picture", () => {
      this.clear();
      $("file").focus();
      say("Picture removed.");
    });
  }

  /** Files chosen, dropped anywhere on the page, or pasted. */
  ways() {
    $("file").addEventListener("change", () => $("file").files[0] && this.load($("file").files[0]));
    const isFile = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!isFile(event)) return;
      event.preventDefault();
      document.body.classList.add("dragging");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) document.body.classList.remove("dragging");
    });
    document.addEventListener("drop", (event) => {
      document.body.classList.remove("dragging");
      if (!isFile(event)) return;
      event.preventDefault();
      this.load(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
      if (file) {
        event.preventDefault();
        this.load(file);
      }
    });
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  pointer() {
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      this.canvas.focus({ preventScroll: true });
      this.canvas.setPointerCapture(event.pointerId);
      this.remember();
      this.stroke = this.place(event);
      this.paint(this.stroke, this.stroke);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      this.cursor = this.place(event);
      this.showCursor();
      if (!this.stroke) return;
      for (const each of event.getCoalescedEvents?.() ?? [event]) {
        const to = this.place(each);
        this.paint(this.stroke, to);
        this.stroke = to;
      }
    });
    const end = () => {
      if (!this.stroke) return;
      this.stroke = null;
      this.shown();
    };
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) this.canvas.addEventListener(kind, end);
    this.canvas.addEventListener("pointerleave", () => show($("brush-cursor"), false));
    $("brush").addEventListener("input", () => this.showCursor());
  }

  paint(from, to) {
    const context = this.context;
    context.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    context.strokeStyle = getComputedStyle(this.canvas).color;
    context.lineWidth = this.brush;
    context.lineCap = "round";
    context.lineJoin = "round";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 1e-3, to.y);
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }

  key(event) {
    const stride = Math.max(1, Math.round(this.brush / (event.shiftKey ? 1 : 4)));
    const moves = { ArrowLeft: [-stride, 0], ArrowRight: [stride, 0], ArrowUp: [0, -stride], ArrowDown: [0, stride] };
    if (event.ctrlKey || event.metaKey) {
      const key = event.key.toLowerCase();
      if (key === "z" && !event.shiftKey) this.undo();
      else if (key === "y" || (key === "z" && event.shiftKey)) this.redo();
      else return;
    } else if (event.key in moves) {
      const before = { ...this.cursor };
      this.moveCursor(...moves[event.key]);
      if (this.penDown) this.paint(before, this.cursor);
    } else if (event.key === " ") {
      event.preventDefault();
      if (event.repeat) return;
      this.remember();
      this.paint(this.cursor, this.cursor);
      this.penDown = true;
      this.canvas.addEventListener("keyup", () => this.lift(), { once: true });
      this.canvas.addEventListener("blur", () => this.lift(), { once: true });
    } else if (event.key === "[" || event.key === "]") {
      $("brush").value = Math.round(this.brush * (event.key === "]" ? 1.25 : 0.8) + (event.key === "]" ? 0.5 : -0.5));
      say(`Brush of ${this.brush} pixels.`);
    } else if (event.key.toLowerCase() === "e") {
      $(this.erasing ? "tool-paint" : "tool-erase").checked = true;
      say(this.erasing ? "Erasing." : "Painting.");
    } else return;
    event.preventDefault();
    this.showCursor();
  }

  lift() {
    if (!this.penDown) return;
    this.penDown = false;
    this.shown();
  }

  moveCursor(dx, dy) {
    const { width, height } = this.size;
    this.cursor ??= { x: width / 2, y: height / 2 };
    this.cursor = { x: Math.min(width, Math.max(0, this.cursor.x + dx)), y: Math.min(height, Math.max(0, this.cursor.y + dy)) };
    this.showCursor();
  }

  showCursor() {
    if (!this.cursor) return;
    const ring = $("brush-cursor");
    const scale = this.canvas.clientWidth / this.canvas.width;
    const side = Math.max(4, this.brush * scale);
    Object.assign(ring.style, { width: `${side}px`, height: `${side}px`, left: `${this.cursor.x * scale}px`, top: `${this.cursor.y * scale}px` });
    show(ring, true);
  }
}

/**
 * The size to draw a picture at, where the user names none: its own, unless the lead model has only one size or is
 * made for fewer pixels.
 * @param {{width: number, height: number}} picture
 * @param {{width: number|null, height: number|null, multiple: number|null}|undefined} model
 * @returns {{width: number, height: number}|null} null for the picture's own.
 */
export function fittingSize(picture, model) {
  if (!model?.width || !model.height) return null;
  if (model.multiple === 0) return { width: model.width, height: model.height };
  const scale = Math.sqrt((model.width * model.height) / (picture.width * picture.height));
  if (scale >= 1) return null;
  const multiple = model.multiple ?? 8;
  const side = (length) => Math.max(multiple, Math.round((length * scale) / multiple) * multiple);
  return { width: side(picture.width), height: side(picture.height) };
}
