// A comparison as one HTML file that needs nothing else.
import { seconds } from "./dom.js";
import { dataUri } from "./file_input.js";

/** @import { Result } from "./client.js" */

const STYLE = `body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color-scheme:light dark}
main{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0;max-width:32rem}
img,video{width:100%;min-width:16rem;border-radius:8px}table{font-size:13px}td{padding-right:1rem}`;

/**
 * @param {{name: string, file: Blob, result: Result}[]} sides
 * @param {string} prompt
 */
export async function saveComparison(sides, prompt) {
  const page = document.implementation.createHTMLDocument(prompt);
  const add = (/** @type {Element} */ parent, /** @type {string} */ tag, /** @type {string} */ text = "") => {
    const element = page.createElement(tag);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  add(page.head, "style", STYLE);
  const charset = page.createElement("meta");
  charset.setAttribute("charset", "utf-8");
  page.head.prepend(charset);
  add(page.body, "h1", prompt);
  const main = add(page.body, "main");
  for (const { name, file, result } of sides) {
    const figure = add(main, "figure");
    const output = add(figure, file.type.startsWith("video/") ? "video" : "img");
    output.setAttribute("src", await dataUri(file));
    if (output.tagName === "VIDEO") output.setAttribute("controls", "");
    else output.setAttribute("alt", name);
    add(figure, "figcaption", name);
    const table = add(figure, "table");
    const rows = {
      time: seconds(result.time_cost),
      "steps reused": `${result.cache.cached_steps} of ${result.cache.steps}`,
      seed: String(result.seeds[0]),
      settings: JSON.stringify(result.cache.settings ?? {}),
    };
    for (const [key, value] of Object.entries(rows)) {
      const row = add(table, "tr");
      add(row, "td", key);
      add(row, "td", value);
    }
  }
  const html = `<!doctype html>\n${page.documentElement.outerHTML}`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  link.download = "comparison.html";
  link.click();
  URL.revokeObjectURL(link.href);
}
