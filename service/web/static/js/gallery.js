/** The jobs of this browser, as the service lists them. */

import * as api from "./api.js";
import { reached } from "./connection.js";
import { $, h, say, show } from "./dom.js";
import { sentence } from "./faults.js";
import { point } from "./pictures.js";
import { asked } from "./store.js";

const AGAIN_MS = 3000;
const ACTIVE = ["queued", "running"];

export class Gallery {
  /** @param {{open: (job: Object) => void, useSettings: (id: string) => void}} wishes */
  constructor(wishes) {
    this.wishes = wishes;
    this.jobs = [];
    this.timer = null;
    this.told = null;
    this.current = null;
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.refresh());
  }

  /** Ask for the list; ask again while something runs and somebody looks. */
  async refresh() {
    clearTimeout(this.timer);
    try {
      this.jobs = await reached(api.jobs());
    } catch (error) {
      if (error instanceof api.Problem) say(sentence(error.message), "error");
      return;
    }
    this.render();
    if (this.active.length && document.visibilityState === "visible") {
      this.timer = setTimeout(() => this.refresh(), AGAIN_MS);
    }
  }

  /** The jobs that are not over, newest first. */
  get active() {
    return this.jobs.filter(({ status }) => ACTIVE.includes(status));
  }

  /** Mark the job that is on the stage. */
  mark(id) {
    this.current = id;
    this.render();
  }

  render() {
    const { jobs } = this;
    // Nothing is drawn anew where nothing has changed: focus stays where it is.
    const told = JSON.stringify([jobs.map(({ id, status }) => [id, status]), this.current]);
    if (told === this.told) return;
    this.told = told;
    const focused = document.activeElement?.id;
    show($("gallery-empty"), !jobs.length);
    $("gallery").replaceChildren(...jobs.map((job) => this.card(job)));
    if (focused && $("gallery").contains($(focused))) $(focused).focus();
  }

  card(job) {
    const kept = asked.of(job.id);
    const title = kept?.body.expression ?? job.components.join(" · ");
    const active = ACTIVE.includes(job.status);
    const picture =
      job.status === "completed"
        ? h("img", { alt: "", loading: "lazy", width: "128", height: "128" })
        : h("span", { class: "placeholder" }, active ? "…" : job.status);
    if (picture.tagName === "IMG") point(picture, "src", `/v1/jobs/${job.id}/images/0`);
    const open = h(
      "button",
      {
        type: "button",
        class: "card",
        id: `open-${job.id}`,
        "aria-label": `Show ${title}, ${job.status}`,
        "aria-current": job.id === this.current ? "true" : null,
        click: () => this.wishes.open(job),
      },
      picture,
    );
    return h(
      "li",
      { "data-job": job.id, "data-status": job.status },
      open,
      h("p", { class: "card-title", title }, title),
      h(
        "div",
        { class: "row" },
        h("span", { class: `badge ${job.status}` }, job.status),
        active
          ? h("button", { type: "button", class: "link", id: `cancel-${job.id}`, "aria-label": `Cancel ${title}`, click: () => this.cancel(job.id) }, "Cancel")
          : null,
        kept && !active
          ? h("button", { type: "button", class: "link", id: `use-${job.id}`, "aria-label": `Use settings of ${title}`, click: () => this.wishes.useSettings(job.id) }, "Use settings")
          : null,
      ),
    );
  }

  async cancel(id) {
    try {
      await reached(api.cancel(id));
    } catch (error) {
      say(sentence(error.message), "error");
    }
    this.refresh();
  }
}
