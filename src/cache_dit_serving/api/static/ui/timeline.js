// The steps of a generation: computed or reused, and the residual difference that decided it, on a logarithmic scale.
import { h, s } from "./dom.js";
import { forecast } from "./forecast.js";

/** @import { BlockListStats, Evidence, OutputStats } from "./client.js" */

const WIDTH = 560;
const HEIGHT = 200;
const LEFT = 38;
const RIGHT = 8;
const TOP = 10;
const FOOT = 40;

/**
 * @param {number} step
 * @param {number} steps
 */
function column(step, steps) {
  const width = (WIDTH - LEFT - RIGHT) / steps;
  return { x: LEFT + step * width, width };
}

/** A logarithmic axis over all values that are above zero. */
class Axis {
  /** @param {number[]} values */
  constructor(values) {
    const seen = values.filter((value) => value > 0 && Number.isFinite(value));
    this.low = Math.log10(Math.min(0.05, ...seen) * 0.7);
    this.high = Math.log10(Math.max(0.5, ...seen) * 1.4);
  }

  /** @param {number} value */
  y(value) {
    const at = Math.min(this.high, Math.max(this.low, Math.log10(Math.max(value, 1e-9))));
    return TOP + ((this.high - at) / (this.high - this.low)) * (HEIGHT - TOP - FOOT);
  }

  ticks() {
    const marks = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3];
    return marks.filter((mark) => Math.log10(mark) >= this.low && Math.log10(mark) <= this.high);
  }
}

/**
 * Bar of steps while a picture forms: done, reused, and to come.
 * @param {number} steps
 * @returns {{element: HTMLElement, mark: (step: number, reused: boolean) => void}}
 */
export function stepBar(steps) {
  const cells = Array.from({ length: steps }, () => h("span", { class: "cell" }));
  return {
    element: h("div", { class: "step-bar", "aria-hidden": "true" }, ...cells),
    mark: (step, reused) => cells[step]?.classList.add(reused ? "reused" : "computed"),
  };
}

/**
 * Differences by step, of one forward pass of one block list.
 * @param {Record<string, number>} diffs
 * @param {number} steps
 */
function byStep(diffs, steps) {
  return Array.from({ length: steps }, (_, step) => diffs[step]);
}

/**
 * The chart of one block list.
 * @param {string} title
 * @param {Record<string, number>} recorded
 * @param {number[]} cached
 * @param {Evidence} evidence
 * @param {number} steps  of one output
 */
function chart(title, recorded, cached, evidence, steps) {
  const settings = evidence.settings ?? {};
  const diffs = byStep(recorded, steps);
  const reused = new Set(cached);
  const standing = Number(settings.residual_diff_threshold ?? 0.12);
  const values = diffs.filter((value) => value !== undefined);
  const axis = new Axis([...values, standing]);
  const foot = HEIGHT - FOOT;
  const words = `${title}: ${reused.size} of ${steps} steps reused`;
  const picture = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "timeline", role: "img", "aria-label": words });
  for (const mark of axis.ticks()) {
    picture.append(
      s("line", { class: "grid-line", x1: LEFT, x2: WIDTH - RIGHT, y1: axis.y(mark), y2: axis.y(mark) }),
      s("text", { class: "tick", x: LEFT - 6, y: axis.y(mark) + 3, "text-anchor": "end" }, mark),
    );
  }
  diffs.forEach((diff, step) => {
    const { x, width } = column(step, steps);
    const gap = Math.min(2, width * 0.15);
    const kind = reused.has(step) ? "reused" : "computed";
    const tip = `step ${step + 1}: ${kind}${diff === undefined ? "" : `, difference ${diff.toPrecision(3)}`}`;
    const box = { x: x + gap / 2, width: width - gap, rx: 1.5 };
    const top = diff === undefined ? foot - 3 : axis.y(diff);
    picture.append(
      s(
        "g",
        { class: `step ${kind}${diff === undefined ? " unmeasured" : ""}` },
        s("title", {}, tip),
        s("rect", { class: "hit", x, width, y: TOP, height: HEIGHT - TOP }),
        s("rect", { class: "bar", ...box, y: top, height: Math.max(2, foot - top) }),
        s("rect", { class: "state", ...box, y: foot + 4, height: 8 }),
      ),
    );
    const every = Math.ceil(steps / 14);
    if (step % every === 0) {
      picture.append(s("text", { class: "tick", x: x + width / 2, y: HEIGHT - 2, "text-anchor": "middle" }, step + 1));
    }
  });
  const line = s("line", { class: "threshold", x1: LEFT, x2: WIDTH - RIGHT });
  const foreseen = s("g", { class: "foreseen" });
  picture.append(foreseen, line);

  /** @param {number} threshold */
  const show = (threshold) => {
    line.setAttribute("y1", String(axis.y(threshold)));
    line.setAttribute("y2", String(axis.y(threshold)));
    const rule = {
      threshold,
      warmup: Number(settings.max_warmup_steps ?? 0),
      most: Number(settings.max_continuous_cached_steps ?? -1),
      total: Number(settings.max_cached_steps ?? -1),
    };
    const changed = Math.abs(threshold - standing) > 1e-9;
    const steady = changed ? forecast(diffs, reused, rule) : reused;
    foreseen.replaceChildren();
    for (const step of changed ? steady : []) {
      const { x, width } = column(step, steps);
      const gap = Math.min(2, width * 0.15);
      foreseen.append(s("rect", { x: x + gap / 2, width: width - gap, y: foot + 15, height: 5, rx: 1.5 }));
    }
    return steady.size;
  };
  show(standing);
  return {
    element: h("figure", { class: "chart" }, h("figcaption", {}, title), picture),
    show,
    standing,
    reused: reused.size,
  };
}

/**
 * Charts of all block lists of an output, a slider for the threshold, and the same as a table.
 * @param {Evidence} evidence
 * @param {OutputStats | undefined} stats
 * @param {number} steps  of one output
 * @param {(threshold: number) => void} onchoose  called when the caller takes a threshold over
 * @returns {HTMLElement}
 */
export function timeline(evidence, stats, steps, onchoose) {
  const root = h("div", { class: "timelines" });
  const charts = (stats?.block_lists ?? []).flatMap((list) => passes(list, evidence, steps));
  if (!charts.length) return root;
  root.append(...charts.map(({ element }) => element), legend());
  if (evidence.settings?.cache_type === "DBCache") root.append(slider(charts, steps, onchoose));
  root.append(table(stats));
  return root;
}

/**
 * @param {BlockListStats} list
 * @param {Evidence} evidence
 * @param {number} steps
 */
function passes(list, evidence, steps) {
  const title = `${list.transformer} · ${list.block_list}`;
  const found = [];
  if (Object.keys(list.diffs).length) found.push(chart(title, list.diffs, list.cached_steps, evidence, steps));
  if (Object.keys(list.cfg_diffs).length) {
    found.push(chart(`${title} · guidance`, list.cfg_diffs, list.cfg_cached_steps, evidence, steps));
  }
  return found;
}

function legend() {
  const key = (/** @type {string} */ kind, /** @type {string} */ text) =>
    h("span", { class: `key ${kind}` }, h("span", { class: "swatch", "aria-hidden": "true" }), text);
  const words = h("span", { class: "hint" }, "height: residual difference, logarithmic");
  return h(
    "p",
    { class: "legend" },
    key("computed", "computed"),
    key("reused", "reused"),
    key("line", "threshold"),
    words,
  );
}

/**
 * @param {ReturnType<typeof chart>[]} charts
 * @param {number} steps
 * @param {(threshold: number) => void} onchoose
 */
function slider(charts, steps, onchoose) {
  const { standing } = charts[0];
  const now = Math.min(...charts.map(({ reused }) => reused));
  const position = (/** @type {number} */ value) => String(Math.round(Math.log10(Math.max(0.005, value)) * 1000));
  const input = h("input", { type: "range", min: -2300, max: 300, step: 1, value: position(standing) });
  input.setAttribute("aria-label", "Threshold, to see what it would reuse");
  const words = h("output", {});
  const draw = h("button", { type: "button", class: "quiet", hidden: true }, "Draw with it");
  const chosen = () => Number((10 ** (Number(input.value) / 1000)).toPrecision(2));
  input.addEventListener("input", () => {
    const threshold = chosen();
    const counts = charts.map(({ show }) => show(threshold));
    const reused = Math.min(...counts);
    words.textContent = `${threshold}: would reuse about ${reused} of ${steps} steps (now ${now}): the marks below`;
    draw.hidden = threshold === standing;
  });
  words.textContent = `${standing}: as drawn`;
  draw.addEventListener("click", () => onchoose(chosen()));
  return h("div", { class: "rethreshold" }, h("label", {}, "Threshold", input), words, draw);
}

/** @param {OutputStats | undefined} stats */
function table(stats) {
  const rows = (stats?.block_lists ?? []).flatMap((list) =>
    Object.entries(list.diffs).map(([step, diff]) =>
      h(
        "tr",
        {},
        h("td", {}, Number(step) + 1),
        h("td", {}, `${list.transformer}.${list.block_list}`),
        h("td", {}, diff.toPrecision(4)),
        h("td", {}, list.cached_steps.includes(Number(step)) ? "reused" : "computed"),
      ),
    ),
  );
  const head = ["step", "blocks", "difference", ""].map((text) => h("th", { scope: "col" }, text));
  return h(
    "details",
    { class: "numbers" },
    h("summary", {}, "The numbers"),
    h(
      "div",
      { class: "scroll", tabIndex: 0 },
      h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)),
    ),
  );
}
