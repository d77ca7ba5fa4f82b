// The choice of the speed.
import { newId, row } from "./controls.js";
import { h, seconds } from "./dom.js";

/** @import { Schema, Speed } from "./client.js" */
/** @import { Control } from "./controls.js" */

/**
 * The main choice: how much is approximated, with what was measured of it.
 * @param {Schema} schema
 * @param {Speed[]} speeds
 * @returns {Control}
 */
export function speedChoice(schema, speeds) {
  const choices = h("div", { class: "speeds", role: "radiogroup" });
  const group = newId("speed");
  for (const speed of speeds) {
    const { measured } = speed;
    const gain = measured?.speedup ? `${measured.speedup.toFixed(1)}×` : speed.settings ? "–" : "1×";
    const lowered = speed.lowered_to && `now ${speed.lowered_to}`;
    const cost = lowered ?? (measured?.ssim ? `SSIM ${measured.ssim}` : speed.settings ? "not measured" : "exact");
    const time = speed.seconds ? `≈ ${seconds(speed.seconds)}` : "";
    choices.append(
      h(
        "label",
        { class: "speed", title: speed.allowed ? "" : "above the operator's ceiling" },
        h("input", { type: "radio", name: group, value: speed.name, disabled: !speed.allowed }),
        h("span", { class: "name" }, speed.name),
        h("span", { class: "gain" }, gain),
        h("span", { class: "cost" }, cost),
        h("span", { class: "time" }, time),
      ),
    );
  }
  const chosen = () => /** @type {HTMLInputElement | null} */ (choices.querySelector("input:checked"));
  const write = (/** @type {unknown} */ value) => {
    for (const input of choices.querySelectorAll("input")) input.checked = input.value === (value ?? schema.default);
  };
  write(undefined);
  const control = row("speed", choices, { title: "Speed" });
  choices.setAttribute("aria-label", "Speed");
  return { row: control, focus: choices, read: () => chosen()?.value, write };
}
