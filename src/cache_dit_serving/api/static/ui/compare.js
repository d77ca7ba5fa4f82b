// One seed at several settings side by side: a slider, flicker, difference heat map, and distances.
import { ServerError } from "./client.js";
import { copyAs } from "./copy_as.js";
import { distances, flipOf, heatMap, pixelsOf } from "./distances.js";
import { fill, h, seconds } from "./dom.js";
import { saveComparison } from "./saved_page.js";
import { comparison } from "./snippets.js";
import { shown } from "./stage.js";

/** @import { Capabilities, Client, Fields, Result } from "./client.js" */
/** @import { Wanted } from "./snippets.js" */

const MOST = 4;
const FLICKER_MS = 450;

/**
 * @typedef {object} Side
 * @property {string} name
 * @property {Blob} file
 * @property {Result} result
 * @property {ImageData | null} pixels  null: no picture
 */

/**
 * @param {HTMLElement} root
 * @param {Client} client
 * @param {() => Fields} read  the form's request
 * @param {Capabilities} capabilities
 * @param {HTMLElement} live
 * @param {() => Wanted} wanted  the form's request, for other clients
 */
export function compareTab(root, client, read, capabilities, live, wanted) {
  const speeds = capabilities.speeds.filter(({ allowed }) => allowed);
  const boxes = [...speeds.map(({ name }) => name), "as in the form"].map((name) =>
    h(
      "label",
      { class: "choice" },
      h("input", { type: "checkbox", value: name, checked: /lossless|balanced|fast/.test(name) }),
      name,
    ),
  );
  const place = h(
    "div",
    { class: "comparison" },
    h(
      "div",
      { class: "empty" },
      h("p", { class: "big" }, "Nothing compared yet"),
      h("p", {}, "The same seed is drawn with each setting: pictures, times and distances stand beside each other."),
    ),
  );
  const words = h("p", { class: "hint", role: "status" }, "The prompt and all else are those of the tab Draw.");
  const error = h("p", { class: "error", role: "alert", hidden: true });
  const button = h("button", { type: "button", id: "compare-draw", class: "primary" }, "Draw them");
  const names = () => boxes.flatMap((box) => [...box.querySelectorAll("input:checked")].map(settingOf));
  const written = () => {
    const request = wanted();
    const sides = requests(request.fields, names());
    return comparison(sides.map(({ name, fields }) => ({ ...request, fields, output: name.replaceAll(" ", "-") })));
  };
  fill(
    root,
    h(
      "fieldset",
      { class: "choices" },
      h("legend", {}, "One seed, two to four settings"),
      ...boxes,
      button,
      copyAs("Compare", written),
      words,
      error,
    ),
    place,
  );
  button.addEventListener("click", async () => {
    const chosen = names();
    error.hidden = chosen.length >= 2 && chosen.length <= MOST;
    error.textContent = "Choose two to four settings.";
    if (!error.hidden) return;
    button.disabled = true;
    try {
      const request = read();
      const sides = await draw(client, request, chosen, (text) => fill(words, text));
      words.textContent = "";
      live.textContent = "The comparison is drawn";
      show(place, sides, String(request.prompt ?? ""));
    } catch (caught) {
      if (!(caught instanceof ServerError)) throw caught;
      error.textContent = caught.param ? `${caught.param}: ${caught.message}` : caught.message;
      error.hidden = false;
      words.textContent = "";
    } finally {
      button.disabled = false;
    }
  });
}

/** @param {Element} input */
const settingOf = (input) => (input instanceof HTMLInputElement ? input.value : "");

/**
 * The requests of a comparison: one seed, with each of the settings.
 * @param {Record<string, any>} form  its fields
 * @param {string[]} names  of the settings
 */
function requests({ speed, cache, ...rest }, names) {
  const seed = rest.seed ?? Math.floor(Math.random() * 2 ** 31);
  const chosen = { ...(speed ? { speed } : {}), ...(cache ? { cache } : {}) };
  return names.map((name) => {
    const own = name === "as in the form" ? chosen : { speed: name };
    return { name, fields: { ...rest, ...own, seed, num_images: 1, include_stats: true } };
  });
}

/**
 * @param {Client} client
 * @param {Fields} request
 * @param {string[]} names
 * @param {(text: string) => void} tell
 * @returns {Promise<Side[]>}
 */
async function draw(client, request, names, tell) {
  const sides = [];
  for (const [index, { name, fields }] of requests(request, names).entries()) {
    const { result, files } = await client.draw(fields, {
      onprogress: ({ step, steps }) => tell(`${name} (${index + 1} of ${names.length}): step ${step} of ${steps}`),
      onposition: ({ position }) => tell(`${name}: place ${position} in the queue`),
    });
    const [file] = files;
    sides.push({ name, file, result, pixels: file.type.startsWith("image/") ? await pixelsOf(file) : null });
  }
  return sides;
}

/**
 * @param {HTMLElement} place
 * @param {Side[]} sides  the first is the one that others are measured against
 * @param {string} prompt
 */
function show(place, sides, prompt) {
  const [reference] = sides;
  const cards = sides.map((side) => {
    const apart =
      reference.pixels && side.pixels && side !== reference ? distances(reference.pixels, side.pixels) : null;
    const { cache } = side.result;
    const rows = [
      ["time", seconds(side.result.time_cost)],
      ["steps reused", `${cache.cached_steps} / ${cache.steps}`],
      ...(cache.engaged || cache.reason_code === "off" ? [] : [["because", cache.reason ?? ""]]),
      ["speed-up", `${(reference.result.time_cost / side.result.time_cost).toFixed(2)}×`],
      ...(apart
        ? [
            ["PSNR", apart.psnr === Infinity ? "identical" : `${apart.psnr.toFixed(1)} dB`],
            ["SSIM", apart.ssim.toFixed(4)],
            ["FLIP", flipShown(reference.pixels, side.pixels)],
          ]
        : []),
    ];
    return h(
      "figure",
      { class: "side" },
      shown(side.file, `${prompt}, ${side.name}`),
      h("figcaption", {}, side.name, side === reference && h("span", { class: "hint" }, " reference")),
      h("dl", {}, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    );
  });
  fill(place, h("div", { class: "sides" }, ...cards), reference.pixels && closer(sides, prompt), players(place, sides));
}

/**
 * FLIP of two pictures, once it is computed.
 * @param {ImageData | null} reference
 * @param {ImageData | null} pixels
 */
function flipShown(reference, pixels) {
  const words = h("span", { class: "flip" }, "…");
  if (reference && pixels) {
    flipOf(reference, pixels).then(
      (value) => fill(words, value.toFixed(4)),
      () => fill(words, "not computed"),
    );
  }
  return words;
}

/**
 * Two of the pictures over each other.
 * @param {Side[]} sides
 * @param {string} prompt
 */
function closer(sides, prompt) {
  const choice = (/** @type {number} */ chosen, /** @type {string} */ title) => {
    const select = h(
      "select",
      { "aria-label": title },
      ...sides.map(({ name }, index) => h("option", { value: index }, name)),
    );
    select.value = String(chosen);
    return select;
  };
  const left = choice(0, "Left picture");
  const right = choice(sides.length - 1, "Right picture");
  const cut = h("input", {
    type: "range",
    id: "cut",
    min: 0,
    max: 100,
    value: "50",
    "aria-label": "Share of the left picture",
  });
  const view = h("div", { class: "over" });
  const mode = h(
    "select",
    { id: "mode", "aria-label": "View" },
    ...["slider", "flicker", "difference"].map((name) => h("option", { value: name }, name)),
  );
  let timer = 0;
  const render = () => {
    clearInterval(timer);
    const [a, b] = [sides[Number(left.value)], sides[Number(right.value)]];
    cut.hidden = mode.value !== "slider";
    if (mode.value === "difference") {
      fill(view, a.pixels && b.pixels && heatMap(a.pixels, b.pixels));
      return;
    }
    const above = h("div", { class: "above" }, shown(a.file, a.name));
    const line = h("div", { class: "cut", hidden: mode.value !== "slider" });
    const names = h("p", { class: "names", "aria-hidden": "true" }, h("span", {}, a.name), h("span", {}, b.name));
    fill(view, shown(b.file, b.name), above, line, mode.value === "slider" && names);
    const place = () => {
      above.style.clipPath = mode.value === "slider" ? `inset(0 ${100 - Number(cut.value)}% 0 0)` : "";
      line.style.left = `${cut.value}%`;
    };
    cut.oninput = place;
    place();
    if (mode.value === "flicker") {
      timer = setInterval(() => {
        if (!view.isConnected) clearInterval(timer);
        above.hidden = !above.hidden;
      }, FLICKER_MS);
    }
  };
  for (const select of [left, right, mode]) select.addEventListener("change", render);
  render();
  const save = h(
    "button",
    { type: "button", class: "quiet", onclick: () => saveComparison(sides, prompt) },
    "Save as a page",
  );
  return h(
    "section",
    { class: "closer", "aria-label": "Closer" },
    h("div", { class: "tools" }, left, mode, right, save),
    view,
    cut,
  );
}

/**
 * A button that starts all videos at once.
 * @param {HTMLElement} place
 * @param {Side[]} sides
 */
function players(place, sides) {
  if (!sides[0].file.type.startsWith("video/")) return null;
  const together = () => {
    for (const video of place.querySelectorAll("video")) {
      video.currentTime = 0;
      video.play();
    }
  };
  return h("button", { type: "button", class: "quiet", onclick: together }, "Play all from the start");
}
