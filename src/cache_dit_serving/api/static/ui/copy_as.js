// Actions of the page in the words of other clients, to be copied.
import { fill, h } from "./dom.js";

const TOLD_MS = 1500;

/**
 * Copy a text that is shown.
 * @param {string} text
 * @param {HTMLElement} place  where it is shown
 * @param {HTMLButtonElement} button  says that it is copied
 */
export async function copy(text, place, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // A page over plain http of another host may not write: the text is selected instead.
    getSelection()?.selectAllChildren(place);
    button.textContent = "Selected";
  }
  setTimeout(() => {
    button.textContent = "Copy";
  }, TOLD_MS);
}

/**
 * A button that shows an action in the words of other clients.
 * @param {string} action  its name
 * @param {() => Record<string, string | null>} write  the texts, by language; null: it has no such request
 */
export function copyAs(action, write) {
  const words = { type: "button", class: "quiet copy-as", "aria-label": `Copy "${action}" as`, title: "Copy as" };
  return h("button", { ...words, onclick: () => show(action, write()) }, "</>");
}

/**
 * @param {string} action
 * @param {Record<string, string | null>} texts
 */
function show(action, texts) {
  const text = h("pre", { tabIndex: 0 });
  const button = h("button", { class: "primary", type: "button" }, "Copy");
  const choices = Object.entries(texts).map(([language, written], index) => {
    const choose = () => {
      text.textContent = written ?? "OpenAI's API has no such request.";
      button.disabled = written === null;
    };
    const input = { type: "radio", name: "copied-kind", value: language, checked: index === 0, onchange: choose };
    if (index === 0) choose();
    return h("label", {}, h("input", input), ` ${language}`);
  });
  button.addEventListener("click", () => copy(text.textContent ?? "", text, button));
  const languages = h("div", { class: "languages", role: "radiogroup", "aria-label": "Language" }, ...choices);
  const dialog = h("dialog", { id: "copied", "aria-label": `Copy "${action}" as` });
  const done = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  fill(dialog, h("h2", {}, action), languages, text, h("div", { class: "actions" }, button, done));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
