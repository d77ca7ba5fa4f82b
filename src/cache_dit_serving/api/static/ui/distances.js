// Distances of two pictures of one size, by their bytes.
import { h } from "./dom.js";

const WINDOW = 8;
const C1 = (0.01 * 255) ** 2;
const C2 = (0.03 * 255) ** 2;

/**
 * @param {Blob} file
 * @returns {Promise<ImageData>}
 */
export async function pixelsOf(file) {
  const bitmap = await createImageBitmap(file);
  const canvas = h("canvas", { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d");
  if (!context) throw new Error("this browser draws no canvas");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/**
 * PSNR in dB over the three channels (infinite: identical), and the mean SSIM of the luma over blocks of 8 x 8 pixels
 * with the usual constants (Wang et al. 2004), without the Gaussian window that POST /compare has.
 * @param {ImageData} a
 * @param {ImageData} b
 */
export function distances(a, b) {
  let sum = 0;
  for (let at = 0; at < a.data.length; at++) {
    if (at % 4 !== 3) sum += (a.data[at] - b.data[at]) ** 2;
  }
  const mean = sum / (a.width * a.height * 3);
  return {
    psnr: mean === 0 ? Infinity : 10 * Math.log10(255 ** 2 / mean),
    ssim: ssim(luma(a), luma(b), a.width, a.height),
  };
}

/**
 * FLIP, 0 (equal) to 1, computed beside the page.
 * @param {ImageData} a
 * @param {ImageData} b
 * @returns {Promise<number>}
 */
export function flipOf(a, b) {
  const worker = new Worker(new URL("./flip_worker.js", import.meta.url), { type: "module" });
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = () => reject(new Error("FLIP could not be computed"));
    const parts = [a, b].map(({ data, width, height }) => ({ data, width, height }));
    worker.postMessage({ a: parts[0], b: parts[1] });
  }).finally(() => worker.terminate());
}

/** @param {ImageData} image */
function luma({ data }) {
  return Float32Array.from({ length: data.length / 4 }, (_, at) => {
    return 0.299 * data[4 * at] + 0.587 * data[4 * at + 1] + 0.114 * data[4 * at + 2];
  });
}

/**
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @param {number} width
 * @param {number} height
 */
function ssim(a, b, width, height) {
  let total = 0;
  let blocks = 0;
  for (let top = 0; top + WINDOW <= height; top += WINDOW / 2) {
    for (let left = 0; left + WINDOW <= width; left += WINDOW / 2) {
      let [sa, sb, saa, sbb, sab] = [0, 0, 0, 0, 0];
      for (let y = top; y < top + WINDOW; y++) {
        for (let x = left; x < left + WINDOW; x++) {
          const [p, q] = [a[y * width + x], b[y * width + x]];
          sa += p;
          sb += q;
          saa += p * p;
          sbb += q * q;
          sab += p * q;
        }
      }
      const n = WINDOW * WINDOW;
      const [ma, mb] = [sa / n, sb / n];
      const [va, vb, cab] = [saa / n - ma * ma, sbb / n - mb * mb, sab / n - ma * mb];
      total += ((2 * ma * mb + C1) * (2 * cab + C2)) / ((ma * ma + mb * mb + C1) * (va + vb + C2));
      blocks += 1;
    }
  }
  return blocks ? total / blocks : 1;
}

/**
 * Absolute difference of each pixel as a colour, from black over red to white; the greatest is white.
 * @param {ImageData} a
 * @param {ImageData} b
 */
export function heatMap(a, b) {
  const canvas = h("canvas", {
    width: a.width,
    height: a.height,
    role: "img",
    "aria-label": "Difference, the greatest is white",
  });
  const apart = Float32Array.from({ length: a.width * a.height }, (_, at) => {
    const part = (/** @type {number} */ channel) => Math.abs(a.data[4 * at + channel] - b.data[4 * at + channel]);
    return Math.max(part(0), part(1), part(2));
  });
  const most = apart.reduce((found, value) => Math.max(found, value), 1);
  const context = canvas.getContext("2d");
  const image = new ImageData(a.width, a.height);
  apart.forEach((value, at) => {
    const heat = (value / most) * 3;
    const channels = [heat, heat - 1, heat - 2].map((part) => Math.round(255 * Math.min(1, Math.max(0, part))));
    image.data.set([...channels, 255], 4 * at);
  });
  context?.putImageData(image, 0, 0);
  const words =
    most <= 1 && apart.every((value) => value === 0) ? "Identical" : `The greatest difference is ${most} of 255`;
  return h("figure", { class: "heat" }, canvas, h("figcaption", {}, words));
}
