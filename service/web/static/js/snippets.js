/** The same request for a terminal and for Python; with a key, which is read from the environment, or without. What only the page needs is left out; the drawn seed is put in. */

const PAGE_ONLY = new Set(["response_format", "include_lift_maps", "include_trajectory", "preview_every"]);
const FILES = { image: "picture.png", mask: "mask.png" };

/** The body that draws a job's pictures again, pictures by the names of files. */
function again(body, seed) {
  const kept = Object.entries(body).filter(([name]) => !PAGE_ONLY.has(name) && !(name in FILES));
  return { ...Object.fromEntries(kept), seed };
}

/** Whether a text is read as an expression where a plain prompt may stand as well: it has an operator outside quotes. */
const isComposed = (text) =>
  /\b(AND|OR|XOR|NOT|AVERAGE|PRODUCT|AT\s+LEAST)\b/.test(text.replace(/"(?:[^"\\]|\\.)*"/g, ""));

const files = (asked) => Object.entries(FILES).filter(([name]) => asked.body[name]);

/** For a POSIX shell. */
export function curl(asked, seed, origin, keyed) {
  const body = JSON.stringify(again(asked.body, seed)).replace(/'/g, "'\\''");
  const sent = files(asked).map(([name, file]) => `,"${name}":"'"$(base64 < ${file} | tr -d '\\n')"'"`);
  const many = (asked.body.num_images ?? 1) > 1;
  // A picture may be longer than an argument may be, so it goes through the standard input.
  const data = `'${body.slice(0, -1)}${sent.join("")}}'`;
  const lines = [`curl ${origin}v1/superpose`, "-H 'Content-Type: application/json'"];
  if (keyed) lines.push('-H "Authorization: Bearer $SUPERDIFF_KEY"');
  if (!many) lines.push("-H 'Accept: image/png' -o composed.png");
  lines.push(sent.length ? "--data-binary @-" : `-d ${data}`);
  return (sent.length ? `printf '%s' ${data} | ` : "") + lines.join(" \\\n  ");
}

/** Python with httpx. */
export function httpx(asked, seed, origin, keyed) {
  const body = again(asked.body, seed);
  const fields = Object.entries(body).map(([name, value]) => `    "${name}": ${python(value)},`);
  for (const [name, file] of files(asked)) {
    fields.push(`    "${name}": base64.b64encode(pathlib.Path("${file}").read_bytes()).decode(),`);
  }
  return [
    "import base64",
    ...(keyed ? ["import os"] : []),
    "import pathlib",
    "",
    "import httpx",
    "",
    "body = {",
    ...fields,
    "}",
    ...(keyed ? ['headers = {"Authorization": f"Bearer {os.environ[\'SUPERDIFF_KEY\']}"}'] : []),
    `answer = httpx.post("${origin}v1/superpose", json=body, ${keyed ? "headers=headers, " : ""}timeout=600)`,
    "answer.raise_for_status()",
    'for i, image in enumerate(answer.json()["images"]):',
    '    pathlib.Path(f"composed-{i}.png").write_bytes(base64.b64decode(image["b64_json"]))',
    '    print(image["seed"], image["lift"])',
    "",
  ].join("\n");
}

/** Python with OpenAI's client; null for what its `generate` cannot carry: pictures in. */
export function openai(asked, seed, origin, keyed) {
  if (files(asked).length) return null;
  const { expression, num_images: n, ...rest } = again(asked.body, seed);
  const { width, height, ...unsized } = rest;
  const size = width && height ? [`    size="${width}x${height}",`] : [];
  const extra = { ...(isComposed(expression) ? {} : { expression }), ...(size.length ? unsized : rest) };
  return [
    "import base64",
    ...(keyed ? ["import os"] : []),
    "import pathlib",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}v1", api_key=${keyed ? 'os.environ["SUPERDIFF_KEY"]' : '"none"'})`,
    "answer = client.images.generate(",
    `    prompt=${python(expression)},`,
    ...(n ? [`    n=${n},`] : []),
    ...size,
    '    response_format="b64_json",',
    `    extra_body={"superdiff": ${python(extra)}},`,
    ")",
    "for i, image in enumerate(answer.data):",
    '    pathlib.Path(f"composed-{i}.png").write_bytes(base64.b64decode(image.b64_json))',
    "",
  ].join("\n");
}

/** A JSON value as a Python literal: strings, numbers and flat objects are written alike. */
function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
