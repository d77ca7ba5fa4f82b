// The operator's corner: model, memory, queue, speeds, LoRAs. What a key may not do, the server refuses in its words.
import { ServerError } from "./client.js";
import { copyAs } from "./copy_as.js";
import { bytes, fill, h, seconds } from "./dom.js";
import { action } from "./snippets.js";

/** @import { Capabilities, Client, Job, LiveFigures, ModelState } from "./client.js" */

/**
 * A button that shows an action in the words of other clients.
 * @typedef {(name: string, method: string, route: string, body?: unknown) => HTMLElement} Copied
 */

const JOBS = 20;
const EVERY_MS = 5000;

/**
 * @param {HTMLElement} root
 * @param {Client} client
 * @param {typeof import("./models.js").modelsCard} [modelsCard]  left out: the server has one model
 */
export function serverTab(root, client, modelsCard) {
  const said = h("p", { class: "error", role: "alert", hidden: true });
  const models = h("div", { class: "models", hidden: !modelsCard });
  const place = h("div", { class: "cards" });
  fill(root, said, models, place);
  /** True if the latest look failed. */
  let lost = false;

  /** @param {unknown} error */
  const say = (error) => {
    if (!(error instanceof ServerError)) throw error;
    said.textContent = error.message;
    said.hidden = false;
  };

  /**
   * Do something, and show what the server says of it.
   * @param {() => Promise<unknown>} action
   */
  const attempt = async (action) => {
    said.hidden = true;
    try {
      await action();
    } catch (error) {
      say(error);
    }
    await load();
  };

  async function load() {
    try {
      if (modelsCard) await loadModels(modelsCard);
      const [model, jobs, loras, log, now] = await Promise.all([
        client.modelInfo(),
        client.jobs({ limit: JOBS }),
        client.json("GET", client.of("/loras")),
        warnings(client),
        client.capabilities(),
      ]);
      if (lost) said.hidden = true;
      lost = false;
      refill(
        place,
        h(
          "div",
          { class: "column" },
          jobsCard(jobs.jobs, now.fields.priority?.maximum ?? 0, { cancel, setPriority, copied }),
          warningsCard(log),
        ),
        h(
          "div",
          { class: "column" },
          modelCard(model, client.model),
          memoryCard(model, () => attempt(flush), copiedOf),
          speedsCard(now, { offer, copied: copiedOf }),
          lorasCard(loras.loras, change, copiedOf),
        ),
      );
    } catch (error) {
      lost = true;
      say(error);
    }
  }

  /** First of all, and apart: the rest fails where the chosen model does. @param {NonNullable<typeof modelsCard>} card */
  async function loadModels(card) {
    const { models: all } = await client.health();
    if (all) refill(models, card(/** @type {ModelState[]} */ (all), client.model, { change: changeModel, copied }));
  }

  const changeModel = (/** @type {"/sleep" | "/wake"} */ route, /** @type {string} */ model) =>
    attempt(() => client.json("POST", route, { body: { model } }));
  /** @type {Copied} */
  const copied = (name, method, route, body) => copyAs(name, () => action(client, method, route, body));
  /** The same of a route about the chosen model. @type {Copied} */
  const copiedOf = (name, method, route, body) => copied(name, method, client.of(route), body);
  const flush = () => client.json("POST", client.of("/flush_cache"), { body: {} });
  const offer = (/** @type {string} */ speed) => attempt(() => client.json("POST", client.of(`/quality/${speed}`)));
  const cancel = (/** @type {string} */ id) => attempt(() => client.remove(id));
  const setPriority = (/** @type {string} */ id, /** @type {number} */ priority) =>
    attempt(() => client.setPriority(id, priority));
  const change = (/** @type {"POST" | "DELETE"} */ method, /** @type {string} */ name) =>
    attempt(() => client.json(method, client.of(`/loras/${encodeURIComponent(name)}`)));
  let timer = 0;
  document.addEventListener("chosen", (event) => {
    clearInterval(timer);
    if (!(event.target instanceof HTMLElement && event.target.dataset.tab === "server")) return;
    load();
    timer = setInterval(() => {
      if (!document.hidden && !inUse(place)) load();
    }, EVERY_MS);
  });
}

/**
 * True while a place holds text that someone has typed, or selected.
 * @param {HTMLElement} place
 */
function inUse(place) {
  const selection = getSelection();
  const selects = selection && !selection.isCollapsed && place.contains(selection.anchorNode);
  return selects || [...place.querySelectorAll("input")].some(({ value, defaultValue }) => value !== defaultValue);
}

/** @param {Element} control */
const nameOf = (control) => control.getAttribute("aria-label") ?? control.textContent;

/**
 * Put new cards in place of the old ones; the focus stays on the control of the same name.
 * @param {HTMLElement} place
 * @param {...HTMLElement} cards
 */
function refill(place, ...cards) {
  const focused = document.activeElement;
  const name = focused && place.contains(focused) ? nameOf(focused) : null;
  fill(place, ...cards);
  if (name === null) return;
  for (const control of place.querySelectorAll("button, input")) {
    if (control instanceof HTMLElement && nameOf(control) === name) control.focus();
  }
}

/**
 * @param {string} title
 * @param {...import("./dom.js").Child} children
 */
function card(title, ...children) {
  return h("section", { class: "card", "aria-label": title }, h("h2", {}, title), ...children);
}

/** @param {[string, string][]} rows */
function pairs(rows) {
  return h("dl", { class: "pairs" }, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/**
 * @param {Record<string, any>} model
 * @param {string} name  among several; empty: there is one
 */
function modelCard(model, name) {
  const versions = Object.entries(model.versions ?? {}).map(([name, version]) => `${name} ${version}`);
  return card(
    "Model",
    pairs([
      ...(name ? [/** @type {[string, string]} */ (["name", name])] : []),
      ["model", model.model],
      ["pipeline", model.pipeline_class],
      ["tasks", model.tasks.join(", ")],
      ["device", `${model.device}, ${model.dtype}`],
      ["attention", String(model.attention_backend ?? "")],
      [
        "cache",
        model.cache?.running
          ? `${model.cache.settings.cache_type}, ${model.cache.speed ?? "custom"}`
          : (model.cache?.reason ?? "off"),
      ],
      ["versions", versions.join(", ")],
    ]),
  );
}

/**
 * @param {Record<string, any>} model
 * @param {() => void} flush
 * @param {Copied} copied
 */
function memoryCard(model, flush, copied) {
  const rows = Object.entries(model.memory ?? {})
    .filter(([, value]) => typeof value === "number")
    .map(
      ([name, value]) =>
        /** @type {[string, string]} */ ([name.replace(/_bytes$/, "").replaceAll("_", " "), bytes(value)]),
    );
  const button = h("button", { type: "button", class: "quiet", onclick: flush }, "Free the cache");
  const metrics = h("a", { href: "metrics" }, "Metrics");
  return card(
    "Memory",
    pairs(rows),
    h("div", { class: "actions" }, button, copied("Free the cache", "POST", "/flush_cache", {}), metrics),
  );
}

/**
 * @param {Capabilities} capabilities
 * @param {{offer: (speed: string) => void, copied: Copied}} actions
 */
function speedsCard({ speeds, measured_on }, { offer, copied }) {
  const head = ["speed", "speed-up", "PSNR", "SSIM", "time"].map((text) => h("th", { scope: "col" }, text));
  const rows = speeds.flatMap(
    ({ name, allowed, default: chosen, measured, live, lowered_to: instead, seconds: time }) => {
      const note = allowed ? chosen && "default" : "above the ceiling";
      const row = h(
        "tr",
        { class: allowed ? "" : "off" },
        h("th", { scope: "row" }, name, note && h("span", { class: "note" }, note)),
        h("td", {}, measured?.speedup ? `${measured.speedup}×` : "–"),
        h("td", {}, measured?.psnr_db ? `${measured.psnr_db} dB` : "–"),
        h("td", {}, measured?.ssim ?? "–"),
        h("td", {}, time ? seconds(time) : "–"),
      );
      return live ? [row, liveRow(name, live, instead, { offer, copied })] : [row];
    },
  );
  return card(
    "Speeds",
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows))),
    measured_on && h("p", { class: "hint" }, measured_on),
  );
}

/**
 * What live traffic says of a speed, and the way back where that has lowered it.
 * @param {string} name
 * @param {LiveFigures} live
 * @param {string | null} instead
 * @param {{offer: (speed: string) => void, copied: Copied}} actions
 */
function liveRow(name, { outputs, speedup, medians, worst_deciles: worst }, instead, { offer, copied }) {
  const title = `Of ${outputs} outputs drawn again without the cache: the median, and what a tenth of them are worse than`;
  /** @param {string} measure @param {number} digits */
  const figures = (measure, digits) =>
    measure in medians ? `${medians[measure]?.toFixed(digits)} (${worst[measure]?.toFixed(digits) ?? "broken"})` : "–";
  const again = h("button", { type: "button", class: "quiet", onclick: () => offer(name) }, `Offer ${name} again`);
  const back = instead && [
    h("span", { class: "note" }, `gets ${instead}`),
    h("div", { class: "actions" }, again, copied(`Offer ${name} again`, "POST", `/quality/${name}`)),
  ];
  return h(
    "tr",
    { class: "live", title },
    h("th", { scope: "row" }, `live, ${outputs}`, ...(back || [])),
    h("td", {}, `${speedup}×`),
    h("td", {}, figures("psnr_db", 1)),
    h("td", {}, figures("ssim", 3)),
    h("td", {}, ""),
  );
}

/**
 * @param {Job[]} jobs
 * @param {number} most  greatest priority; 0: all are equal
 * @param {{cancel: (id: string) => void, setPriority: (id: string, priority: number) => void, copied: Copied}} actions
 */
function jobsCard(jobs, most, { cancel, setPriority, copied }) {
  const rows = jobs.map((job) => {
    const name = job.id.slice(0, 8);
    const open = job.state === "queued" || job.state === "running";
    const words = { type: "button", class: "quiet", "aria-label": `Cancel job ${name}`, onclick: () => cancel(job.id) };
    const { at } = job.history[0];
    const route = `/jobs/${encodeURIComponent(job.id)}`;
    const waits = job.state === "queued" && most > 0;
    return h(
      "li",
      {},
      h("span", { class: `state ${job.state}` }, job.state),
      h("code", { title: job.id }, name),
      h("time", { dateTime: at, class: "hint" }, new Date(at).toLocaleTimeString()),
      h("span", { class: "what" }, whereOf(job)),
      waits && priorityInput(job, name, most, setPriority),
      waits && copied(`Priority of job ${name}`, "PATCH", route, { priority: most }),
      job.state !== "queued" && job.priority > 0 && h("span", { class: "hint" }, `priority ${job.priority}`),
      open && h("button", words, "Cancel"),
      open && copied(`Cancel job ${name}`, "DELETE", route),
    );
  });
  if (!rows.length) return card("Jobs", h("p", { class: "hint" }, "None wait, run or are kept."));
  return card("Jobs", h("ul", { class: "rows" }, ...rows));
}

/** @param {Job} job */
function whereOf({ state, position, step, steps, cached_steps, error }) {
  if (state === "queued") return position ? `place ${position}` : "waits";
  if (state === "running") return `step ${step} of ${steps}`;
  if (state === "succeeded") return `${cached_steps} of ${steps} steps reused`;
  return error?.message ?? (step ? `after ${step} of ${steps} steps` : "");
}

/**
 * @param {Job} job
 * @param {string} name
 * @param {number} most
 * @param {(id: string, priority: number) => void} setPriority
 */
function priorityInput(job, name, most, setPriority) {
  const input = h("input", { type: "number", min: 0, max: most, step: 1, defaultValue: job.priority });
  input.setAttribute("aria-label", `Priority of job ${name}, 0 to ${most}`);
  input.addEventListener("change", () => input.value !== "" && setPriority(job.id, Number(input.value)));
  return h("label", { class: "priority hint" }, "priority", input);
}

/**
 * @param {Record<string, any>[]} loras
 * @param {(method: "POST" | "DELETE", name: string) => void} change
 * @param {Copied} copied
 */
function lorasCard(loras, change, copied) {
  const rows = loras.map(({ name, loaded }) => {
    const method = loaded ? "DELETE" : "POST";
    const verb = loaded ? "Unload" : "Load";
    const onclick = () => change(method, name);
    const button = h("button", { type: "button", class: "quiet", "aria-label": `${verb} ${name}`, onclick }, verb);
    const where = loaded ? "loaded" : "on disk";
    const copy = copied(`${verb} ${name}`, method, `/loras/${encodeURIComponent(name)}`);
    return h("li", {}, h("span", { class: "what" }, name), h("span", { class: "hint" }, where), button, copy);
  });
  if (!rows.length) return card("LoRAs", h("p", { class: "hint" }, "This server has none."));
  return card("LoRAs", h("ul", { class: "rows" }, ...rows));
}

/**
 * Warnings of the last hour; null for a key without the scope admin.
 * @param {Client} client
 * @returns {Promise<Record<string, any>[] | null>}
 */
async function warnings(client) {
  try {
    return (await client.json("GET", "/log/warnings")).warnings;
  } catch (error) {
    if (error instanceof ServerError && error.status === 403) return null;
    throw error;
  }
}

/** @param {Record<string, any>[] | null} log */
function warningsCard(log) {
  if (log === null) return card("Warnings", h("p", { class: "hint" }, "Shown to keys of the scope admin."));
  const rows = log.map(({ level, subject, message, count, last_at }) =>
    h(
      "li",
      {},
      h("span", { class: `state ${level.toLowerCase()}` }, level.toLowerCase(), count > 1 && ` × ${count}`),
      h("time", { dateTime: last_at, class: "hint" }, new Date(last_at).toLocaleTimeString()),
      h("code", { class: "what" }, subject),
      h("p", {}, message),
    ),
  );
  return card(
    "Warnings of the last hour",
    rows.length ? h("ul", { class: "rows" }, ...rows) : h("p", { class: "hint" }, "None: all is well."),
  );
}
