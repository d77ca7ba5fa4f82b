// The place of the output: it forms here, and what the cache did stands below it.
import { fill, h, s, seconds } from "./dom.js";
import { legend, stepBar, timeline } from "./timeline.js";

/** @import { Capabilities, Evidence, Preview, Progress } from "./client.js" */
/** @import { Drawn } from "./history.js" */

/**
 * Element that shows a file by its media type.
 * @param {Blob} file
 * @param {string} words
 */
export function shown(file, words) {
  const src = URL.createObjectURL(file);
  const loaded = () => URL.revokeObjectURL(src);
  if (file.type.startsWith("video/"))
    return h("video", { src, controls: true, loop: true, autoplay: true, muted: true });
  if (file.type.startsWith("audio/")) return h("audio", { src, controls: true });
  return h("img", { src, alt: words, onload: loaded, draggable: true });
}

/** @param {Blob} file */
export function suffixOf(file) {
  const type = file.type.split("/")[1] ?? "bin";
  return type === "jpeg" ? "jpg" : type.replace(/^x-/, "");
}

/** Stages that take less are left out, seconds. */
const LEAST_TOLD_S = 0.005;
/** Prompts to begin with; the embedded model knows them too. */
const IDEAS = ["a red apple on a blue background", "a panda on a pink background", "a robot on a yellow background"];
const TASKS = /** @type {Record<string, string>} */ ({ img2img: "image to image", inpaint: "inpainting" });

export class Stage {
  #root;
  #live;
  /** @type {Capabilities} */
  #capabilities;
  #ontry;
  /** Name of the model among several; empty: there is one. */
  #model = "";
  /** True until something was drawn or shown. */
  #untouched = true;

  /**
   * @param {HTMLElement} root
   * @param {HTMLElement} live  region that screen readers read out
   * @param {Capabilities} capabilities
   * @param {(prompt: string) => void} ontry  called when someone takes an idea up
   */
  constructor(root, live, capabilities, ontry) {
    this.#root = root;
    this.#live = live;
    this.#capabilities = capabilities;
    this.#ontry = ontry;
    this.#root.replaceChildren(this.#empty());
  }

  /**
   * Take outputs of another model from now on. The one that is shown stays.
   * @param {Capabilities} capabilities
   * @param {string} model  its name
   */
  use(capabilities, model) {
    this.#capabilities = capabilities;
    this.#model = model;
    if (this.#untouched) this.#root.replaceChildren(this.#empty());
  }

  #empty() {
    const { model, tasks, fields } = this.#capabilities;
    const can = tasks.map((task) => TASKS[task] ?? task.replaceAll("-", " ")).join(", ");
    const idea = (/** @type {string} */ prompt) =>
      h("button", { type: "button", class: "quiet", onclick: () => this.#ontry(prompt) }, prompt);
    return h(
      "div",
      { class: "empty" },
      sketch(),
      h("p", { class: "big" }, "Nothing drawn yet"),
      h(
        "p",
        {},
        "Describe what to draw. Beside it you will see which steps were computed, and which the cache reused.",
      ),
      h("p", { class: "hint" }, h("code", {}, this.#model || model), `: ${can}`),
      fields.prompt && h("div", { class: "actions", role: "group", "aria-label": "Ideas" }, ...IDEAS.map(idea)),
    );
  }

  /** @param {string} words */
  say(words) {
    this.#live.textContent = words;
  }

  /**
   * Show a generation as it runs.
   * @param {Record<string, any>} fields
   * @param {() => void} cancel
   */
  begin(fields, cancel) {
    this.#untouched = false;
    const image = h("img", { class: "forming", alt: "The output as it forms", hidden: true });
    const status = h("p", { class: "status" }, "Sending");
    const meter = h("progress", { max: 1, value: 0, "aria-label": "Steps" });
    const bar = h("div", { class: "bar-place" });
    const button = h("button", { type: "button", id: "cancel", onclick: cancel }, "Cancel");
    const frame = h("div", { class: "frame waiting" }, image, h("div", { class: "shimmer" }));
    const side = (/** @type {string} */ name) => Number(fields[name] ?? this.#capabilities.fields[name]?.default);
    const ratio = side("width") / side("height");
    if (ratio > 0) frame.style.aspectRatio = String(ratio);
    const account = h("div", { class: "account" }, status, meter, bar, h("div", { class: "actions" }, button));
    fill(this.#root, h("div", { class: "drawn running" }, h("div", { class: "picture" }, frame), account));
    let cells = /** @type {ReturnType<typeof stepBar> | null} */ (null);
    let last = { step: 0, cached_steps: 0 };
    this.say("The request is sent");
    return {
      /** @param {string} words */
      tell: (words) => {
        status.textContent = words;
      },
      /** @param {Progress} progress */
      progress: ({ step, steps, cached_steps, seconds_left }) => {
        if (!steps) return;
        if (!cells) {
          cells = stepBar(steps);
          bar.replaceChildren(cells.element, legend());
          this.say("Drawing");
        }
        const reused = cached_steps > last.cached_steps ? cached_steps - last.cached_steps : 0;
        // A slow reader gets the latest progress only: the steps between are told apart by their number.
        for (let done = last.step; done < step; done++) cells.mark(done, step - done <= reused);
        last = { step, cached_steps };
        meter.max = steps;
        meter.value = step;
        const left = seconds_left === undefined ? "" : `, about ${seconds(seconds_left)} left`;
        status.textContent = `Step ${step} of ${steps}, ${cached_steps} reused${left}`;
      },
      /** @param {Preview} preview */
      preview: ({ image: data, format }) => {
        image.src = `data:image/${format};base64,${data}`;
        image.hidden = false;
        frame.classList.remove("waiting");
      },
    };
  }

  /**
   * Show that there is no output.
   * @param {string} words
   * @param {string} [why]
   */
  end(words, why = "") {
    fill(this.#root, h("div", { class: "empty" }, h("p", { class: "big" }, words), why && h("p", {}, why)));
    this.say(words);
  }

  /**
   * @param {Drawn} drawn
   * @param {{onthreshold: (value: number) => void, onreuse: () => void, onedit?: (file: Blob) => void}} actions
   */
  show(drawn, { onthreshold, onreuse, onedit }) {
    const { result, files, fields } = drawn;
    this.#untouched = false;
    const words = String(fields.prompt ?? fields.class_label ?? "the output");
    let chosen = 0;
    const frame = h("div", { class: "frame" });
    const details = h("div", { class: "timeline-place" });
    const thumbs = files.map((file, index) =>
      h(
        "button",
        { type: "button", class: "thumb", "aria-label": `Output ${index + 1}`, onclick: () => choose(index) },
        shown(file, ""),
      ),
    );
    const choose = (/** @type {number} */ index) => {
      chosen = index;
      frame.replaceChildren(shown(files[index], words));
      for (const [place, thumb] of thumbs.entries()) thumb.setAttribute("aria-pressed", String(place === index));
      const steps = result.cache.steps / files.length;
      const width = details.clientWidth;
      fill(details, timeline(result.cache, result.stats?.cache_stats[index], steps, width, onthreshold));
    };
    const save = () => {
      const seed = result.seeds[chosen];
      const link = h("a", { href: URL.createObjectURL(files[chosen]), download: `${seed}.${suffixOf(files[chosen])}` });
      link.click();
      URL.revokeObjectURL(link.href);
    };
    const button = (/** @type {string} */ text, /** @type {() => void} */ onclick) =>
      h("button", { type: "button", class: "quiet", onclick }, text);
    const warnings = result.warnings.map(({ param, message }) =>
      h("li", {}, param ? h("code", {}, param) : null, ` ${message}`),
    );
    const picture = h(
      "div",
      { class: "picture" },
      frame,
      files.length > 1 && h("div", { class: "thumbs" }, ...thumbs),
      h(
        "p",
        { class: "caption" },
        h("span", { class: "prompt", title: words }, words),
        h("span", { class: "seed" }, [fields.model, `seed ${result.seeds.join(", ")}`].filter(Boolean).join(" · ")),
      ),
      h(
        "div",
        { class: "actions" },
        button("Save", save),
        button(fields.model ? `Reuse settings with ${fields.model}` : "Reuse settings", onreuse),
        onedit && files[0]?.type.startsWith("image/") && button("Edit this picture", () => onedit(files[chosen])),
      ),
    );
    const account = h(
      "div",
      { class: "account" },
      evidence(result.cache, result.time_cost, result.timings, this.#saved(result.cache, drawn)),
      warnings.length > 0 && h("ul", { class: "warnings", "aria-label": "Warnings" }, ...warnings),
      details,
    );
    fill(this.#root, h("div", { class: "drawn" }, picture, account));
    choose(0);
    this.say(`Done: ${result.cache.cached_steps} of ${result.cache.steps} steps reused, ${seconds(result.time_cost)}`);
  }

  /**
   * Seconds that the reused steps would have taken, by the mean of the computed ones; an estimate.
   * @param {Evidence} cache
   * @param {Drawn} drawn
   */
  #saved(cache, { result, fields }) {
    const computed = cache.steps - cache.cached_steps;
    if (!cache.cached_steps || !computed || !result.timings.denoise) return undefined;
    // Of another model the speeds' figures are not at hand.
    const speeds = (fields.model ?? "") === this.#model ? this.#capabilities.speeds : [];
    const measured = speeds.find(({ name }) => name === cache.speed)?.measured?.speedup;
    return measured ? result.time_cost * (measured - 1) : (result.timings.denoise / computed) * cache.cached_steps;
  }
}

/**
 * @param {Evidence} cache
 * @param {number} time  seconds
 * @param {Record<string, number>} timings
 * @param {number | undefined} saved  seconds, estimated
 */
function evidence(cache, time, timings, saved) {
  const figure = (/** @type {string} */ value, /** @type {string} */ name) =>
    h("div", { class: "figure" }, h("dd", {}, value), h("dt", {}, name));
  const parts = Object.entries(timings).filter(([name, value]) => name !== "prompt_hits" && value >= LEAST_TOLD_S);
  const stages = parts.map(([name, value]) => `${name.replaceAll("_", " ")} ${seconds(value)}`).join(" · ");
  return h(
    "section",
    { class: "evidence", "aria-label": "What the cache did" },
    h(
      "dl",
      { class: "figures" },
      figure(seconds(time), "time"),
      figure(`${cache.cached_steps} / ${cache.steps}`, "steps reused"),
      saved !== undefined && figure(`≈ ${seconds(saved)}`, "saved"),
      figure(cache.enabled ? (cache.speed ?? "custom") : "lossless", "speed"),
    ),
    !cache.engaged &&
      cache.reason &&
      cache.reason_code !== "off" &&
      h("p", { class: "reason" }, `The cache did not engage: ${cache.reason}`),
    h("p", { class: "hint" }, stages),
  );
}

/** A few columns of a timeline, for a place that is empty. */
function sketch() {
  const heights = [34, 30, 9, 14, 20, 27, 33, 8, 12, 17, 24, 33, 11, 18, 26, 34];
  const picture = s("svg", { viewBox: `0 0 ${heights.length * 12} 36`, class: "sketch", "aria-hidden": "true" });
  for (const [index, height] of heights.entries()) {
    const kind = height > 28 ? "computed" : "reused";
    picture.append(s("rect", { class: kind, x: index * 12 + 1.5, y: 35.5 - height, width: 9, height, rx: 2 }));
  }
  return picture;
}
