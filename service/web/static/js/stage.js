/** The job on the stage: its progress while it runs, its pictures and numbers when it is done. */

import * as api from "./api.js";
import { draw, stepAt } from "./charts.js";
import { reached, seen } from "./connection.js";
import { $, copy, h, number, say, show } from "./dom.js";
import { sentence } from "./faults.js";
import { key } from "./key.js";
import { drawMap } from "./maps.js";
import { series } from "./series.js";
import { point } from "./pictures.js";
import * as snippets from "./snippets.js";
import { asked } from "./store.js";

const COLOURS = 6;
const SMALL = 160;
const ANNOUNCED = 4;

/** Show a file of the service by its path, or a picture that is here already. */
function fill(picture, path, source) {
  if (path) {
    point(picture, "src", path);
    return;
  }
  delete picture.dataset.path;
  if (source !== null && picture.src !== source) picture.src = source;
}

export class Stage {
  /** @param {{changed: () => void, usePicture: (blob: Blob) => void, useSettings: (id: string) => void}} wishes */
  constructor(wishes) {
    this.wishes = wishes;
    this.job = null;
    this.frame = null;
    $("cancel").addEventListener("click", () => this.cancel());
    $("reading").addEventListener("input", () => this.read(Number($("reading").value)));
    $("opacity").addEventListener("input", () => ($("lift-map").style.opacity = $("opacity").value));
    $("use-picture").addEventListener("click", () => this.usePicture());
    $("use-settings").addEventListener("click", () => this.wishes.useSettings(this.job.id));
    $("csv").addEventListener("click", () => this.csv());
    for (const kind of ["curl", "httpx", "openai"]) $(`copy-${kind}`).addEventListener("click", () => this.copy(kind));
    for (const id of ["weight-chart", "density-chart"]) {
      const move = (event) => this.read(stepAt($(id), event.clientX, this.job.steps));
      $(id).addEventListener("pointermove", move);
      $(id).addEventListener("pointerdown", move);
      $(id).addEventListener("pointerleave", () => this.readLast());
    }
    // A small picture is enlarged as it is, without being smoothed into a blur.
    $("picture").addEventListener("load", () => {
      $("frame").classList.toggle("small", Math.max($("picture").naturalWidth, $("picture").naturalHeight) <= SMALL);
    });
  }

  /** Show a job, and follow it if it is not over. */
  async open(info) {
    this.following?.abort();
    this.following = new AbortController();
    const { signal } = this.following;
    this.job = info;
    this.points = new Map();
    this.previews = [];
    this.result = info.result ?? null;
    this.image = 0;
    this.map = null;
    this.pinned = false;
    this.announced = 0;
    this.render();
    try {
      if (info.status === "completed") await this.recall(info.id, signal);
      else if (info.status === "queued" || info.status === "running") await this.follow(info.id, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof api.Problem)) throw error;
      this.over({ status: "failed", error: error.status === 404 ? "The service no longer has this job." : error.message });
    }
  }

  /** A completed job of the gallery. */
  async recall(id, signal) {
    const told = this.result ? this.job : await reached(api.job(id));
    if (signal.aborted) return;
    this.job = told;
    this.result = told.result;
    this.render();
    try {
      const points = await api.trajectory(id);
      if (signal.aborted) return;
      this.points = new Map(points.map((point) => [point.step, point]));
      this.charts();
    } catch (error) {
      if (!(error instanceof api.Problem)) throw error;
    }
  }

  follow(id, signal) {
    const listener = {
      connection: seen,
      event: (kind, data) => !signal.aborted && this.event(kind, data),
    };
    return api.follow(id, listener, signal);
  }

  event(kind, data) {
    if (kind === "queued") {
      this.job = { ...this.job, status: "queued", queue_position: data.position };
      this.progress();
    } else if (kind === "progress") {
      this.points.set(data.step, data);
      this.job = { ...this.job, status: "running", step: data.step, steps: data.steps, sigma: data.sigma };
      this.soon();
    } else if (kind === "preview") {
      this.previews = data.images;
      this.soon();
    } else if (kind === "completed") {
      this.result = data;
      for (const point of data.trajectory ?? []) this.points.set(point.step, point);
      this.over({ status: "completed" });
      say("Done.", "good");
    } else if (kind === "failed") {
      this.over({ status: "failed", error: data.detail });
    } else if (kind === "cancelled") {
      this.over({ status: "cancelled" });
      say("Cancelled.");
    }
  }

  /** Draw what came, once a frame: a slow machine would fall behind if it drew every event. */
  soon() {
    if (this.frame !== null) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.progress();
      this.picture();
      this.strip();
      this.charts();
    });
  }

  over(change) {
    this.job = { ...this.job, ...change };
    this.render();
    this.wishes.changed();
    if (change.error) say(sentence(change.error), "error");
  }

  async cancel() {
    $("cancel").disabled = true;
    try {
      await reached(api.cancel(this.job.id));
    } catch (error) {
      say(sentence(error.message), "error");
    }
    $("cancel").disabled = false;
  }

  render() {
    show($("stage-empty"), false);
    show($("stage-job"), true);
    const told = asked.of(this.job.id);
    $("stage").dataset.job = this.job.id;
    $("stage-title").textContent = told?.body.expression ?? this.job.components.join(" · ");
    const done = this.job.status === "completed" && this.result !== null;
    show($("actions"), done);
    show($("use-settings"), told !== null);
    show($("copies"), done && told !== null);
    show($("copy-openai"), !(told?.body.image || told?.body.mask));
    show($("csv"), done);
    this.progress();
    this.picture();
    this.strip();
    this.told();
    this.charts();
  }

  progress() {
    const { status, step = 0, steps, sigma, queue_position: position } = this.job;
    const running = status === "queued" || status === "running";
    $("stage").dataset.status = status;
    show($("progress-row"), running);
    const bar = $("progress");
    bar.max = steps || 1;
    bar.value = step;
    const waiting = position > 0 ? `Waiting: ${position} jobs ahead` : "Starting…";
    const level = sigma === undefined ? "" : `σ ${number(sigma, sigma < 1 ? 3 : 2)}`;
    $("progress-text").textContent = status === "queued" ? waiting : `Step ${step} of ${steps}  ${level}`;
    const quarter = Math.floor((ANNOUNCED * step) / (steps || 1));
    if (status === "running" && quarter > this.announced && quarter < ANNOUNCED) {
      this.announced = quarter;
      say(`Step ${step} of ${steps}.`);
    }
    const facts = [this.job.models.join(", "), `seed ${this.seed}`];
    if (this.result) facts.push(`${steps} steps`, `${number(this.result.timings.run_ms / 1000, 1)} s`);
    $("stage-facts").textContent = facts.join(" · ");
  }

  /** The seed that draws the picture shown, alone. */
  get seed() {
    return this.shown?.seed ?? this.job.seed;
  }

  get shown() {
    return this.result?.images[this.image] ?? null;
  }

  picture() {
    const picture = $("picture");
    const preview = this.previews[this.image];
    const source = this.shown?.url ?? (preview ? `data:image/jpeg;base64,${preview}` : null);
    const notes = { failed: this.job.error ?? "Failed.", cancelled: "Cancelled." };
    const note = source === null || this.job.status in notes ? (notes[this.job.status] ?? "") : "";
    $("frame-note").textContent = note && sentence(note);
    $("frame").classList.toggle("preview", !this.shown);
    $("frame").classList.toggle("waiting", source === null && !(this.job.status in notes));
    show(picture, source !== null);
    if (source === null) picture.removeAttribute("src");
    fill(picture, this.shown?.url, source);
    picture.alt = `${this.shown ? "Picture" : "Preview"} of ${$("stage-title").textContent}`;
    if (this.shown) {
      point($("download"), "href", this.shown.url);
      $("download").setAttribute("download", `superdiff-${this.seed}.png`);
    }
    drawMap(this.map === null ? null : Object.values(this.shown?.lift_maps ?? {})[this.map]);
  }

  /** All images, or their previews, to choose from. Where their number stays, so does what has focus. */
  strip() {
    const images = this.result?.images ?? [];
    const sources = images.length ? images.map(({ url }) => url) : this.previews.map((data) => `data:image/jpeg;base64,${data}`);
    const strip = $("strip");
    const several = sources.length > 1;
    show(strip, several);
    if (!several || strip.childElementCount !== sources.length) {
      strip.replaceChildren(...(several ? sources : []).map((_, i) => this.thumb(i)));
    }
    [...strip.children].forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === this.image));
      button.setAttribute("aria-label", `Image ${i + 1}${images[i] ? `, seed ${images[i].seed}` : ""}`);
      const picture = button.firstElementChild;
      fill(picture, images[i]?.url, sources[i]);
    });
  }

  thumb(i) {
    return h("button", { type: "button", class: "thumb", click: () => this.choose(i) }, h("img", { alt: "" }));
  }

  choose(i) {
    this.image = i;
    this.render();
  }

  /** The table of the picture shown. */
  told() {
    const { shown } = this;
    show($("told"), shown !== null);
    show($("map-controls"), this.map !== null);
    if (!shown) return;
    const maps = Object.values(shown.lift_maps ?? {});
    const rows = this.job.components.map((name, i) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, h("span", { class: `swatch c${i % COLOURS}`, "aria-hidden": "true" }), name || "(empty)"),
        h("td", { class: "numeric" }, number(shown.kappa[name], 2)),
        h("td", { class: "numeric" }, number(shown.lift[name], 1)),
        h("td", {}, maps[i] ? this.mapButton(name, i) : null),
      ),
    );
    $("told-rows").replaceChildren(...rows);
    const map = this.map === null ? null : maps[this.map];
    $("map-scale").textContent = map ? `full colour: ${number(map.scale, 2)} nats per cell` : "";
  }

  mapButton(name, i) {
    const on = this.map === i;
    return h(
      "button",
      {
        type: "button",
        class: "quiet small",
        id: `map-${i}`,
        "aria-pressed": String(on),
        "aria-label": `Lift map of ${name}`,
        click: () => {
          this.map = on ? null : i;
          this.picture();
          this.told();
          $(`map-${i}`).focus();
        },
      },
      "Map",
    );
  }

  get lines() {
    const told = asked.of(this.job.id)?.body;
    const points = [...this.points.values()].sort((a, b) => a.step - b.step);
    const images = this.result?.images.length ?? told?.num_images ?? (told ? 1 : null);
    const last = points.at(-1);
    // After the last step one sample of each candidate is left.
    const candidates = this.result && last ? last.kappa.length / images : null;
    return series(points, {
      steps: this.job.steps,
      components: this.job.components.length,
      images,
      image: this.image,
      candidates,
      candidate: this.shown?.candidate ?? null,
    });
  }

  charts() {
    const { steps, components: names } = this.job;
    const last = Math.max(0, ...this.points.keys());
    const slider = $("reading");
    slider.max = Math.max(1, last);
    if (!this.pinned) slider.value = last;
    const reading = Math.min(Number(slider.value), last);
    slider.setAttribute("aria-valuetext", `step ${reading}`);
    const { weight, density } = this.lines;
    const common = { names, steps, reading };
    draw($("weight-chart"), { ...common, lines: weight, least: [0, 1], digits: 2, title: "Share of each component by step" });
    draw($("density-chart"), { ...common, lines: density, least: [-1, 1], digits: 1, title: "Log-density of each component minus their mean, by step" });
    const sigma = this.points.get(reading)?.sigma;
    $("reading-told").textContent = last ? `Step ${reading} · σ ${number(sigma, 2)}` : "Step";
    $("legend").replaceChildren(
      ...names.map((name, i) =>
        h(
          "li",
          {},
          h("span", { class: `swatch c${i % COLOURS} d${Math.floor(i / COLOURS)}`, "aria-hidden": "true" }),
          h("span", { class: "grow" }, name || "(empty)"),
          h("span", { class: "numbers" }, number(weight[i][reading - 1], 2)),
          h("span", { class: "numbers" }, `${number(density[i][reading - 1], 1)} nats`),
        ),
      ),
    );
  }

  /** Read the charts at a step. */
  read(step) {
    if (!this.job) return;
    this.pinned = true;
    $("reading").value = step;
    this.charts();
  }

  /** Let the charts be read at the last step again, as it comes. */
  readLast() {
    if (!this.job) return;
    this.pinned = false;
    this.charts();
  }

  async usePicture() {
    try {
      this.wishes.usePicture(await reached(api.blob(this.shown.url)));
    } catch (error) {
      say(sentence(error.message), "error");
    }
  }

  async csv() {
    try {
      const link = h("a", { href: URL.createObjectURL(await reached(api.trajectoryCsv(this.job.id))), download: `superdiff-${this.job.seed}.csv` });
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (error) {
      say(sentence(error.message), "error");
    }
  }

  async copy(kind) {
    const names = { curl: "The curl command", httpx: "The Python code", openai: "The Python code for OpenAI’s client" };
    try {
      await copy(snippets[kind](asked.of(this.job.id), this.job.seed, new URL(".", document.baseURI).href, key() !== null));
      say(`${names[kind]} is copied.`, "good");
    } catch (error) {
      say(`Not copied: ${error.message}.`, "error");
    }
  }
}
