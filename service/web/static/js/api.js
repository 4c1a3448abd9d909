/** The native API. Addresses are relative to the page, so that a proxy may serve both below a prefix. */

import { carried, want } from "./key.js";
import { clientId } from "./store.js";

const RECONNECT_MS = [500, 1000, 2000, 4000, 8000];

/** The service refused or failed; what a problem document (RFC 9457) tells. */
export class Problem extends Error {
  constructor(status, document, retryAfter = null) {
    super(document.detail ?? document.title ?? `The service answered ${status}.`);
    this.status = status;
    /** @type {{pointer: string, detail: string, column?: number}[]} */
    this.errors = document.errors ?? [];
    this.retryAfter = retryAfter;
  }
}

/** Nobody answered. */
export class Unreachable extends Error {
  constructor() {
    super("The service does not answer.");
  }
}

/** A path of the service as an address, below the page's own prefix. */
export const address = (path) => new URL(path.replace(/^\//, ""), document.baseURI).href;

async function call(path, { headers = {}, ...options } = {}) {
  let response;
  try {
    response = await fetch(address(path), { ...options, headers: { "X-Client-Id": clientId, ...carried(), ...headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  if (response.ok) return response;
  const isProblem = /json/.test(response.headers.get("content-type") ?? "");
  const document = isProblem ? await response.json().catch(() => ({})) : {};
  if (response.status === 401) want(document.detail ?? "");
  throw new Problem(response.status, document, Number(response.headers.get("retry-after")) || null);
}

const json = async (path, options) => (await call(path, options)).json();

/** The catalogue. */
export const models = async () => (await json("v1/models")).data;

/** Queue a composition; returns the job's document at once. */
export const superpose = (body) =>
  json("v1/superpose", {
    method: "POST",
    headers: { "Content-Type": "application/json", Prefer: "respond-async" },
    body: JSON.stringify(body),
  });

/** The caller's newest jobs. */
export const jobs = async (limit = 60) => (await json(`v1/jobs?limit=${limit}`)).data;

/** One job. */
export const job = (id) => json(`v1/jobs/${id}`);

/** Cancel a job; returns how it ended. */
export const cancel = (id) => json(`v1/jobs/${id}`, { method: "DELETE" });

/** The weights and log-densities of every step. */
export const trajectory = (id) => json(`v1/jobs/${id}/trajectory`);

/** The same as CSV. */
export const trajectoryCsv = async (id) =>
  (await call(`v1/jobs/${id}/trajectory`, { headers: { Accept: "text/csv" } })).blob();

/** A file of the service. */
export const blob = async (path) => (await call(path)).blob();

/**
 * Follow a job to its last event. A connection that breaks is taken up again after the last event seen.
 * EventSource cannot send headers, hence fetch.
 * @param {string} id
 * @param {{event: (kind: string, data: Object) => void, connection: (up: boolean) => void}} listener
 * @param {AbortSignal} signal
 */
export async function follow(id, listener, signal) {
  const last = { id: null };
  for (let failures = 0; ; failures += 1) {
    try {
      const headers = { Accept: "text/event-stream", ...(last.id === null ? {} : { "Last-Event-ID": last.id }) };
      const response = await call(`v1/jobs/${id}/events`, { headers, signal });
      listener.connection(true);
      for await (const event of serverSentEvents(response.body)) {
        failures = 0;
        last.id = event.id ?? last.id;
        listener.event(event.kind, JSON.parse(event.data));
        if (["completed", "failed", "cancelled"].includes(event.kind)) return;
      }
    } catch (error) {
      if (error.name === "AbortError" || error instanceof Problem) throw error;
    }
    listener.connection(false);
    await pause(RECONNECT_MS[Math.min(failures, RECONNECT_MS.length - 1)], signal);
  }
}

/** The events of a stream (WHATWG HTML, section 9.2). */
export async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { kind: "message", id: null, data: [] };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const raw of lines) {
      const line = raw.replace(/\r$/, "");
      if (line === "") {
        if (event.data.length) yield { ...event, data: event.data.join("\n") };
        event = { kind: "message", id: null, data: [] };
        continue;
      }
      const [, name, text] = /^([^:]*):? ?(.*)$/.exec(line);
      if (name === "event") event.kind = text;
      else if (name === "id") event.id = text;
      else if (name === "data") event.data.push(text);
    }
  }
}

/** Wait; rejects where the signal is aborted. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}
