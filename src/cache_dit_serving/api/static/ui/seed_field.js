// The seed, and the lock that keeps it.
import { scalar } from "./controls.js";
import { h } from "./dom.js";

/** @import { Schema } from "./client.js" */
/** @import { Control } from "./controls.js" */

/**
 * Control of the seed, with a lock that keeps the last one.
 * @param {Schema} schema
 * @param {() => number | undefined} lastSeed  seed of the newest output
 * @returns {Control}
 */
export function seedField(schema, lastSeed) {
  const control = scalar("seed", schema, { hint: "" });
  const input = /** @type {HTMLInputElement} */ (control.focus);
  input.placeholder = "random";
  const lock = h("input", { type: "checkbox" });
  const beside = h("label", { class: "lock", title: "Keep the seed of the last output" }, lock, "Keep");
  control.row.querySelector(".label")?.append(beside);
  lock.addEventListener("change", () => {
    if (!lock.checked) input.value = "";
    else if (input.value === "" && lastSeed() !== undefined) input.value = String(lastSeed());
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
