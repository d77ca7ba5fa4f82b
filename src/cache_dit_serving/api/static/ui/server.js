// The operator's corner: model, memory, queue, speeds, LoRAs. What a key may not do, the server refuses in its words.
import { ServerError } from "./client.js";
import { bytes, fill, h, seconds } from "./dom.js";
import { loraBounds } from "./lora_sliders.js";

/** @import { Capabilities, Client, Job } from "./client.js" */

const JOBS = 20;
const EVERY_MS = 5000;

/**
 * @param {HTMLElement} root
 * @param {Client} client
 * @param {Capabilities} capabilities
 */
export function serverTab(root, client, capabilities) {
  const said = h("p", { class: "error", role: "alert", hidden: true });
  const place = h("div", { class: "cards" });
  fill(root, h("div", { class: "label" }, h("h2", {}, "Server"), h("a", { href: "metrics" }, "Metrics")), said, place);
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
      const [model, jobs, loras, log] = await Promise.all([
        client.modelInfo(),
        client.jobs({ limit: JOBS }),
        client.json("GET", "/loras"),
        warnings(client),
      ]);
      if (lost) said.hidden = true;
      lost = false;
      refill(
        place,
        modelCard(model),
        memoryCard(model, () => attempt(flush)),
        speedsCard(capabilities),
        jobsCard(jobs.jobs, capabilities.fields.priority?.maximum ?? 0, { cancel, setPriority }),
        lorasCard(loras.loras, capabilities, change),
        warningsCard(log),
      );
    } catch (error) {
      lost = true;
      say(error);
    }
  }

  const flush = () => client.json("POST", "/flush_cache", { body: {} });
  const cancel = (/** @type {string} */ id) => attempt(() => client.remove(id));
  const setPriority = (/** @type {string} */ id, /** @type {number} */ priority) =>
    attempt(() => client.setPriority(id, priority));
  const change = (/** @type {"POST" | "DELETE"} */ method, /** @type {string} */ name) =>
    attempt(() => client.json(method, `/loras/${encodeURIComponent(name)}`));
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
 * True while someone types into a place, or selects its text.
 * @param {HTMLElement} place
 */
function inUse(place) {
  const selection = getSelection();
  const selects = selection && !selection.isCollapsed && place.contains(selection.anchorNode);
  return selects || (document.activeElement instanceof HTMLInputElement && place.contains(document.activeElement));
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
  return h("section", { class: "card", "aria-label": title }, h("h3", {}, title), ...children);
}

/** @param {[string, string][]} rows */
function pairs(rows) {
  return h("dl", { class: "pairs" }, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** @param {Record<string, any>} model */
function modelCard(model) {
  const versions = Object.entries(model.versions ?? {}).map(([name, version]) => `${name} ${version}`);
  return card(
    "Model",
    pairs([
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
 */
function memoryCard(model, flush) {
  const rows = Object.entries(model.memory ?? {})
    .filter(([, value]) => typeof value === "number")
    .map(
      ([name, value]) =>
        /** @type {[string, string]} */ ([name.replace(/_bytes$/, "").replaceAll("_", " "), bytes(value)]),
    );
  return card("Memory", pairs(rows), h("button", { type: "button", class: "quiet", onclick: flush }, "Free the cache"));
}

/** @param {Capabilities} capabilities */
function speedsCard({ speeds, measured_on }) {
  const head = ["speed", "speed-up", "PSNR", "SSIM", "seconds"].map((text) => h("th", { scope: "col" }, text));
  const rows = speeds.map(({ name, allowed, default: chosen, measured, seconds: time }) =>
    h(
      "tr",
      { class: allowed ? "" : "off" },
      h("th", { scope: "row" }, name, chosen && " (default)", !allowed && " (above the ceiling)"),
      h("td", {}, measured?.speedup ? `${measured.speedup}×` : "–"),
      h("td", {}, measured?.psnr_db ? `${measured.psnr_db} dB` : "–"),
      h("td", {}, measured?.ssim ?? "–"),
      h("td", {}, time ? seconds(time) : "–"),
    ),
  );
  return card(
    "Speeds",
    h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)),
    measured_on && h("p", { class: "hint" }, measured_on),
  );
}

/**
 * @param {Job[]} jobs
 * @param {number} most  greatest priority; 0: all are equal
 * @param {{cancel: (id: string) => void, setPriority: (id: string, priority: number) => void}} actions
 */
function jobsCard(jobs, most, { cancel, setPriority }) {
  const rows = jobs.map((job) => {
    const name = job.id.slice(0, 8);
    const open = job.state === "queued" || job.state === "running";
    const words = { type: "button", class: "quiet", "aria-label": `Cancel job ${name}`, onclick: () => cancel(job.id) };
    return h(
      "tr",
      {},
      h("td", {}, h("code", { title: job.id }, name)),
      h("td", {}, h("span", { class: `state ${job.state}` }, job.state)),
      h("td", {}, whereOf(job)),
      most > 0 && h("td", {}, job.state === "queued" ? priorityInput(job, name, most, setPriority) : job.priority),
      h("td", { class: "action" }, open && h("button", words, "cancel")),
    );
  });
  if (!rows.length) return card("Jobs", h("p", { class: "hint" }, "None are kept."));
  const titles = ["job", "state", "progress", ...(most > 0 ? ["priority"] : []), ""];
  const head = titles.map((title) => (title ? h("th", { scope: "col" }, title) : h("td", {})));
  return card("Jobs", h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)));
}

/** @param {Job} job */
function whereOf(job) {
  if (job.state === "running") return `step ${job.step} of ${job.steps}`;
  if (job.state === "queued") return job.position ? `place ${job.position}` : "waits";
  return job.cached_steps ? `${job.cached_steps} of ${job.steps} reused` : "";
}

/**
 * @param {Job} job
 * @param {string} name
 * @param {number} most
 * @param {(id: string, priority: number) => void} setPriority
 */
function priorityInput(job, name, most, setPriority) {
  const input = h("input", { type: "number", class: "priority", min: 0, max: most, step: 1, value: job.priority });
  input.setAttribute("aria-label", `Priority of job ${name}, 0 to ${most}`);
  input.addEventListener("change", () => input.value !== "" && setPriority(job.id, Number(input.value)));
  return input;
}

/**
 * @param {Record<string, any>[]} loras
 * @param {Capabilities} capabilities
 * @param {(method: "POST" | "DELETE", name: string) => void} change
 */
function lorasCard(loras, capabilities, change) {
  const loaded = new Set(loras.map(({ name }) => name));
  const known = loraBounds(capabilities.fields.loras ?? {}).map(({ name }) => name);
  const rows = [...new Set([...loaded, ...known])].map((name) => {
    const method = loaded.has(name) ? "DELETE" : "POST";
    const verb = loaded.has(name) ? "unload" : "load";
    const words = {
      type: "button",
      class: "quiet",
      "aria-label": `${verb} ${name}`,
      onclick: () => change(method, name),
    };
    const button = h("button", words, verb);
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", {}, loaded.has(name) ? "loaded" : "on disk"),
      h("td", { class: "action" }, button),
    );
  });
  return card("LoRAs", rows.length ? h("table", {}, h("tbody", {}, ...rows)) : h("p", { class: "hint" }, "None."));
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
      "tr",
      {},
      h("td", {}, h("time", { dateTime: last_at }, new Date(last_at).toLocaleTimeString())),
      h("td", {}, level.toLowerCase(), count > 1 && ` × ${count}`),
      h("td", {}, h("code", {}, subject), " ", message),
    ),
  );
  return card(
    "Warnings of the last hour",
    rows.length ? h("table", {}, h("tbody", {}, ...rows)) : h("p", { class: "hint" }, "None."),
  );
}
