// The form of a request, made from GET /capabilities: it has the fields that the loaded model takes, and no others.
import { classLabel, isScalar, scalar, text } from "./controls.js";
import { h, label } from "./dom.js";
import { FileInput } from "./file_input.js";
import { furtherArguments } from "./further_arguments.js";
import { loraSliders } from "./lora_sliders.js";
import { noiseLevels } from "./noise_levels.js";
import { seedField } from "./seed_field.js";
import { speedChoice } from "./speed_choice.js";

/** @import { Capabilities, Fields, ServerError } from "./client.js" */
/** @import { Control } from "./controls.js" */

const FILES = ["image_urls", "mask_url", "control_url", "last_image_url", "video_url"];
/** Fields that have a place of their own, or that the page sets itself. */
const APART = new Set([
  ...FILES,
  ...["prompt", "negative_prompt", "class_label", "speed", "cache", "loras", "width", "height", "seed", "num_images"],
  ...["num_inference_steps", "num_frames", "include_stats", "output_format", "output_dir", "profile", "sigmas"],
  ...["extra_args", "scheduler", "shift", "webhook_url", "webhook_events", "strength", "fit"],
]);
/** Fields of a request that the form neither shows nor keeps. The page chooses the model. */
const NOT_OF_THE_FORM = new Set(["cache", "include_stats", "model"]);
const SAMPLING = ["scheduler", "shift"];
/** Hints in place of those for programs. */
const HINTS = /** @type {Record<string, string>} */ ({
  scheduler: "",
  fit: "A picture of another shape is cut, gets bars, or is stretched.",
  priority: "A higher one runs first.",
  image_format: "",
  video_format: "",
  audio_format: "",
});
const CACHE_FIELDS = [
  "residual_diff_threshold",
  "max_warmup_steps",
  "max_continuous_cached_steps",
  "max_cached_steps",
  "Fn_compute_blocks",
  "Bn_compute_blocks",
  "enable_taylorseer",
];

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
  #closed = new AbortController();

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
    this.#showUsualSteps();
    const { signal } = this.#closed;
    root.addEventListener("input", () => this.#changed(), { signal });
    root.addEventListener("change", () => this.#changed(), { signal });
  }

  /** Leave the place to another form. */
  close() {
    this.#closed.abort();
  }

  /** Show how many steps a request has that leaves them out: as many as noise levels, or those of its speed. */
  #showUsualSteps() {
    const steps = this.#controls.get("num_inference_steps")?.focus;
    if (!(steps instanceof HTMLInputElement)) return;
    const levels = this.#controls.get("sigmas")?.read();
    const chosen = this.#controls.get("speed")?.read();
    const speed = this.capabilities.speeds.find(({ name }) => name === chosen);
    const usual = speed?.num_inference_steps ?? this.capabilities.fields.num_inference_steps.default;
    steps.placeholder = String(Array.isArray(levels) ? levels.length : usual);
  }

  #changed() {
    this.clearErrors();
    this.#showUsualSteps();
    for (const control of this.#controls.values()) {
      const fault = control.fault?.();
      if (fault) say(control, fault);
    }
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

  /** @param {string} name */
  #scalar(name) {
    return this.#add(name, scalar(name, this.capabilities.fields[name], { hint: HINTS[name] }));
  }

  /** @returns {HTMLElement[]} */
  #made() {
    const { fields } = this.capabilities;
    const parts = [];
    if (fields.prompt) parts.push(this.#add("prompt", text("prompt", fields.prompt, 3)));
    if (fields.class_label) parts.push(this.#add("class_label", classLabel(fields.class_label)));
    const files = FILES.filter((name) => name in fields);
    if (files.length) parts.push(this.#filePart(files));
    if (fields.speed) parts.push(this.#add("speed", speedChoice(fields.speed, this.capabilities.speeds)));
    if (fields.loras) parts.push(this.#add("loras", loraSliders(fields.loras)));
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
        ...numbers.map((name) => this.#add(name, scalar(name, fields[name], { title: titles[name], hint: "" }))),
        fields.seed &&
          this.#add(
            "seed",
            seedField(fields.seed, () => this.lastSeed),
          ),
      ),
    );
    parts.push(this.#samplingPart(), this.#morePart());
    if (fields.cache && this.capabilities.cache.supported) parts.push(this.#cachePart());
    return parts.filter((part) => part instanceof HTMLElement);
  }

  /** The steps' noise: scheduler, shift and noise levels. */
  #samplingPart() {
    const { fields } = this.capabilities;
    const rows = SAMPLING.filter((name) => name in fields).map((name) => this.#scalar(name));
    if (fields.sigmas) rows.push(this.#add("sigmas", noiseLevels("sigmas", fields.sigmas)));
    return rows.length && h("details", { class: "sampling" }, h("summary", {}, "Sampling"), ...rows);
  }

  #morePart() {
    const { fields } = this.capabilities;
    const names = Object.keys(fields).filter((name) => !APART.has(name) && isScalar(fields[name]));
    const rows = names.map((name) => this.#scalar(name));
    const { negative_prompt: negative, extra_args: further } = fields;
    if (negative) rows.unshift(this.#add("negative_prompt", text("negative_prompt", negative, 2)));
    if (further) rows.push(this.#add("extra_args", furtherArguments("extra_args", further)));
    return rows.length && h("details", { class: "more" }, h("summary", {}, "More settings"), ...rows);
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
    rows.push(...beside.map((name) => this.#scalar(name)));
    const title = names.includes("video_url") ? "From a picture or video" : "From a picture";
    return h("details", { class: "files" }, h("summary", {}, title), ...rows);
  }

  /** Seed of the newest output: the lock keeps it. @type {number | undefined} */
  lastSeed;

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
      Object.entries(fields).filter(([name]) => !known.has(name) && !NOT_OF_THE_FORM.has(name)),
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

  /**
   * Take the files of another form, as far as this one has their fields.
   * @param {Form} other
   */
  async takeFiles(other) {
    for (const [name, { file }] of other.#files) {
      const input = this.#files.get(name);
      if (!input || !file) continue;
      input.row.closest("details")?.setAttribute("open", "");
      await input.take(file);
    }
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
    if (!control) {
      this.#general.textContent = words;
      this.#general.hidden = false;
      this.#general.scrollIntoView({ block: "nearest" });
      return;
    }
    say(control, words);
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
 * Show words beside a control.
 * @param {Control} control
 * @param {string} words
 */
function say(control, words) {
  const place = control.row.querySelector(".error");
  if (!(place instanceof HTMLElement)) return;
  place.textContent = words;
  place.hidden = false;
  control.focus.setAttribute("aria-invalid", "true");
}
