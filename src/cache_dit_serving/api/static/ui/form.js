// The form of a request, made from GET /capabilities: it has the fields that the loaded model takes, and no others.
import { h, label, seconds } from "./dom.js";
import { FileInput } from "./file_input.js";

/** @import { Capabilities, Fields, Schema, ServerError } from "./client.js" */

const FILES = ["image_urls", "mask_url", "control_url", "last_image_url", "video_url"];
/** Fields that have a place of their own, or that the page sets itself. */
const APART = new Set([
  ...FILES,
  ...["prompt", "negative_prompt", "class_label", "speed", "cache", "loras", "width", "height", "seed", "num_images"],
  ...["num_inference_steps", "num_frames", "include_stats", "output_format", "output_dir", "profile", "sigmas"],
  ...["extra_args", "webhook_url", "webhook_events", "strength", "fit"],
]);
const CACHE_FIELDS = [
  "residual_diff_threshold",
  "max_warmup_steps",
  "max_continuous_cached_steps",
  "max_cached_steps",
  "Fn_compute_blocks",
  "Bn_compute_blocks",
  "enable_taylorseer",
];

/**
 * @typedef {object} Control
 * @property {HTMLElement} row
 * @property {HTMLElement} focus  element that errors lead to
 * @property {() => unknown} read  value to send; undefined: left out
 * @property {(value: any) => void} write  undefined: back to the default
 */

/** Element ids of the form's fields are unique by this. */
let made = 0;

/**
 * A label, its control, and room for the server's words about it.
 * @param {string} name
 * @param {HTMLElement} input
 * @param {{hint?: string, title?: string, beside?: HTMLElement}} [options]
 */
function row(name, input, { hint = "", title = label(name), beside } = {}) {
  const id = `field-${++made}`;
  input.id = id;
  const error = h("p", { class: "error", id: `${id}-error`, hidden: true });
  input.setAttribute("aria-describedby", hint ? `${id}-hint ${error.id}` : error.id);
  const described = hint && h("p", { class: "hint", id: `${id}-hint` }, hint);
  return h(
    "div",
    { class: "field", "data-field": name },
    h("div", { class: "label" }, h("label", { htmlFor: id }, title), beside),
    input,
    described,
    error,
  );
}

/** @param {string | undefined} text */
const firstSentence = (text) => (text ?? "").split(/(?<=\.)\s/)[0].replaceAll("`", "");

/**
 * Control of a scalar field, by its schema.
 * @param {string} name
 * @param {Schema} schema
 * @param {{title?: string, hint?: boolean}} [options]
 * @returns {Control}
 */
export function scalar(name, schema, { title, hint = true } = {}) {
  const words = hint ? firstSentence(schema.description) : "";
  const standing = schema.default ?? null;
  const kind = schema.type ?? (schema.anyOf ?? []).find((/** @type {Schema} */ one) => one.type !== "null")?.type;
  if (schema.enum || kind === "boolean") {
    const values = schema.enum ?? [true, false];
    const select = h("select", {}, h("option", { value: "" }, standing === null ? "default" : `default: ${standing}`));
    for (const value of values) select.append(h("option", { value: JSON.stringify(value) }, String(value)));
    return {
      row: row(name, select, { hint: words, title }),
      focus: select,
      read: () => (select.value === "" ? undefined : JSON.parse(select.value)),
      write: (value) => {
        select.value = value === undefined || value === null ? "" : JSON.stringify(value);
      },
    };
  }
  const number = kind === "integer" || kind === "number";
  const bounds = {
    min: schema.minimum ?? "",
    max: schema.maximum ?? "",
    step: schema.multipleOf ?? (kind === "integer" ? 1 : "any"),
  };
  const input = h("input", {
    type: number ? "number" : "text",
    placeholder: standing === null ? "default" : String(standing),
    autocomplete: "off",
    ...(number ? { ...bounds, inputMode: kind === "integer" ? "numeric" : "decimal" } : {}),
  });
  return {
    row: row(name, input, { hint: words, title }),
    focus: input,
    // What is no number is sent as it stands, so that the server says what is wrong with it.
    read: () => (input.value === "" ? undefined : number ? Number(input.value) : input.value),
    write: (value) => {
      input.value = value === undefined || value === null ? "" : String(value);
    },
  };
}

/**
 * Control of a class, by its name or number.
 * @param {Schema} schema
 * @returns {Control}
 */
function classLabel(schema) {
  const [byNumber, byName] = /** @type {Schema[]} */ (schema.anyOf);
  const names = /** @type {string[]} */ (byName?.enum ?? []);
  const id = `classes-${++made}`;
  const list = h("datalist", { id }, ...names.map((name) => h("option", { value: name })));
  const hint = `${names.length ? "A name, or a" : "A"} number from ${byNumber.minimum} to ${byNumber.maximum}`;
  const input = h("input", { type: "text", list: id, autocomplete: "off", placeholder: names[0] ?? "0" });
  const control = row("class_label", input, { title: "Class", hint });
  control.append(list);
  return {
    row: control,
    focus: input,
    read: () => (input.value === "" ? undefined : /^\d+$/.test(input.value) ? Number(input.value) : input.value),
    write: (value) => {
      input.value = value === undefined || value === null ? "" : String(value);
    },
  };
}

/** The fields of a request. It tells of changes by the event `change`. */
export class Form extends EventTarget {
  /** @type {Map<string, Control>} */
  #controls = new Map();
  /** @type {Map<string, FileInput>} */
  #files = new Map();
  /** @type {Record<string, any>} */
  #kept = {};
  #root;
  #general;

  /**
   * @param {HTMLElement} root
   * @param {Capabilities} capabilities
   */
  constructor(root, capabilities) {
    super();
    this.#root = root;
    this.#general = h("p", { class: "error general", role: "alert", hidden: true });
    this.capabilities = capabilities;
    root.replaceChildren(this.#general, ...this.#made());
    root.addEventListener("input", () => this.#changed());
    root.addEventListener("change", () => this.#changed());
  }

  #changed() {
    this.clearErrors();
    this.dispatchEvent(new Event("change"));
  }

  /**
   * @param {string} name
   * @param {Control} control
   */
  #add(name, control) {
    this.#controls.set(name, control);
    return control.row;
  }

  /** @returns {HTMLElement[]} */
  #made() {
    const { fields } = this.capabilities;
    const parts = [];
    if (fields.prompt) parts.push(this.#text("prompt", fields.prompt, 3));
    if (fields.class_label) parts.push(this.#add("class_label", classLabel(fields.class_label)));
    const files = FILES.filter((name) => name in fields);
    if (files.length) parts.push(this.#filePart(files));
    if (fields.speed) parts.push(this.#add("speed", this.#speed(fields.speed)));
    if (fields.loras) parts.push(this.#loras(fields.loras));
    const numbers = ["width", "height", "num_frames", "num_inference_steps", "num_images"].filter((n) => n in fields);
    const titles = /** @type {Record<string, string>} */ ({
      num_inference_steps: "Steps",
      num_images: "Pictures",
      num_frames: "Frames",
    });
    parts.push(
      h(
        "div",
        { class: "grid" },
        ...numbers.map((name) => this.#add(name, scalar(name, fields[name], { title: titles[name], hint: false }))),
        fields.seed && this.#add("seed", this.#seed(fields.seed)),
      ),
    );
    const more = Object.keys(fields).filter((name) => !APART.has(name) && isScalar(fields[name]));
    const rows = more.map((name) => this.#add(name, scalar(name, fields[name])));
    if (fields.negative_prompt) rows.unshift(this.#text("negative_prompt", fields.negative_prompt, 2));
    if (rows.length) parts.push(h("details", { class: "more" }, h("summary", {}, "More settings"), ...rows));
    if (fields.cache && this.capabilities.cache.supported) parts.push(this.#cachePart());
    return parts.filter((part) => part instanceof HTMLElement);
  }

  /**
   * @param {string} name
   * @param {Schema} schema
   * @param {number} rows
   */
  #text(name, schema, rows) {
    const input = h("textarea", { rows, placeholder: schema.examples?.[0] ?? "", maxLength: schema.maxLength ?? -1 });
    return this.#add(name, {
      row: row(name, input),
      focus: input,
      read: () => (input.value === "" ? undefined : input.value),
      write: (value) => {
        input.value = value ?? "";
      },
    });
  }

  /** @param {string[]} names */
  #filePart(names) {
    const rows = names.map((name) => {
      const input = new FileInput(name, this.capabilities.fields[name]);
      this.#files.set(name, input);
      input.addEventListener("change", () => {
        if (name === "image_urls") this.#files.get("mask_url")?.paintOn(input.file);
        this.#changed();
      });
      return this.#add(name, { row: input.row, focus: input.focus, read: () => undefined, write: () => undefined });
    });
    const beside = ["strength", "fit"].filter((name) => name in this.capabilities.fields);
    rows.push(...beside.map((name) => this.#add(name, scalar(name, this.capabilities.fields[name]))));
    const title = names.includes("video_url") ? "From a picture or video" : "From a picture";
    return h("details", { class: "files" }, h("summary", {}, title), ...rows);
  }

  /**
   * The main choice: how much is approximated, with what was measured of it.
   * @param {Schema} schema
   * @returns {Control}
   */
  #speed(schema) {
    const choices = h("div", { class: "speeds", role: "radiogroup" });
    const group = `speed-${++made}`;
    for (const speed of this.capabilities.speeds) {
      const { measured } = speed;
      const gain = measured?.speedup ? `${measured.speedup}×` : speed.settings ? "–" : "1×";
      const cost = measured?.ssim ? `SSIM ${measured.ssim}` : speed.settings ? "not measured" : "exact";
      const time = speed.seconds ? `≈ ${seconds(speed.seconds)}` : "";
      choices.append(
        h(
          "label",
          { class: "speed", title: speed.allowed ? "" : "above the operator's ceiling" },
          h("input", { type: "radio", name: group, value: speed.name, disabled: !speed.allowed }),
          h("span", { class: "name" }, speed.name),
          h("span", { class: "gain" }, gain),
          h("span", { class: "cost" }, cost),
          h("span", { class: "time" }, time),
        ),
      );
    }
    const chosen = () => /** @type {HTMLInputElement | null} */ (choices.querySelector("input:checked"));
    const write = (/** @type {unknown} */ value) => {
      for (const input of choices.querySelectorAll("input")) input.checked = input.value === (value ?? schema.default);
    };
    write(undefined);
    const control = row("speed", choices, { title: "Speed" });
    choices.setAttribute("aria-label", "Speed");
    return { row: control, focus: choices, read: () => chosen()?.value, write };
  }

  /**
   * @param {Schema} schema
   * @returns {Control}
   */
  #seed(schema) {
    const control = scalar("seed", schema, { hint: false });
    const input = /** @type {HTMLInputElement} */ (control.focus);
    input.placeholder = "random";
    const lock = h("input", { type: "checkbox" });
    const beside = h("label", { class: "lock", title: "Keep the seed of the last output" }, lock, "keep");
    control.row.querySelector(".label")?.append(beside);
    lock.addEventListener("change", () => {
      if (!lock.checked) input.value = "";
      else if (input.value === "" && this.lastSeed !== undefined) input.value = String(this.lastSeed);
    });
    input.addEventListener("input", () => {
      lock.checked = input.value !== "";
    });
    const write = control.write;
    control.write = (value) => {
      write(value);
      lock.checked = value !== undefined && value !== null;
    };
    return control;
  }

  /** Seed of the newest output: the lock keeps it. @type {number | undefined} */
  lastSeed;

  /** @param {Schema} schema */
  #loras(schema) {
    const list = h("div", { class: "loras" });
    const sliders = loraBounds(schema).map(({ name, low, high }) => {
      const bounds = { min: low, max: high, step: 0.05 };
      const scale = h("input", { type: "range", ...bounds, value: "0", "aria-label": `Scale of ${name}` });
      const output = h("output", {}, "off");
      const show = () => {
        output.textContent = Number(scale.value) === 0 ? "off" : Number(scale.value).toFixed(2);
      };
      scale.addEventListener("input", show);
      list.append(h("label", { class: "lora" }, h("span", {}, name), scale, output));
      return { name, scale, show };
    });
    const standing = /** @type {{name: string, scale: number}[]} */ (schema.default ?? []);
    const read = () => {
      const drawn = (/** @type {{name: string, scale: number}[]} */ all) => all.filter(({ scale }) => scale !== 0);
      const chosen = drawn(sliders.map(({ name, scale }) => ({ name, scale: Number(scale.value) })));
      const sorted = (/** @type {{name: string}[]} */ all) => [...all].sort((a, b) => (a.name < b.name ? -1 : 1));
      // Left as the operator has them, they are left out.
      return JSON.stringify(sorted(chosen)) === JSON.stringify(sorted(drawn(standing))) ? undefined : chosen;
    };
    const write = (/** @type {{name: string, scale?: number}[] | undefined} */ value) => {
      for (const { name, scale, show } of sliders) {
        const found = (value ?? standing).find((one) => one.name === name);
        scale.value = String(found ? (found.scale ?? 1) : 0);
        show();
      }
    };
    write(undefined);
    const control = row("loras", list, { title: "LoRAs" });
    return this.#add("loras", { row: control, focus: list, read, write });
  }

  #cachePart() {
    const { fields } = this.capabilities.cache;
    const names = CACHE_FIELDS.filter((name) => name in fields);
    const rows = names.map((name) =>
      this.#add(`cache.${name}`, scalar(`cache.${name}`, fields[name], { title: label(name) })),
    );
    const words = "These override what the speed sets, for this request.";
    return h(
      "details",
      { class: "cache" },
      h("summary", {}, "Cache settings"),
      h("p", { class: "hint" }, words),
      ...rows,
    );
  }

  /**
   * Fields to send: those that differ from the model's own.
   * @returns {Fields}
   */
  read() {
    /** @type {Record<string, any>} */
    const fields = { ...this.#kept };
    for (const [name, control] of this.#controls) {
      const value = control.read();
      if (value === undefined) continue;
      if (name.startsWith("cache.")) fields.cache = { ...fields.cache, [name.slice(6)]: value };
      else fields[name] = value;
    }
    for (const [name, input] of this.#files) {
      if (input.value !== undefined) fields[name] = name === "image_urls" ? [input.value] : input.value;
    }
    return fields;
  }

  /** Names of the chosen files on the caller's disk, by field. */
  names() {
    return Object.fromEntries([...this.#files].map(([name, input]) => [name, input.name]).filter(([, name]) => name));
  }

  /**
   * Fill in a request; what it leaves out gets the model's default. Settings of the cache that are those of a speed
   * become that speed.
   * @param {Fields} fields
   */
  write(fields) {
    const cache = /** @type {Record<string, any>} */ (fields.cache ?? {});
    const speed = fields.speed ?? this.#speedOf(cache);
    for (const [name, control] of this.#controls) {
      if (name === "speed") control.write(speed);
      else if (name.startsWith("cache.")) control.write(speed && !fields.speed ? undefined : cache[name.slice(6)]);
      else if (!FILES.includes(name)) control.write(fields[name]);
    }
    const known = new Set(this.#controls.keys());
    // What has no control here is sent on as it came.
    this.#kept = Object.fromEntries(
      Object.entries(fields).filter(([name]) => !known.has(name) && !["cache", "include_stats"].includes(name)),
    );
    this.#changed();
  }

  /**
   * Speed whose settings these are.
   * @param {Record<string, any>} settings
   */
  #speedOf(settings) {
    if (settings.enabled === false) return this.capabilities.speeds.find((speed) => !speed.settings)?.name;
    const keys = Object.keys(settings).filter((key) => key !== "enabled" && key !== "strict");
    if (!keys.length) return undefined;
    return this.capabilities.speeds.find(
      (speed) =>
        speed.settings && keys.every((key) => JSON.stringify(speed.settings?.[key]) === JSON.stringify(settings[key])),
    )?.name;
  }

  /**
   * @param {string} name
   * @param {unknown} value
   */
  setField(name, value) {
    this.#controls.get(name)?.write(value);
    this.#controls.get(name)?.row.closest("details")?.setAttribute("open", "");
    this.#changed();
  }

  /**
   * Take a picture as the one to begin from.
   * @param {Blob} blob
   * @param {string} name
   */
  async takePicture(blob, name) {
    const input = this.#files.get("image_urls");
    if (!input) return false;
    input.row.closest("details")?.setAttribute("open", "");
    await input.take(new File([blob], name, { type: blob.type }));
    return true;
  }

  get takesPictures() {
    return this.#files.has("image_urls");
  }

  /**
   * Show an error beside the field that it concerns.
   * @param {ServerError} error
   */
  showError(error) {
    this.clearErrors();
    const words = error.retryAfter ? `${error.message} (try again in ${error.retryAfter} s)` : error.message;
    const control = this.#controlOf(error.param);
    const place = control?.row.querySelector(".error");
    if (!control || !(place instanceof HTMLElement)) {
      this.#general.textContent = words;
      this.#general.hidden = false;
      this.#general.scrollIntoView({ block: "nearest" });
      return;
    }
    place.textContent = words;
    place.hidden = false;
    control.focus.setAttribute("aria-invalid", "true");
    control.row.closest("details")?.setAttribute("open", "");
    control.focus.focus();
  }

  clearErrors() {
    this.#general.hidden = true;
    for (const place of this.#root.querySelectorAll(".error")) /** @type {HTMLElement} */ (place).hidden = true;
    for (const input of this.#root.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  }

  /** @param {string | null} param  `image_urls.0`, `cache.max_warmup_steps` */
  #controlOf(param) {
    for (let name = param ?? ""; name; name = name.slice(0, Math.max(0, name.lastIndexOf(".")))) {
      const found = this.#controls.get(name);
      if (found) return found;
    }
    return undefined;
  }
}

/**
 * LoRAs that a request may name, with the bounds of their scales.
 * @param {Schema} schema
 * @returns {{name: string, low: number, high: number}[]}
 */
export function loraBounds(schema) {
  return (schema.items?.anyOf ?? []).map((/** @type {Schema} */ { properties: { name, scale } }) => {
    return { name: name.const, low: scale.minimum, high: scale.maximum };
  });
}

/** @param {Schema} schema */
function isScalar(schema) {
  return !["array", "object"].includes(schema.type) && !schema.properties && !schema.items;
}
