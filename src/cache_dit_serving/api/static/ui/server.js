// The operator's corner: model, memory, queue, speeds, LoRAs. What a key may not do, the server refuses in its words.
import { ServerError } from "./client.js";
import { bytes, fill, h, seconds } from "./dom.js";
import { loraBounds } from "./lora_sliders.js";

/** @import { Capabilities, Client, Job } from "./client.js" */

const JOBS = 20;

/**
 * @param {HTMLElement} root
 * @param {Client} client
 * @param {Capabilities} capabilities
 */
export function serverTab(root, client, capabilities) {
  const said = h("p", { class: "error", role: "alert", hidden: true });
  const place = h("div", { class: "cards" });
  const again = h("button", { type: "button", class: "quiet", onclick: () => load() }, "Refresh");
  fill(
    root,
    h("div", { class: "label" }, h("h2", {}, "Server"), again, h("a", { href: "metrics" }, "Metrics")),
    said,
    place,
  );

  /**
   * Do something, and show what the server says of it.
   * @param {() => Promise<unknown>} action
   */
  const attempt = async (action) => {
    said.hidden = true;
    try {
      await action();
      await load();
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      said.textContent = error.message;
      said.hidden = false;
    }
  };

  async function load() {
    try {
      const [model, jobs, loras, log] = await Promise.all([
        client.modelInfo(),
        client.jobs({ limit: JOBS }),
        client.json("GET", "/loras"),
        warnings(client),
      ]);
      fill(
        place,
        modelCard(model),
        memoryCard(model, () => attempt(flush)),
        speedsCard(capabilities),
        jobsCard(jobs.jobs, cancel),
        lorasCard(loras.loras, capabilities, change),
        warningsCard(log),
      );
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      said.textContent = error.message;
      said.hidden = false;
    }
  }

  const flush = () => client.json("POST", "/flush_cache", { body: {} });
  const cancel = (/** @type {string} */ id) => attempt(() => client.remove(id));
  const change = (/** @type {"POST" | "DELETE"} */ method, /** @type {string} */ name) =>
    attempt(() => client.json(method, `/loras/${encodeURIComponent(name)}`));
  document.addEventListener("chosen", (event) => {
    if (event.target instanceof HTMLElement && event.target.dataset.tab === "server") load();
  });
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
 * @param {(id: string) => void} cancel
 */
function jobsCard(jobs, cancel) {
  const rows = jobs.map((job) => {
    const open = job.state === "queued" || job.state === "running";
    const where =
      job.state === "running" ? `step ${job.step} of ${job.steps}` : job.position ? `place ${job.position}` : "";
    return h(
      "tr",
      {},
      h("td", {}, h("code", {}, job.id.slice(0, 8))),
      h("td", {}, job.state),
      h("td", {}, where),
      h("td", {}, job.priority ? `priority ${job.priority}` : ""),
      h("td", {}, open && h("button", { type: "button", class: "quiet", onclick: () => cancel(job.id) }, "cancel")),
    );
  });
  return card(
    "Jobs",
    jobs.length ? h("table", {}, h("tbody", {}, ...rows)) : h("p", { class: "hint" }, "None are kept."),
  );
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
    const button = h(
      "button",
      { type: "button", class: "quiet", onclick: () => change(method, name) },
      loaded.has(name) ? "unload" : "load",
    );
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", {}, loaded.has(name) ? "loaded" : "on disk"),
      h("td", {}, button),
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
