// The playground: connection, key, tabs, and what happens when someone draws.
import { Client, ServerError } from "./client.js";
import { compareTab } from "./compare.js";
import { copy } from "./copy_as.js";
import { byId, fill, h, seconds } from "./dom.js";
import { Form } from "./form.js";
import { forgetAll, keep, kept } from "./history.js";
import { parametersOf } from "./png_text.js";
import { serverTab } from "./server.js";
import * as snippets from "./snippets.js";
import { Stage, shown } from "./stage.js";

/** @import { Capabilities, Fields, Job, ModelState } from "./client.js" */
/** @import { Drawn } from "./history.js" */
/** @import { ModelChoice } from "./models.js" */

const KEY = "cache-dit-serving-key";
const THEME = "cache-dit-serving-theme";
const NO_PREVIEWS = "cache-dit-serving-no-previews";
const HEALTH_EVERY_MS = 5000;
const PREVIEWS = 6;
const FILES = ["image_urls", "mask_url", "control_url", "last_image_url", "video_url"];

// A key lives as long as its tab. The page's address may name a model.
const client = new Client({
  key: sessionStorage.getItem(KEY) ?? "",
  model: new URLSearchParams(location.search).get("model") ?? "",
});
/** The choice among several models; null: there is one. @type {ModelChoice | null} */
let choice = null;
const banner = byId("banner", HTMLElement);
const state = byId("state", HTMLElement);
const live = byId("live", HTMLElement);

/** @param {string} words  empty: nothing is wrong */
function tell(words) {
  banner.textContent = words;
  banner.hidden = words === "";
}

/**
 * The server's state in the head of the page, asked again and again.
 * @returns {Promise<Record<string, any> | null>} its health; null: it is not ready
 */
async function look() {
  try {
    const health = await client.health();
    const { status, queue } = health;
    state.className = "state ready";
    const waiting = queue.waiting ? `, ${queue.waiting} waiting` : "";
    state.textContent = queue.running ? `drawing${waiting}` : status;
    const models = /** @type {ModelState[]} */ (health.models ?? []);
    choice?.show(models);
    // Before there is a choice, the page waits for the model that its address names.
    const awaited = choice ? undefined : models.find(({ name }) => name === client.model);
    tell(awaited?.status === "loading" ? `${awaited.name}: ${awaited.reason ?? "is loading"}` : "");
    return health;
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    state.className = `state ${error.status === 0 ? "lost" : "waiting"}`;
    state.textContent = error.status === 0 ? "not reached" : (error.code ?? "not ready");
    tell(error.status === 0 ? "The server does not answer. This page tries again by itself." : error.message);
    return null;
  }
}

async function watchHealth() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, HEALTH_EVERY_MS));
    if (!document.hidden) await look();
  }
}

/** Ask for a key until the server takes it. @param {string} words */
function askForKey(words) {
  const dialog = byId("key", HTMLDialogElement);
  const input = byId("key-input", HTMLInputElement);
  byId("key-error", HTMLElement).textContent = words;
  input.value = client.key;
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue === "use") {
          client.key = input.value.trim();
          sessionStorage.setItem(KEY, client.key);
        }
        resolve(undefined);
      },
      { once: true },
    );
  });
}

/**
 * What the server takes, and its models where it has several: asked until it is ready and takes the key.
 * @returns {Promise<{capabilities: Capabilities, models: ModelState[]}>}
 */
async function capabilitiesOnceReady() {
  for (;;) {
    const timer = setInterval(look, 1000);
    try {
      // Side by side: one round trip where the server is ready.
      const [health, capabilities] = await Promise.all([look(), client.capabilities()]);
      const models = /** @type {ModelState[]} */ (health?.models ?? []);
      const named = !client.model || models.some(({ name }) => name === client.model);
      if (health && named) return { capabilities, models };
      if (!named) client.model = "";
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      if (error.status === 401 || error.status === 403) {
        clearInterval(timer);
        await askForKey(error.message);
        continue;
      }
      if (error.code === "model_not_found") client.model = "";
      else if (error.code === "failed") client.model = await anotherThan(client.model);
    } finally {
      clearInterval(timer);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/**
 * Name of a model that was loaded, where the wanted one cannot be.
 * @param {string} wanted
 */
async function anotherThan(wanted) {
  const models = /** @type {ModelState[]} */ ((await look())?.models ?? []);
  return models.find(({ status }) => status === "ready" || status === "asleep")?.name ?? wanted;
}

/** @param {Capabilities} capabilities */
function kindOf({ tasks }) {
  if (tasks.some((task) => /video$|^video/.test(task))) return /** @type {const} */ ("video");
  return tasks.some((task) => task.endsWith("audio")) ? /** @type {const} */ ("audio") : /** @type {const} */ ("image");
}

/**
 * An output in the history.
 * @param {Blob | undefined} file
 * @param {string} words
 */
function thumbnail(file, words) {
  if (!file || file.type.startsWith("audio/")) return h("span", { class: "sound" }, words);
  return shown(file, words);
}

class Playground {
  /** @type {AbortController | null} */
  #running = null;
  /** @type {Job | null} */
  #job = null;
  /** @type {Drawn | null} */
  #shown = null;
  /** Fields of earlier models' forms that the present one may lack. @type {Fields} */
  #carried = {};
  #form;
  #stage;
  #capabilities;

  /**
   * @param {Capabilities} capabilities
   * @param {typeof import("./models.js") | null} several  what a server of several models needs beside
   */
  constructor(capabilities, several) {
    this.#capabilities = capabilities;
    this.several = several;
    this.#form = this.#newForm();
    this.#stage = new Stage(byId("stage", HTMLElement), live, capabilities, (prompt) => {
      this.#form.setField("prompt", prompt);
      this.draw();
    });
    if (several) this.#stage.use(capabilities, client.model);
    this.#showModel();
    const form = byId("form", HTMLFormElement);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.draw();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.draw();
    });
    byId("snippet-kind", HTMLElement).addEventListener("change", () => this.#showSnippets());
    byId("copy", HTMLButtonElement).addEventListener("click", () => this.#copy());
    byId("forget", HTMLButtonElement).addEventListener("click", async () => {
      await forgetAll();
      await this.#showHistory();
    });
    const previews = byId("previews", HTMLInputElement);
    previews.checked = !localStorage.getItem(NO_PREVIEWS);
    previews.addEventListener("change", () => localStorage.setItem(NO_PREVIEWS, previews.checked ? "" : "true"));
    this.#takeFiles();
    this.#showSnippets();
    this.#showHistory();
    serverTab(byId("server", HTMLElement), client, several?.modelsCard);
  }

  #newForm() {
    const form = new Form(byId("fields", HTMLElement), this.#capabilities);
    form.addEventListener("change", () => this.#showSnippets());
    return form;
  }

  /** Name of the chosen model among several, or of the only one. */
  get #model() {
    return this.several ? client.model : this.#capabilities.model;
  }

  #showModel() {
    byId("model", HTMLElement).textContent = this.#model;
    document.title = `${this.#model} · Cache-DiT Serving`;
    const compare = byId("compare", HTMLElement);
    compareTab(
      compare,
      client,
      () => this.#request(),
      this.#capabilities,
      live,
      () => this.#wanted(),
    );
  }

  /**
   * Make the page that of another model; what it takes of the form's request stays.
   * @param {string} name
   * @param {Capabilities} capabilities
   * @param {typeof import("./models.js").fitting} fitting
   */
  async use(name, capabilities, fitting) {
    const [before, taken] = [this.#form, this.#capabilities.fields];
    const fields = before.read();
    if (fields.speed === taken.speed?.default) delete fields.speed;
    const apart = Object.entries(this.#carried).filter(([field]) => !(field in taken));
    this.#carried = { ...Object.fromEntries(apart), ...fields };
    this.#capabilities = capabilities;
    client.model = name;
    before.close();
    this.#form = this.#newForm();
    this.#form.lastSeed = before.lastSeed;
    this.#form.write(fitting(this.#carried, capabilities));
    this.#stage.use(capabilities, name);
    this.#showModel();
    // An output that is shown may be edited by this model, or no longer.
    if (this.#shown && !this.#running) this.#show(this.#shown);
    const address = new URL(location.href);
    address.searchParams.set("model", name);
    history.replaceState(null, "", address);
    this.#stage.say(`The form is that of ${name}`);
    await this.#form.takeFiles(before);
  }

  /** Fields of the form, and the model's name where there are several. */
  #request() {
    return this.several ? { model: client.model, ...this.#form.read() } : this.#form.read();
  }

  /** Fields of the form, as this page sends them: with the evidence of each step. */
  #fields() {
    /** @type {Fields} */
    const fields = this.#request();
    if (this.#capabilities.fields.include_stats) fields.include_stats = true;
    return fields;
  }

  async draw() {
    if (this.#running) return;
    const running = new AbortController();
    this.#running = running;
    const button = byId("draw", HTMLButtonElement);
    button.disabled = true;
    this.#form.clearErrors();
    const fields = this.#fields();
    const shownRun = this.#stage.begin(fields, () => this.#cancel());
    try {
      this.#job = await client.submit(fields, { signal: running.signal });
      const ended = await client.follow(this.#job, {
        previews: byId("previews", HTMLInputElement).checked ? PREVIEWS : 0,
        signal: running.signal,
        onposition: ({ position, starts_in_s }) =>
          shownRun.tell(
            `In the queue: place ${position}${starts_in_s ? `, starts in about ${seconds(starts_in_s)}` : ""}`,
          ),
        onprogress: shownRun.progress,
        onpreview: shownRun.preview,
        ondraining: () =>
          tell("The server is shutting down. What it draws is finished; the next one goes on with the rest."),
        onlost: () => shownRun.tell("The server does not answer. The job is kept; asking again"),
        onfound: () => shownRun.tell("The server is back"),
      });
      if (ended.state === "cancelled") this.#stage.end("Cancelled", "The form still has the request.");
      else await this.#finish(ended, fields);
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      this.#stage.end("Not drawn", error.message);
      if (error.status === 401) {
        await askForKey(error.message);
        return;
      }
      this.#form.showError(error);
      this.#stage.say(error.message);
    } finally {
      this.#running = this.#job = null;
      button.disabled = false;
      look();
    }
  }

  /**
   * @param {Job} ended
   * @param {Fields} fields
   */
  async #finish(ended, fields) {
    const { result, files } = await client.outcome(ended);
    const small = Object.fromEntries(Object.entries(fields).filter(([name]) => !FILES.includes(name)));
    /** @type {Drawn} */
    const drawn = {
      id: ended.id,
      at: Date.now(),
      fields: small,
      result,
      files,
      model: String(small.model ?? this.#model),
    };
    this.#form.lastSeed = result.seeds[0];
    await keep(drawn);
    this.#show(drawn);
    await this.#showHistory();
  }

  async #cancel() {
    if (!this.#job) {
      this.#running?.abort(new ServerError(0, { message: "cancelled", type: "", code: "cancelled", param: null }));
      return;
    }
    await client.remove(this.#job.id);
  }

  /** @param {Drawn} drawn */
  #show(drawn) {
    this.#shown = drawn;
    const { model, ...fields } = drawn.fields;
    const again = { ...fields, seed: drawn.result.seeds[0] };
    // Its own model draws it again; one that is no longer here leaves that to the chosen one.
    const chosen = async () => !choice?.has(model) || (await choice.choose(model));
    this.#stage.show(drawn, {
      onthreshold: async (value) => {
        if (!(await chosen())) return;
        this.#form.write(again);
        this.#form.setField("cache.residual_diff_threshold", value);
        this.draw();
      },
      onreuse: async () => {
        if (await chosen()) this.#form.write(again);
      },
      onedit: this.#form.takesPictures ? (file) => this.#edit(file, `${again.seed}.png`) : undefined,
    });
  }

  /**
   * @param {Blob} file
   * @param {string} name
   */
  async #edit(file, name) {
    await this.#form.takePicture(file, name);
    // The same noise again mars the result.
    this.#form.setField("seed", undefined);
    byId("form", HTMLFormElement).scrollIntoView({ block: "start" });
  }

  async #showHistory() {
    const all = await kept();
    const list = byId("history-list", HTMLElement);
    byId("history", HTMLElement).hidden = all.length === 0;
    fill(
      list,
      ...all.map((drawn) => {
        const words = String(drawn.fields.prompt ?? "an output");
        const reused = `${drawn.result.cache.cached_steps}/${drawn.result.cache.steps}`;
        return h(
          "li",
          {},
          h(
            "button",
            {
              type: "button",
              title: this.several ? `${drawn.model}: ${words}` : words,
              onclick: () => this.#show(drawn),
            },
            thumbnail(drawn.files[0], words),
            h("span", { class: "mark" }, reused),
          ),
        );
      }),
    );
  }

  /** A picture dropped or pasted anywhere: its settings, or the picture to begin from. */
  #takeFiles() {
    const take = async (/** @type {File | undefined} */ file) => {
      if (!file) return;
      const parameters = await parametersOf(file);
      const dialog = byId("dropped", HTMLDialogElement);
      const settings = byId("dropped-settings", HTMLButtonElement);
      const picture = byId("dropped-picture", HTMLButtonElement);
      settings.hidden = !parameters;
      picture.hidden = !this.#form.takesPictures;
      if (settings.hidden && picture.hidden) return;
      const by = parameters?.model;
      const other = by && this.several && by !== client.model;
      const words = other ? `${file.name}: drawn by ${by}, the form is that of ${client.model}` : file.name;
      byId("dropped-name", HTMLElement).textContent = words;
      dialog.showModal();
      dialog.addEventListener(
        "close",
        () => {
          if (dialog.returnValue === "settings" && parameters) this.#form.write(parameters);
          if (dialog.returnValue === "picture") this.#form.takePicture(file, file.name);
          dialog.returnValue = "";
        },
        { once: true },
      );
    };
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      take(event.dataTransfer?.files[0]);
    });
    document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  }

  /** @returns {snippets.Wanted} */
  #wanted() {
    // Without a prompt the request would be refused: the field's example stands in for it.
    const { prompt } = this.#capabilities.fields;
    const example = prompt?.examples ? { prompt: prompt.examples[0] } : {};
    return {
      fields: { ...example, ...this.#request() },
      names: this.#form.names(),
      url: client.url,
      keyed: client.key !== "",
      model: this.#model,
      kind: kindOf(this.#capabilities),
    };
  }

  #snippet() {
    const kind = /** @type {HTMLInputElement | null} */ (document.querySelector("#snippet-kind input:checked"))?.value;
    const write = { curl: snippets.curl, python: snippets.python, openai: snippets.openai }[kind ?? "curl"];
    return write?.(this.#wanted());
  }

  #showSnippets() {
    byId("snippet", HTMLElement).textContent = this.#snippet() ?? "OpenAI's API has no such request.";
  }

  async #copy() {
    const text = this.#snippet();
    if (text) await copy(text, byId("snippet", HTMLElement), byId("copy", HTMLButtonElement));
  }
}

function tabs() {
  const all = [...document.querySelectorAll('[role="tab"]')].filter((tab) => tab instanceof HTMLButtonElement);
  const choose = (/** @type {HTMLButtonElement} */ chosen) => {
    for (const tab of all) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      byId(tab.getAttribute("aria-controls") ?? "", HTMLElement).hidden = !on;
    }
    history.replaceState(null, "", `#${chosen.dataset.tab}`);
    chosen.dispatchEvent(new Event("chosen", { bubbles: true }));
  };
  for (const [index, tab] of all.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = all[(index + step + all.length) % all.length];
      next.focus();
      choose(next);
    });
  }
  const wanted = all.find((tab) => `#${tab.dataset.tab}` === location.hash);
  if (wanted) choose(wanted);
}

function theme() {
  const button = byId("theme", HTMLButtonElement);
  const themes = ["light dark", "light", "dark"];
  const names = ["as the system", "light", "dark"];
  const show = (/** @type {string} */ chosen) => {
    document.documentElement.style.colorScheme = chosen;
    button.setAttribute("aria-label", `Colours: ${names[themes.indexOf(chosen)]}`);
    button.textContent = ["◐", "☀", "☾"][themes.indexOf(chosen)];
  };
  const stored = localStorage.getItem(THEME);
  let chosen = stored && themes.includes(stored) ? stored : themes[0];
  show(chosen);
  button.addEventListener("click", () => {
    chosen = themes[(themes.indexOf(chosen) + 1) % themes.length];
    localStorage.setItem(THEME, chosen);
    show(chosen);
  });
}

byId("key-button", HTMLButtonElement).addEventListener("click", async () => {
  await askForKey("");
  location.reload();
});
theme();
const { capabilities, models } = await capabilitiesOnceReady();
const several = models.length > 1 ? await import("./models.js") : null;
if (several) client.model ||= models.find((model) => model.default)?.name ?? models[0].name;
const playground = new Playground(capabilities, several);
if (several) {
  choice = new several.ModelChoice(byId("fields", HTMLElement), client, models, (name, taken) =>
    playground.use(name, taken, several.fitting),
  );
}
tabs();
// Milliseconds that the page took.
document.documentElement.dataset.ready = String(Math.round(performance.now()));
watchHealth();
