// Requests of the page, in the words of other clients.

/** Fields with a picture or video, and the names of their files in a form. */
const FILES = /** @type {const} */ ({
  image_urls: "image",
  mask_url: "mask",
  control_url: "control",
  last_image_url: "last_image",
  video_url: "video",
});
/** Fields of the page's own wish, which a program need not repeat. */
const OWN = new Set(["include_stats", "output_format"]);

/**
 * @typedef {object} Wanted
 * @property {Record<string, any>} fields  fields of the request; files as data URIs
 * @property {Record<string, string>} names  names of the files on the caller's disk, by field
 * @property {string} url  base URL of the server
 * @property {boolean} keyed  true if the server needs a key
 * @property {string} model
 * @property {"image" | "video" | "audio"} kind
 * @property {string} [output]  name of the files to write, without its ending
 */

/** @param {Wanted} wanted */
function split({ fields, names }) {
  /** @type {[keyof typeof FILES, string][]} */
  const files = [];
  /** @type {Record<string, any>} */
  const plain = {};
  for (const [name, value] of Object.entries(fields)) {
    if (OWN.has(name)) continue;
    if (name in FILES) {
      const key = /** @type {keyof typeof FILES} */ (name);
      files.push([key, names[name] ?? `${FILES[key]}.png`]);
    } else plain[name] = value;
  }
  return { files, plain };
}

/** @param {"image" | "video" | "audio"} kind */
function suffix(kind, /** @type {Record<string, any>} */ fields) {
  const chosen = fields[`${kind}_format`] ?? { image: "png", video: "mp4", audio: "wav" }[kind];
  return { name: chosen === "jpeg" ? "jpg" : chosen, type: `${kind}/${chosen}` };
}

/**
 * A text within single quotes of a POSIX shell.
 * @param {string} text
 */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** @param {Wanted} wanted */
export function curl(wanted) {
  const { files, plain } = split(wanted);
  const { name, type } = suffix(wanted.kind, plain);
  const many = Number(plain.num_images ?? 1) > 1;
  const lines = [`curl -sS --fail-with-body ${quoted(`${wanted.url}generate`)}`];
  if (wanted.keyed) lines.push('-H "Authorization: Bearer $API_KEY"');
  if (files.length) {
    for (const [field, file] of files) lines.push(`-F ${quoted(`${FILES[field]}=@${file}`)}`);
    for (const [field, value] of Object.entries(plain)) {
      // --form-string: a value that begins with @ or < is no file.
      lines.push(`--form-string ${quoted(`${field}=${typeof value === "object" ? JSON.stringify(value) : value}`)}`);
    }
  } else {
    lines.push("-H 'Content-Type: application/json'", `--data-raw ${quoted(JSON.stringify(plain))}`);
  }
  if (many) lines.push(`-o ${wanted.output ?? "answer"}.json`);
  else lines.push(`-H 'Accept: ${type}'`, `-o ${wanted.output ?? "output"}.${name}`);
  return `${lines.join(" \\\n  ")}\n`;
}

/**
 * A JSON value as Python writes it.
 * @param {unknown} value
 * @returns {string}
 */
function literal(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([key, part]) => `${JSON.stringify(key)}: ${literal(part)}`)
      .join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** @param {string} name of a file */
const inBase64 = (name) => `base64.b64encode(open(${literal(name)}, "rb").read()).decode()`;

/** @param {Wanted} wanted */
export function python(wanted) {
  const { files, plain } = split(wanted);
  const { name } = suffix(wanted.kind, plain);
  const output = wanted.output ?? "output";
  const lines = Object.entries(plain).map(([field, value]) => `        ${field}=${literal(value)},`);
  for (const [field, file] of files) {
    const value = field === "image_urls" ? `[${inBase64(file)}]` : inBase64(file);
    lines.push(`        ${field}=${value},`);
  }
  const key = wanted.keyed ? ', token=os.environ["API_KEY"]' : "";
  const save =
    wanted.kind === "image"
      ? `for number, image in enumerate(answer["images"]):\n    open(f"${output}-{number}.${name}", "wb").write(base64.b64decode(image))`
      : `open("${output}.${name}", "wb").write(base64.b64decode(answer["${wanted.kind}"]))`;
  return `import base64
${wanted.keyed ? "import os\n" : ""}
import bentoml

with bentoml.SyncHTTPClient(${literal(wanted.url.replace(/\/$/, ""))}${key}, timeout=1800) as client:
    answer = client.generate(
${lines.join("\n")}
    )
${save}
print(answer["seeds"], answer["cache"]["cached_steps"], "of", answer["cache"]["steps"], "steps reused")
`;
}

/**
 * The same by OpenAI's SDK; null where its API has no such request.
 * @param {Wanted} wanted
 */
export function openai(wanted) {
  const { files, plain } = split(wanted);
  const names = files.map(([field]) => field);
  if (wanted.kind === "audio" || names.some((field) => !["image_urls", "mask_url"].includes(field))) return null;
  if (wanted.kind === "video" && names.length) return null;
  if ("class_label" in plain) return null;
  const { model = wanted.model, prompt, width, height, num_images, image_format, image_quality, ...further } = plain;
  const given = [`model=${literal(model)}`, `prompt=${literal(prompt ?? "")}`];
  if (width && height) given.push(`size=${literal(`${width}x${height}`)}`);
  const images = wanted.kind === "image";
  if (images && num_images) given.push(`n=${num_images}`);
  if (images && image_format) given.push(`output_format=${literal(image_format)}`);
  if (images && image_quality) given.push(`output_compression=${image_quality}`);
  for (const [field, file] of files) given.push(`${FILES[field]}=open(${literal(file)}, "rb")`);
  if (Object.keys(further).length) given.push(`extra_body=${literal(further)}`);
  const key = wanted.keyed ? 'os.environ["API_KEY"]' : '"none"';
  const { name } = suffix(wanted.kind, plain);
  const output = wanted.output ?? "output";
  const call = images ? `client.images.${files.length ? "edit" : "generate"}` : "client.videos.create_and_poll";
  const save = images
    ? `for number, image in enumerate(answer.data):\n    open(f"${output}-{number}.${name}", "wb").write(base64.b64decode(image.b64_json))`
    : `client.videos.download_content(answer.id).write_to_file("${output}.${name}")`;
  return `${images ? "import base64\n" : ""}${wanted.keyed ? "import os\n" : ""}
from openai import OpenAI

client = OpenAI(base_url=${literal(`${wanted.url}v1`)}, api_key=${key})
answer = ${call}(
    ${given.join(",\n    ")},
)
${save}
`.trimStart();
}

/**
 * A comparison, by language: a request for each of its sides, one after the other.
 * @param {Wanted[]} sides
 * @returns {Record<string, string | null>}
 */
export function comparison(sides) {
  const byOpenai = sides.map(openai);
  return {
    curl: sides.map(curl).join("\n"),
    Python: sides.map(python).join("\n"),
    "OpenAI SDK": byOpenai.includes(null) ? null : byOpenai.join("\n"),
  };
}

/**
 * An action of the operator, by language.
 * @param {import("./client.js").Client} client
 * @param {string} method
 * @param {string} route
 * @param {unknown} [body]
 * @returns {Record<string, string>}
 */
export function action(client, method, route, body) {
  const url = client.at(route);
  const lines = [`curl -sS --fail-with-body -X ${method} ${quoted(url)}`];
  const given = [literal(method), literal(url)];
  if (client.key) {
    lines.push('-H "Authorization: Bearer $API_KEY"');
    given.push(`headers={"Authorization": "Bearer " + os.environ["API_KEY"]}`);
  }
  if (body !== undefined) {
    lines.push("-H 'Content-Type: application/json'", `--data-raw ${quoted(JSON.stringify(body))}`);
    given.push(`json=${literal(body)}`);
  }
  const python = `${client.key ? "import os\n\n" : ""}import httpx

answer = httpx.request(
    ${given.join(",\n    ")},
    timeout=1800,
)
print(answer.text)
answer.raise_for_status()
`;
  return { curl: `${lines.join(" \\\n  ")}\n`, Python: python };
}
