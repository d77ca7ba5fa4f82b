// The noise levels of the steps (`sigmas`), as numbers in one line of text.
import { firstSentence, row } from "./controls.js";
import { h } from "./dom.js";

/** @import { Schema } from "./client.js" */
/** @import { Control } from "./controls.js" */

/** Parts of a list of numbers, as people and programs write one: commas, spaces or lines apart, in brackets or not. */
const parts = (/** @type {string} */ text) => text.split(/[\s,;[\]]+/).filter((part) => part !== "");

/**
 * Control of the noise levels. What is no number is sent as it stands, so that the server says what is wrong with it.
 * @param {string} name
 * @param {Schema} schema
 * @returns {Control}
 */
export function noiseLevels(name, schema) {
  const input = h("textarea", { rows: 2, placeholder: "1, 0.75, 0.5, 0.25", autocomplete: "off", spellcheck: false });
  return {
    row: row(name, input, { title: "Noise levels (sigmas)", hint: firstSentence(schema.description) }),
    focus: input,
    read: () => {
      const found = parts(input.value);
      return found.length ? found.map((part) => (Number.isNaN(Number(part)) ? part : Number(part))) : undefined;
    },
    write: (value) => {
      input.value = Array.isArray(value) ? value.join(", ") : "";
    },
    fault: () => faultOf(parts(input.value), schema),
  };
}

/**
 * @param {string[]} found
 * @param {Schema} schema
 */
function faultOf(found, schema) {
  const { minimum, exclusiveMinimum, maximum } = schema.items ?? {};
  for (const [index, part] of found.entries()) {
    const value = Number(part);
    if (Number.isNaN(value)) return `${part} is no number`;
    if (value < (minimum ?? -Infinity) || value <= (exclusiveMinimum ?? -Infinity)) {
      return `${part} is not ${minimum === undefined ? `above ${exclusiveMinimum}` : `at least ${minimum}`}`;
    }
    if (value > (maximum ?? Infinity)) return `${part} is more than ${maximum}`;
    if (index > 0 && value >= Number(found[index - 1])) return `${part} is not below ${found[index - 1]} before it`;
  }
  return found.length > (schema.maxItems ?? Infinity) ? `${found.length} levels; at most ${schema.maxItems}` : "";
}
