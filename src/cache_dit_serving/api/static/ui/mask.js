// Painting of a mask on the picture to edit: what is painted is drawn anew.
import { h } from "./dom.js";

const UNDONE = 20;

export class MaskPainter extends EventTarget {
  #canvas = h("canvas", { class: "mask", tabIndex: 0, role: "img", "aria-label": "Mask: paint what is drawn anew" });
  #picture = h("img", { alt: "" });
  #size = h("input", { type: "range", min: 2, max: 60, value: "16", "aria-label": "Brush, percent of the width" });
  #erase = h("input", { type: "checkbox" });
  /** @type {ImageData[]} */
  #before = [];
  #url = "";
  #drawn = false;

  constructor() {
    super();
    const button = (/** @type {string} */ text, /** @type {() => void} */ onclick) =>
      h("button", { type: "button", class: "quiet", onclick }, text);
    this.element = h(
      "div",
      { class: "painter", hidden: true },
      h("div", { class: "easel" }, this.#picture, this.#canvas),
      h(
        "div",
        { class: "tools" },
        h("label", {}, "Brush", this.#size),
        h("label", {}, this.#erase, "Erase"),
        button("All", () => this.#fill()),
        button("Save", () => this.#save()),
        button("Undo", () => this.#undo()),
        button("Clear", () => {
          this.clear();
          this.dispatchEvent(new Event("change"));
        }),
      ),
    );
    this.#canvas.addEventListener("pointerdown", (event) => this.#paint(event));
  }

  get #context() {
    const context = this.#canvas.getContext("2d", { willReadFrequently: true });
    if (!context) throw new Error("this browser draws no canvas");
    return context;
  }

  /** @param {File | undefined} picture */
  show(picture) {
    URL.revokeObjectURL(this.#url);
    this.element.hidden = !picture;
    if (!picture) return;
    this.#url = URL.createObjectURL(picture);
    this.#picture.onload = () => {
      this.#canvas.width = this.#picture.naturalWidth;
      this.#canvas.height = this.#picture.naturalHeight;
      this.clear();
    };
    this.#picture.src = this.#url;
  }

  clear() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#before = [];
    this.#drawn = false;
  }

  /** @param {PointerEvent} start */
  #paint(start) {
    start.preventDefault();
    this.#canvas.setPointerCapture(start.pointerId);
    this.#keep();
    const context = this.#context;
    context.globalCompositeOperation = this.#erase.checked ? "destination-out" : "source-over";
    context.strokeStyle = context.fillStyle = "white";
    context.lineWidth = (Number(this.#size.value) / 100) * this.#canvas.width;
    context.lineCap = context.lineJoin = "round";
    const place = (/** @type {PointerEvent} */ event) => {
      const box = this.#canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * this.#canvas.width;
      return /** @type {const} */ ([x, ((event.clientY - box.top) / box.height) * this.#canvas.height]);
    };
    context.beginPath();
    context.moveTo(...place(start));
    context.lineTo(...place(start));
    context.stroke();
    const move = (/** @type {PointerEvent} */ event) => {
      for (const one of event.getCoalescedEvents?.() ?? [event]) context.lineTo(...place(one));
      context.stroke();
    };
    const end = () => {
      this.#canvas.removeEventListener("pointermove", move);
      this.#drawn = true;
      this.dispatchEvent(new Event("change"));
    };
    this.#canvas.addEventListener("pointermove", move);
    this.#canvas.addEventListener("pointerup", end, { once: true });
    this.#canvas.addEventListener("pointercancel", end, { once: true });
  }

  #keep() {
    this.#before.push(this.#context.getImageData(0, 0, this.#canvas.width, this.#canvas.height));
    if (this.#before.length > UNDONE) this.#before.shift();
  }

  #fill() {
    this.#keep();
    this.#context.globalCompositeOperation = "source-over";
    this.#context.fillStyle = "white";
    this.#context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#drawn = true;
    this.dispatchEvent(new Event("change"));
  }

  #undo() {
    const before = this.#before.pop();
    if (!before) return;
    this.#context.putImageData(before, 0, 0);
    this.#drawn = this.#before.length > 0;
    this.dispatchEvent(new Event("change"));
  }

  /** The snippets name the mask's file. */
  async #save() {
    const mask = await this.mask();
    if (!mask) return;
    const link = h("a", { href: URL.createObjectURL(mask), download: "mask.png" });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  /**
   * White where it is painted, black elsewhere, in the picture's own size; undefined if nothing is.
   * @returns {Promise<Blob | undefined>}
   */
  async mask() {
    if (!this.#drawn) return undefined;
    const flat = h("canvas", { width: this.#canvas.width, height: this.#canvas.height });
    const context = flat.getContext("2d");
    context?.fillRect(0, 0, flat.width, flat.height);
    context?.drawImage(this.#canvas, 0, 0);
    return new Promise((resolve) => flat.toBlob((blob) => resolve(blob ?? undefined), "image/png"));
  }
}
