// A comparison as one HTML file that needs nothing else.
import { seconds } from "./dom.js";
import { dataUri } from "./file_input.js";

/** @import { Result } from "./client.js" */

const STYLE = `body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color-scheme:light dark}
main{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0;max-width:32rem}
img,video{width:100%;min-width:16rem;border-radius:8px}table{font-size:13px}td{padding-right:1rem}`;

/**
 * HTML that shows this text.
 * @param {string} text
 */
const escaped = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

/**
 * The page, whole. It is put together as text: this page's policy holds for every document that it makes, and a saved one
 * has its style within.
 * @param {{name: string, file: Blob, result: Result}[]} sides
 * @param {string} prompt
 */
async function page(sides, prompt) {
  const figures = [];
  for (const { name, file, result } of sides) {
    const rows = {
      time: seconds(result.time_cost),
      "steps reused": `${result.cache.cached_steps} of ${result.cache.steps}`,
      seed: String(result.seeds[0]),
      settings: JSON.stringify(result.cache.settings ?? {}),
    };
    const cells = Object.entries(rows).map(([key, value]) => `<tr><td>${key}</td><td>${escaped(value)}</td></tr>`);
    const source = `src="${await dataUri(file)}"`;
    const output = file.type.startsWith("video/") ? `<video controls ${source}></video>` : `<img alt="" ${source}>`;
    figures.push(`<figure>${output}<figcaption>${escaped(name)}</figcaption><table>${cells.join("")}</table></figure>`);
  }
  const head = `<meta charset="utf-8"><title>${escaped(prompt)}</title><style>${STYLE}</style>`;
  return `<!doctype html>\n<html lang="en"><head>${head}</head><body><h1>${escaped(prompt)}</h1><main>${figures.join("")}</main></body></html>\n`;
}

/**
 * @param {{name: string, file: Blob, result: Result}[]} sides
 * @param {string} prompt
 */
export async function saveComparison(sides, prompt) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([await page(sides, prompt)], { type: "text/html" }));
  link.download = "comparison.html";
  link.click();
  URL.revokeObjectURL(link.href);
}
