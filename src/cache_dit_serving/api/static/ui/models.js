// The models of a server that has several: the choice at the head of the form, and their card in the operator's corner.
import { ServerError } from "./client.js";
import { bytes, fill, h, seconds } from "./dom.js";

/** @import { Capabilities, Client, Fields, ModelState, Schema } from "./client.js" */

const EVERY_MS = 1000;
const WORDS = /** @type {Record<string, string>} */ ({ unloaded: "not loaded" });
const IN_MEMORY = ["ready", "loading", "draining"];

/**
 * What stands beside a model's state.
 * @param {ModelState} model
 */
function noteOf({ status, reason, ready_in_s: wait }) {
  if (status === "unloaded") return "loads at its first request";
  if (status === "asleep" && wait !== undefined) return `wakes in about ${seconds(wait)}`;
  return reason ?? "";
}

/** @param {ModelState} model */
const wordOf = ({ status }) => WORDS[status] ?? status;

/** Buttons that choose the model of the form. A click loads a model, so the arrow keys alone choose none. */
export class ModelChoice {
  /** Name of the form's model. */
  chosen;
  #client;
  #onchosen;
  #current;
  #list = h("div", { class: "model-list" });
  #progress = h("p", { class: "hint", role: "status", hidden: true });
  #error = h("p", { class: "error", role: "alert", hidden: true });
  /** @type {Map<string, {button: HTMLButtonElement, state: HTMLElement, note: HTMLElement}>} */
  #rows = new Map();
  /** The choice that waits for its model. @type {{name: string, abort: AbortController} | null} */
  #waiting = null;

  /**
   * @param {HTMLElement} fields  element that it stands before
   * @param {Client} client
   * @param {ModelState[]} models
   * @param {(name: string, capabilities: Capabilities) => void} onchosen  called once a model is there
   */
  constructor(fields, client, models, onchosen) {
    this.#client = client;
    this.#current = models;
    this.#onchosen = onchosen;
    this.chosen = client.model;
    const title = h("span", { id: "models-title" }, "Model");
    const group = h("div", { class: "field", id: "models", role: "group", "aria-labelledby": title.id });
    fill(group, h("div", { class: "label" }, title), this.#list, this.#progress, this.#error);
    for (const { name } of models) this.#list.append(this.#row(name));
    fields.before(group);
    this.show(models);
  }

  /** @param {string} name */
  #row(name) {
    const state = h("span", {});
    const note = h("span", { class: "note" });
    const words = { type: "button", class: "model", "data-model": name, onclick: () => this.choose(name) };
    const button = h("button", words, h("span", { class: "name" }, name), state, note);
    this.#rows.set(name, { button, state, note });
    return button;
  }

  /** @param {string} name */
  has(name) {
    return this.#rows.has(name);
  }

  /**
   * Show the models' states.
   * @param {ModelState[]} models
   */
  show(models) {
    this.#current = models;
    for (const model of models) {
      const row = this.#rows.get(model.name);
      if (!row) continue;
      row.button.setAttribute("aria-pressed", String(model.name === this.chosen));
      row.button.setAttribute("aria-busy", String(model.name === this.#waiting?.name));
      row.state.className = `state ${model.status}`;
      row.state.textContent = wordOf(model);
      row.note.textContent = noteOf(model);
    }
    this.#tellProgress();
  }

  #tellProgress() {
    const name = this.#waiting?.name;
    const model = this.#current.find((one) => one.name === name);
    const stage = model?.status === "loading" && model.reason ? model.reason : "is loading";
    const words = name ? `${name}: ${stage}. Until it is there, the form is that of ${this.chosen}.` : "";
    this.#progress.hidden = words === "";
    if (this.#progress.textContent !== words) this.#progress.textContent = words;
  }

  /**
   * Choose a model, once it is there; the choice before, if it still waits, is given up.
   * @param {string} name
   * @returns {Promise<boolean>} true if the form is that model's
   */
  async choose(name) {
    this.#waiting?.abort.abort();
    this.#waiting = null;
    this.#error.hidden = true;
    if (name === this.chosen) {
      this.show(this.#current);
      return true;
    }
    const abort = new AbortController();
    this.#waiting = { name, abort };
    this.show(this.#current);
    const timer = setInterval(() => this.#look(), EVERY_MS);
    try {
      const capabilities = await this.#client.capabilities({ model: name, signal: abort.signal });
      if (abort.signal.aborted) return false;
      this.chosen = name;
      this.#waiting = null;
      this.#onchosen(name, capabilities);
      return true;
    } catch (error) {
      if (abort.signal.aborted) return false;
      this.#waiting = null;
      if (!(error instanceof ServerError)) throw error;
      const again = error.retryAfter ? ` (try again in ${error.retryAfter} s)` : "";
      this.#error.textContent = `${name}: ${error.message}${again}`;
      this.#error.hidden = false;
      return false;
    } finally {
      clearInterval(timer);
      this.show(this.#current);
      this.#look();
    }
  }

  async #look() {
    try {
      const { models } = await this.#client.health();
      if (models) this.show(models);
    } catch (error) {
      // The head of the page tells it.
      if (!(error instanceof ServerError)) throw error;
    }
  }
}

/**
 * The fields of a request that another model takes as they stand.
 * @param {Fields} fields
 * @param {Capabilities} capabilities  the other model's
 * @returns {Fields}
 */
export function fitting(fields, capabilities) {
  const { cache, ...rest } = fields;
  const speeds = capabilities.speeds.filter(({ allowed }) => allowed).map(({ name }) => name);
  const kept = Object.entries(rest).filter(([name, value]) =>
    name === "speed" ? speeds.includes(String(value)) : fits(capabilities.fields[name], value),
  );
  if (cache && capabilities.fields.cache && capabilities.cache.supported) {
    const taken = Object.entries(cache).filter(([name, value]) => fits(capabilities.cache.fields[name], value));
    if (taken.length) kept.push(["cache", Object.fromEntries(taken)]);
  }
  return Object.fromEntries(kept);
}

/**
 * True if a value lies within a field's schema, as far as this page reads schemas.
 * @param {Schema | undefined} schema
 * @param {any} value
 * @returns {boolean}
 */
function fits(schema, value) {
  if (!schema) return false;
  if ("const" in schema) return value === schema.const;
  if (schema.anyOf) return schema.anyOf.some((/** @type {Schema} */ one) => fits(one, value));
  if (schema.enum) return schema.enum.includes(value);
  if (Array.isArray(value)) {
    const { maxItems = Infinity, minItems = 0, items } = schema;
    return value.length >= minItems && value.length <= maxItems && (!items || value.every((one) => fits(items, one)));
  }
  if (value !== null && typeof value === "object") {
    if (!schema.properties) return schema.type === "object";
    return Object.entries(value).every(([name, one]) => fits(schema.properties[name], one));
  }
  if (typeof value === "number") {
    const { minimum: low = -Infinity, maximum: high = Infinity, exclusiveMinimum: above = -Infinity } = schema;
    const steps = schema.multipleOf ? value % schema.multipleOf === 0 : true;
    return ["integer", "number"].includes(schema.type) && value >= low && value <= high && value > above && steps;
  }
  return typeof value === schema.type && String(value).length <= (schema.maxLength ?? Infinity);
}

/**
 * The models in the operator's corner.
 * @param {ModelState[]} models
 * @param {string} chosen  name of the form's model
 * @param {{change: (route: "/sleep" | "/wake", name: string) => void,
 *   copied: (name: string, method: string, route: string, body?: unknown) => HTMLElement}} actions
 */
export function modelsCard(models, chosen, { change, copied }) {
  const rows = models.map((model) => {
    const { name, status, weight_bytes: weights, resident } = model;
    const route = IN_MEMORY.includes(status) ? "/sleep" : "/wake";
    const verb = route === "/sleep" ? "Sleep" : status === "asleep" ? "Wake" : "Load";
    const onclick = () => change(route, name);
    const words = { type: "button", class: "quiet", "aria-label": `${verb} ${name}`, onclick };
    const facts = [
      ...(model.default ? ["default"] : []),
      ...(resident === "always" ? ["always resident"] : []),
      ...(weights ? [bytes(weights)] : []),
    ];
    return h(
      "li",
      {},
      h("span", { class: `state ${status}` }, wordOf(model)),
      h("span", { class: "what" }, name, h("span", { class: "note" }, noteOf(model))),
      name === chosen && h("span", { class: "hint" }, "shown below"),
      facts.length > 0 && h("span", { class: "hint" }, facts.join(", ")),
      h("button", { ...words, disabled: status === "loading" || status === "draining" }, verb),
      copied(`${verb} ${name}`, "POST", route, { model: name }),
    );
  });
  const list = h("ul", { class: "rows" }, ...rows);
  return h("section", { class: "card", "aria-label": "Models" }, h("h2", {}, "Models"), list);
}
