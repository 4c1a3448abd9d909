/** The page: what is written, what is asked for, what is shown. */

import * as api from "./api.js";
import { Composer } from "./composer.js";
import { onReturn, reached } from "./connection.js";
import { $, say } from "./dom.js";
import { Editor, fittingSize } from "./editor.js";
import { mark, sentence, unmark } from "./faults.js";
import { Gallery } from "./gallery.js";
import { onGiven } from "./key.js";
import * as settings from "./settings.js";
import { Stage } from "./stage.js";
import * as store from "./store.js";
import * as theme from "./theme.js";

/** What the page asks for besides: pictures by their addresses, and all that there is to show of them. */
const PAGE = { response_format: "url", include_lift_maps: true, include_trajectory: true };
/** Fields of the body that another element on the page stands for. */
const ELSEWHERE = { image: "file", mask: "mask", strength: "strength", mask_feather: "mask" };

const calm = matchMedia("(prefers-reduced-motion: reduce)");

theme.start();
settings.fill({});
const composer = new Composer(keep);
const editor = new Editor(sizeFor);
const stage = new Stage({ changed: () => gallery.refresh(), usePicture, useSettings });
const gallery = new Gallery({ open, useSettings });

const begun = store.draft.read();
if (begun) take(begun);

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  compose();
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
    event.preventDefault();
    compose();
  }
});
// A textarea of one prompt has no lines: Enter is for what a form does with it.
$("components").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && event.target.matches(".prompt") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    compose();
  }
});
$("composer").addEventListener("input", (event) => {
  if (event.target.name) unmark(event.target);
  keep();
});
$("reset-settings").addEventListener("click", () => {
  settings.fill({});
  composer.refresh();
  keep();
  say("The settings are reset.");
});
onReturn(start);
onGiven(start);
start();

async function start() {
  try {
    composer.offer(await reached(api.models()));
  } catch (error) {
    if (error instanceof api.Problem && error.status !== 401) say(sentence(error.message), "error");
    return;
  }
  await gallery.refresh();
  // A page that is opened again goes on with what still runs.
  const running = gallery.active[0];
  if (running && !stage.job) show(running);
}

/** Remember what is written, for the next time that the page opens. */
function keep() {
  store.draft.write(written());
}

function written() {
  return { ...composer.draft, settings: settings.values(), strength: editor.strength };
}

function take(draft) {
  settings.fill(draft.settings);
  composer.load(draft);
  editor.setStrength(draft.strength ?? null);
}

async function compose() {
  if ($("compose").getAttribute("aria-disabled") === "true") return;
  const expression = composer.expression();
  const fields = expression === null ? null : settings.body();
  if (fields === null) {
    say("Something is missing above.", "error");
    return;
  }
  const body = { expression, ...fields, ...PAGE, ...pictures(fields) };
  busy(true);
  say("Sending…");
  try {
    const job = await reached(api.superpose(body));
    remember(job, body);
    say(job.queue_position > 0 ? `Waiting: ${job.queue_position} jobs ahead.` : "Composing…");
    open(job);
  } catch (error) {
    refused(error);
  } finally {
    busy(false);
  }
}

/** The picture, its mask and strength, and, where the user names none, the size that suits the model. */
function pictures(fields) {
  const sent = editor.value();
  if (!sent) return {};
  return { ...sent, ...(fields.width || fields.height ? {} : sizeFor(editor.size)) };
}

/** The size that a picture is drawn at, where it is not its own. */
function sizeFor(size) {
  return fittingSize(size, composer.modelOf(composer.components[0]));
}

/** Begin from a picture of the stage. */
async function usePicture(blob) {
  await editor.load(blob);
  $("from-picture").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "nearest" });
  $("mask").focus({ preventScroll: true });
}

/** Pictures are too large to keep: that there were some is. */
function remember(job, body) {
  const { image, mask, ...rest } = body;
  const had = { ...(image ? { image: true } : {}), ...(mask ? { mask: true } : {}) };
  store.asked.add({ id: job.id, draft: written(), body: { ...rest, ...had } });
}

function busy(sending) {
  $("compose").setAttribute("aria-disabled", String(sending));
}

/** Put a job on the stage. */
function show(job) {
  gallery.mark(job.id);
  gallery.refresh();
  stage.open(job);
}

/** Put a job on the stage, and the stage into view. */
function open(job) {
  show(job);
  const { top, bottom } = $("stage").getBoundingClientRect();
  if (top > innerHeight / 2 || bottom < innerHeight / 4) {
    $("stage").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "start" });
  }
}

/** Each error at its field; all of them in the status region. */
function refused(error) {
  if (!(error instanceof api.Problem)) {
    if (!(error instanceof api.Unreachable)) throw error;
    say("The service does not answer. Your composition is kept; try again when it is back.", "error");
    return;
  }
  const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const placed = error.errors.map((each) => placeFault(each));
  const all = error.errors.length && placed.every(Boolean) ? error.errors.map(({ detail }) => sentence(detail)).join(" ") : sentence(error.message);
  say(all + again, "error");
}

/** Show an error at the field that its pointer names; false where the page has no such field. */
function placeFault(fault) {
  const name = fault.pointer.split("/")[1];
  if (name === "expression") {
    composer.refused(fault);
    return true;
  }
  const field = name in ELSEWHERE ? $(ELSEWHERE[name]) : settings.fieldOf(name);
  if (!field) return false;
  mark(field, sentence(fault.detail));
  field.focus();
  return true;
}

/** Take up what a job was asked, with the seed that it had. */
function useSettings(id) {
  const kept = store.asked.of(id);
  if (!kept) return;
  const seed = gallery.jobs.find((job) => job.id === id)?.seed ?? stage.job?.seed;
  take({ ...kept.draft, settings: { ...kept.draft.settings, seed: seed ?? kept.draft.settings.seed } });
  keep();
  $("settings-section").open = true;
  const lost = kept.body.image ? " The picture it started from is not stored: load it again." : "";
  say(`The settings and the seed of that picture are loaded.${lost}`);
  $("composer").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "start" });
}
