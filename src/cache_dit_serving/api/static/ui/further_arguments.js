// Further arguments of the pipeline's call (`extra_args`), as pairs of a name and a JSON value.
import { row } from "./controls.js";
import { h } from "./dom.js";

/** @import { Schema } from "./client.js" */
/** @import { Control } from "./controls.js" */

/**
 * @typedef {object} Pair
 * @property {HTMLElement} row
 * @property {HTMLSelectElement} name
 * @property {HTMLInputElement} value
 */

/**
 * Control of the arguments that the server lists. A value that is no JSON is sent as a text.
 * @param {string} name
 * @param {Schema} schema
 * @returns {Control}
 */
export function furtherArguments(name, schema) {
  /** @type {Record<string, Schema>} */
  const known = schema.properties ?? {};
  /** @type {Pair[]} */
  let pairs = [];
  const list = h("div", { class: "pair-list" });
  const add = h("button", { type: "button", class: "quiet", onclick: () => append().name.focus() }, "Add");
  const control = row(name, list, { title: "Further arguments", hint: "A name, and its value as JSON.", beside: add });
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", "Further arguments");

  /** Tell the form, which listens to what is typed alone. */
  const changed = () => list.dispatchEvent(new Event("change", { bubbles: true }));

  /** @param {string} [chosen] @param {unknown} [value] */
  function append(chosen, value) {
    const free = Object.keys(known).find((one) => pairs.every((pair) => pair.name.value !== one));
    const options = Object.keys(known).map((one) => h("option", { value: one }, one));
    const pair = {
      name: h("select", { "aria-label": "Name of the argument" }, ...options),
      value: h("input", { type: "text", autocomplete: "off", spellcheck: false, "aria-label": "Value, as JSON" }),
      row: h("div", { class: "pair" }),
    };
    pair.name.value = chosen ?? free ?? "";
    pair.value.value = value === undefined ? "" : JSON.stringify(value);
    const show = () => {
      pair.value.placeholder = exampleOf(known[pair.name.value]);
    };
    show();
    pair.name.addEventListener("change", show);
    const remove = () => {
      pairs = pairs.filter((one) => one !== pair);
      pair.row.remove();
      changed();
      add.focus();
    };
    const words = { type: "button", class: "quiet", "aria-label": "Remove this argument", onclick: remove };
    pair.row.append(pair.name, pair.value, h("button", words, "Remove"));
    pairs.push(pair);
    list.append(pair.row);
    return pair;
  }

  return {
    row: control,
    get focus() {
      return pairs[0]?.value ?? add;
    },
    read: () => {
      const given = pairs.filter(({ value }) => value.value.trim() !== "");
      if (!given.length) return undefined;
      return Object.fromEntries(given.map((pair) => [pair.name.value, parsed(pair.value.value).value]));
    },
    write: (value) => {
      pairs = [];
      list.replaceChildren();
      for (const [one, given] of Object.entries(value ?? {})) append(one, given);
    },
    fault: () => faultOf(pairs, known),
  };
}

/**
 * @param {Pair[]} pairs
 * @param {Record<string, Schema>} known
 */
function faultOf(pairs, known) {
  const names = pairs.map(({ name }) => name.value);
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice) return `${twice} stands here twice`;
  const wrong = pairs.find(
    ({ name, value }) =>
      value.value.trim() && !parsed(value.value).json && !types(known[name.value]).includes("string"),
  );
  return wrong ? `${wrong.name.value}: ${wrong.value.value} is no JSON` : "";
}

/**
 * @param {string} text
 * @returns {{json: boolean, value: unknown}}
 */
function parsed(text) {
  try {
    return { json: true, value: JSON.parse(text) };
  } catch {
    return { json: false, value: text };
  }
}

/**
 * JSON types that an argument may have.
 * @param {Schema | undefined} schema
 * @returns {string[]}
 */
function types(schema) {
  return [schema, ...(schema?.anyOf ?? [])].map((one) => one?.type).filter((type) => typeof type === "string");
}

/** @param {Schema | undefined} schema */
function exampleOf(schema) {
  const [type] = types(schema);
  const shown = { string: '"text"', boolean: "true", integer: "1", number: "0.5", array: "[1, 2]", object: '{"a": 1}' };
  return shown[/** @type {keyof typeof shown} */ (type)] ?? "JSON";
}
