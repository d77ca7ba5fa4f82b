// Controls of single fields: a label, an input made from the field's schema, and room for the server's words.
import { h, label } from "./dom.js";

/** @import { Schema } from "./client.js" */

/**
 * @typedef {object} Control
 * @property {HTMLElement} row
 * @property {HTMLElement} focus  element that errors lead to
 * @property {() => unknown} read  value to send; undefined: left out
 * @property {(value: any) => void} write  undefined: back to the default
 * @property {() => string} [fault]  reason why the text typed so far is no such value; empty: it may be one
 */

/** Element ids of the form's fields are unique by this. */
let made = 0;

/**
 * An element id that no other element of the form has.
 * @param {string} kind
 */
export const newId = (kind) => `${kind}-${++made}`;

/**
 * A label, its control, and room for the server's words about it.
 * @param {string} name
 * @param {HTMLElement} input
 * @param {{hint?: string, title?: string, beside?: HTMLElement}} [options]
 */
export function row(name, input, { hint = "", title = label(name), beside } = {}) {
  const id = newId("field");
  input.id = id;
  const error = h("p", { class: "error", id: `${id}-error`, hidden: true });
  input.setAttribute("aria-describedby", hint ? `${id}-hint ${error.id}` : error.id);
  const described = hint && h("p", { class: "hint", id: `${id}-hint` }, hint);
  return h(
    "div",
    { class: "field", "data-field": name },
    h("div", { class: "label" }, h("label", { htmlFor: id }, title), beside),
    input,
    described,
    error,
  );
}

/** @param {string | undefined} text */
export const firstSentence = (text) => (text ?? "").split(/(?<=\.)\s/)[0].replaceAll("`", "");

/**
 * Control of a scalar field, by its schema.
 * @param {string} name
 * @param {Schema} schema
 * @param {{title?: string, hint?: string}} [options]  hint; left out: the first sentence of the description
 * @returns {Control}
 */
export function scalar(name, schema, { title, hint } = {}) {
  const words = hint ?? firstSentence(schema.description);
  const standing = schema.default ?? null;
  const kind = schema.type ?? (schema.anyOf ?? []).find((/** @type {Schema} */ one) => one.type !== "null")?.type;
  if (schema.enum || kind === "boolean") {
    const values = schema.enum ?? [true, false];
    const select = h("select", {}, h("option", { value: "" }, standing === null ? "default" : `default: ${standing}`));
    for (const value of values) select.append(h("option", { value: JSON.stringify(value) }, String(value)));
    return {
      row: row(name, select, { hint: words, title }),
      focus: select,
      read: () => (select.value === "" ? undefined : JSON.parse(select.value)),
      write: (value) => {
        select.value = value === undefined || value === null ? "" : JSON.stringify(value);
      },
    };
  }
  const number = kind === "integer" || kind === "number";
  const bounds = {
    min: schema.minimum ?? "",
    max: schema.maximum ?? "",
    step: schema.multipleOf ?? (kind === "integer" ? 1 : "any"),
  };
  const input = h("input", {
    type: number ? "number" : "text",
    placeholder: standing === null ? "default" : String(standing),
    autocomplete: "off",
    ...(number ? { ...bounds, inputMode: kind === "integer" ? "numeric" : "decimal" } : {}),
  });
  return {
    row: row(name, input, { hint: words, title }),
    focus: input,
    // What is no number is sent as it stands, so that the server says what is wrong with it.
    read: () => (input.value === "" ? undefined : number ? Number(input.value) : input.value),
    write: (value) => {
      input.value = value === undefined || value === null ? "" : String(value);
    },
  };
}

/**
 * Control of a class, by its name or number.
 * @param {Schema} schema
 * @returns {Control}
 */
export function classLabel(schema) {
  const [byNumber, byName] = /** @type {Schema[]} */ (schema.anyOf);
  const names = /** @type {string[]} */ (byName?.enum ?? []);
  const id = newId("classes");
  const list = h("datalist", { id }, ...names.map((name) => h("option", { value: name })));
  const hint = `${names.length ? "A name, or a" : "A"} number from ${byNumber.minimum} to ${byNumber.maximum}`;
  const input = h("input", { type: "text", list: id, autocomplete: "off", placeholder: names[0] ?? "0" });
  const control = row("class_label", input, { title: "Class", hint });
  control.append(list);
  return {
    row: control,
    focus: input,
    read: () => (input.value === "" ? undefined : /^\d+$/.test(input.value) ? Number(input.value) : input.value),
    write: (value) => {
      input.value = value === undefined || value === null ? "" : String(value);
    },
  };
}

/**
 * Control of a longer text.
 * @param {string} name
 * @param {Schema} schema
 * @param {number} rows
 * @returns {Control}
 */
export function text(name, schema, rows) {
  const input = h("textarea", { rows, placeholder: schema.examples?.[0] ?? "", maxLength: schema.maxLength ?? -1 });
  return {
    row: row(name, input),
    focus: input,
    read: () => (input.value === "" ? undefined : input.value),
    write: (value) => {
      input.value = value ?? "";
    },
  };
}

/** @param {Schema} schema */
export function isScalar(schema) {
  return !["array", "object"].includes(schema.type) && !schema.properties && !schema.items;
}
