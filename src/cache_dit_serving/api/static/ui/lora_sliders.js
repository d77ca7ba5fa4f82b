// The choice of LoRAs and their scales.
import { row } from "./controls.js";
import { h } from "./dom.js";

/** @import { Schema } from "./client.js" */
/** @import { Control } from "./controls.js" */

/**
 * Control of the LoRAs: a slider for each.
 * @param {Schema} schema
 * @returns {Control}
 */
export function loraSliders(schema) {
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
  return { row: control, focus: list, read, write };
}

/**
 * LoRAs that a request may name, with the bounds of their scales.
 * @param {Schema} schema
 * @returns {{name: string, low: number, high: number}[]}
 */
function loraBounds(schema) {
  return (schema.items?.anyOf ?? []).map((/** @type {Schema} */ { properties: { name, scale } }) => {
    return { name: name.const, low: scale.minimum, high: scale.maximum };
  });
}
