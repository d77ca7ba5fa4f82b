// A picture or video that a request brings: chosen, dropped, pasted, or painted (masks).
import { firstSentence } from "./controls.js";
import { h, label } from "./dom.js";
import { MaskPainter } from "./mask.js";

/** @import { Schema } from "./client.js" */

let made = 0;
const HINTS = /** @type {Record<string, string>} */ ({
  image_urls: "The picture to begin from or to edit: chosen, or dropped here.",
  mask_url: "White is drawn anew, black is kept. Paint it on the picture, or choose a file.",
  control_url: "Edges, depth or poses that guide the layout, as the model was trained for.",
  last_image_url: "The last picture of the video; the first is above.",
  video_url: "The video to begin from or to be guided by: MP4 or WebM.",
});

export class FileInput extends EventTarget {
  /** The file as a data URI; undefined: none. @type {string | undefined} */
  value;
  /** @type {File | undefined} */
  file;
  name = "";
  #clear;
  #picture = h("div", { class: "picked" });
  #input;
  #painter;
  /** Object URL of the file shown. */
  #shown = "";

  /**
   * @param {string} field
   * @param {Schema} schema
   */
  constructor(field, schema) {
    super();
    this.field = field;
    const id = `file-${++made}`;
    const video = field === "video_url";
    this.#input = h("input", { type: "file", id, accept: video ? "video/*" : "image/*" });
    this.#input.addEventListener("change", () => this.take(this.#input.files?.[0]));
    const clear = h(
      "button",
      { type: "button", class: "quiet", hidden: true, onclick: () => this.take(undefined) },
      "Remove",
    );
    this.#clear = clear;
    const error = h("p", { class: "error", hidden: true });
    const hint = h("p", { class: "hint" }, HINTS[field] ?? firstSentence(schema.description));
    this.#painter = field === "mask_url" ? new MaskPainter() : null;
    this.#painter?.addEventListener("change", () => this.#painted());
    this.row = h(
      "div",
      { class: "field file", "data-field": field },
      h("div", { class: "label" }, h("label", { htmlFor: id }, label(field)), clear),
      this.#input,
      this.#picture,
      this.#painter?.element,
      hint,
      error,
    );
    this.row.addEventListener("dragover", (event) => event.preventDefault());
    this.row.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.take(event.dataTransfer?.files[0]);
    });
  }

  get focus() {
    return this.#input;
  }

  /** @param {File | undefined} file */
  async take(file) {
    URL.revokeObjectURL(this.#shown);
    this.file = file;
    this.name = file?.name ?? "";
    this.value = file && (await dataUri(file));
    if (!file) this.#input.value = "";
    this.#clear.hidden = !file;
    this.#painter?.clear();
    this.#shown = file ? URL.createObjectURL(file) : "";
    const shown = { src: this.#shown, alt: `${label(this.field)} to send: ${this.name}`, muted: true, controls: true };
    const element = file?.type.startsWith("video/") ? h("video", shown) : h("img", { src: shown.src, alt: shown.alt });
    this.#picture.replaceChildren(...(file ? [element] : []));
    this.dispatchEvent(new Event("change"));
  }

  /**
   * Let the caller paint a mask on a picture.
   * @param {File | undefined} picture
   */
  paintOn(picture) {
    this.#painter?.show(picture);
    if (this.name === PAINTED) this.take(undefined);
  }

  async #painted() {
    const blob = await this.#painter?.mask();
    this.name = blob ? PAINTED : "";
    this.file = blob ? new File([blob], PAINTED, { type: "image/png" }) : undefined;
    this.value = blob && (await dataUri(blob));
    this.dispatchEvent(new Event("change"));
  }
}

const PAINTED = "mask.png";

/**
 * @param {Blob} blob
 * @returns {Promise<string>}
 */
export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
