// The steps of a generation: computed or reused, and the residual difference that decided it, on a logarithmic scale.
import { h, s } from "./dom.js";
import { forecast } from "./forecast.js";

/** @import { BlockListStats, Evidence, OutputStats } from "./client.js" */

/** Pixels of a chart: it is drawn in the size in which it is shown, so that its letters are as large as others. */
const WIDEST = 720;
const NARROWEST = 240;
const HEIGHT = 190;
const LEFT = 36;
const RIGHT = 2;
const TOP = 8;
const FOOT = 40;
/** Pixels of a step's number. */
const NUMBER = 34;
const MOST_CELLS = 100;

/**
 * @param {number} step
 * @param {number} steps
 * @param {number} wide  pixels of the chart
 */
function column(step, steps, wide) {
  const width = (wide - LEFT - RIGHT) / steps;
  return { x: LEFT + step * width, width };
}

/** A logarithmic axis over all values that are above zero. */
class Axis {
  /** @param {number[]} values */
  constructor(values) {
    const seen = values.filter((value) => value > 0 && Number.isFinite(value));
    this.low = Math.log10(Math.min(0.05, ...seen) * 0.7);
    this.high = Math.log10(Math.max(0.1, ...seen) * 1.6);
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
  // Of very many steps, one cell stands for several: the last one of them shows.
  const cells = Array.from({ length: Math.min(steps, MOST_CELLS) }, () => h("span", { class: "cell" }));
  return {
    element: h("div", { class: "step-bar", "aria-hidden": "true" }, ...cells),
    mark: (step, reused) => {
      const cell = cells[Math.floor((step * cells.length) / steps)];
      if (cell) cell.className = `cell ${reused ? "reused" : "computed"}`;
    },
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
 * @param {number} wide  pixels
 */
function chart(title, recorded, cached, evidence, steps, wide) {
  const settings = evidence.settings ?? {};
  const diffs = byStep(recorded, steps);
  const reused = new Set(cached);
  const standing = Number(settings.residual_diff_threshold ?? 0.12);
  const values = diffs.filter((value) => value !== undefined);
  const axis = new Axis([...values, standing]);
  const foot = HEIGHT - FOOT;
  const words = `${title}: ${reused.size} of ${steps} steps reused`;
  const picture = s("svg", { viewBox: `0 0 ${wide} ${HEIGHT}`, class: "timeline", role: "img", "aria-label": words });
  for (const mark of axis.ticks()) {
    picture.append(
      s("line", { class: "grid-line", x1: LEFT, x2: wide - RIGHT, y1: axis.y(mark), y2: axis.y(mark) }),
      s("text", { class: "tick", x: LEFT - 6, y: axis.y(mark) + 3, "text-anchor": "end" }, mark),
    );
  }
  diffs.forEach((diff, step) => {
    const { x, width } = column(step, steps, wide);
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
    const every = Math.ceil(steps / ((wide - LEFT) / NUMBER));
    if (step % every === 0) {
      picture.append(s("text", { class: "tick", x: x + width / 2, y: HEIGHT - 2, "text-anchor": "middle" }, step + 1));
    }
  });
  const line = s("line", { class: "threshold", x1: LEFT, x2: wide - RIGHT });
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
      const { x, width } = column(step, steps, wide);
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
 * @param {number} width  pixels of its place
 * @param {(threshold: number) => void} onchoose  called when the caller takes a threshold over
 * @returns {HTMLElement}
 */
export function timeline(evidence, stats, steps, width, onchoose) {
  const root = h("div", { class: "timelines" });
  const wide = Math.min(WIDEST, Math.max(NARROWEST, width));
  const charts = (stats?.block_lists ?? []).flatMap((list) => passes(list, evidence, steps, wide));
  if (!charts.length) {
    // Nothing is measured where nothing can be reused, or where a mask says which steps are.
    const reused = new Set(stats?.block_lists.flatMap((list) => list.cached_steps));
    if (evidence.cached_steps > 0 && !reused.size) return root;
    const bar = stepBar(steps);
    for (let step = 0; step < steps; step++) bar.mark(step, reused.has(step));
    const why = reused.size ? "The settings say which steps are reused" : "Every step was computed";
    root.append(bar.element, legend(), h("p", { class: "hint" }, `${why}: no difference was measured.`));
    return root;
  }
  const words = h("p", { class: "hint" }, "Height: residual difference, on a logarithmic scale");
  root.append(...charts.map(({ element }) => element), legend(true), words);
  if (evidence.settings?.cache_type === "DBCache") root.append(slider(charts, steps, onchoose));
  root.append(table(stats));
  return root;
}

/**
 * @param {BlockListStats} list
 * @param {Evidence} evidence
 * @param {number} steps
 * @param {number} wide
 */
function passes(list, evidence, steps, wide) {
  const title = `${list.transformer} · ${list.block_list}`;
  const found = [];
  if (Object.keys(list.diffs).length) found.push(chart(title, list.diffs, list.cached_steps, evidence, steps, wide));
  if (Object.keys(list.cfg_diffs).length) {
    found.push(chart(`${title} · guidance`, list.cfg_diffs, list.cfg_cached_steps, evidence, steps, wide));
  }
  return found;
}

/** @param {boolean} [threshold]  true if the chart has its line */
export function legend(threshold = false) {
  const key = (/** @type {string} */ kind, /** @type {string} */ text) =>
    h("span", { class: `key ${kind}` }, h("span", { class: "swatch", "aria-hidden": "true" }), text);
  return h(
    "p",
    { class: "legend" },
    key("computed", "computed"),
    key("reused", "reused"),
    threshold && key("line", "threshold"),
    threshold && key("foreseen", "foreseen"),
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
    words.textContent = `${threshold}: would reuse about ${reused} of ${steps} steps (now\u00a0${now})`;
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
