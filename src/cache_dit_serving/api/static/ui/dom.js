// Elements of the page. Every text goes in as a text node, never as HTML: prompts and file names are strangers'.

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, unknown>} Properties
 */

/**
 * Set properties and attributes of an element: `on...` functions listen, `class`, `for`, `aria-*`, `data-*` and
 * whatever the element has no property for are attributes; null, undefined and false leave out.
 * @template {Element} E
 * @param {E} element
 * @param {Properties} properties
 * @returns {E}
 */
function set(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on") && typeof value === "function") {
      element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    } else if (element instanceof HTMLElement && name in element && !name.includes("-") && name !== "list") {
      Reflect.set(element, name, value);
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  return element;
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Properties} [properties]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, properties = {}, ...children) {
  const element = set(document.createElement(tag), properties);
  append(element, children);
  return element;
}

/**
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag
 * @param {Properties} [properties]
 * @param {...Child} children
 * @returns {SVGElementTagNameMap[T]}
 */
export function s(tag, properties = {}, ...children) {
  const element = set(document.createElementNS("http://www.w3.org/2000/svg", tag), properties);
  append(element, children);
  return element;
}

/**
 * @param {Element} element
 * @param {Child[]} children
 */
function append(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/**
 * Put children in place of those that an element has.
 * @param {Element} element
 * @param {...Child} children
 */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/**
 * The element of the page with this id.
 * @template {HTMLElement} E
 * @param {string} id
 * @param {new () => E} kind
 * @returns {E}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new TypeError(`no ${kind.name} #${id} on the page`);
  return found;
}

/**
 * Seconds for people: 0.42 s, 12.3 s, 2 min 5 s.
 * @param {number} value
 */
export function seconds(value) {
  // No line breaks before the unit.
  if (value < 10) return `${value.toFixed(2)}\u00a0s`;
  if (value < 60) return `${value.toFixed(1)}\u00a0s`;
  return `${Math.floor(value / 60)}\u00a0min ${Math.round(value % 60)}\u00a0s`;
}

/**
 * Bytes for people, in powers of 1024.
 * @param {number} value
 */
export function bytes(value) {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(1, value)) / 10)));
  const digits = power === 0 ? 0 : 1;
  return `${(value / 1024 ** power).toFixed(digits)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** Words that are written otherwise than a field's name has them. */
const WRITTEN = /** @type {Record<string, string>} */ ({
  cfg: "CFG",
  fps: "FPS",
  taylorseer: "TaylorSeer",
  diff: "difference",
  s: "(s)",
});

/** @param {string} name of a field */
export function label(name) {
  const words = name.replace(/_urls?$/, "").split("_");
  const text = words.map((word) => WRITTEN[word] ?? word).join(" ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
