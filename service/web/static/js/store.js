/** What this browser remembers: who it is, the draft, and what each job was asked. Nothing fails where it may not. */

const PREFIX = "superdiff.";
const KEPT_JOBS = 100;

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // Storage is full or forbidden: the page works without it.
  }
}

// crypto.randomUUID exists only on secure origins; a service in a local network is often plain HTTP.
function drawnName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const client = read("client", null) ?? drawnName();
write("client", client);

/** The name under which this browser's jobs are listed: random, kept. */
export const clientId = client;

/** The composition that is being written. */
export const draft = {
  read: () => read("draft", null),
  write: (value) => write("draft", value),
};

/** What was asked for each job, newest first; the oldest are forgotten. */
export const asked = {
  /** @param {string} id */
  of: (id) => read("asked", []).find((entry) => entry.id === id) ?? null,
  /** @param {{id: string, draft: Object, body: Object}} entry */
  add: (entry) => write("asked", [entry, ...read("asked", []).filter(({ id }) => id !== entry.id)].slice(0, KEPT_JOBS)),
};
