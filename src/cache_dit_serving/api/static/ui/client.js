/**
 * Client of a Cache-DiT Serving server for browsers, by its public API alone. Any page may import it from a server
 * that lists the page's origin in `server.cors_origins`:
 *
 *     import { Client } from "https://pictures.example/ui/client.js";
 *     const client = new Client({ key: "sk-..." });
 *     const drawn = await client.draw({ prompt: "a red apple" }, { onprogress: ({ step, steps }) => {} });
 *     image.src = URL.createObjectURL(drawn.files[0]);
 */

/**
 * @typedef {Record<string, unknown>} Fields  fields of a request, as POST /generate takes them
 * @typedef {{param: string | null, code: string, message: string}} Warning
 * @typedef {{state: string, at: string}} StateChange
 * @typedef {{step: number, steps: number, cached_steps: number, seconds_left?: number}} Progress
 * @typedef {{step: number, steps: number, image: string, format: string}} Preview
 * @typedef {{min: number, p25: number, median: number, p75: number, max: number}} Quantiles
 * @typedef {{enabled: boolean, engaged: boolean, reason?: string, reason_code?: string, speed?: string, steps: number,
 *   cached_steps: number, computed_steps: number, residual_diff?: Quantiles, settings?: Record<string, any>}} Evidence
 * @typedef {{transformer: string, block_list: string, cached_steps: number[], diffs: Record<string, number>,
 *   cfg_cached_steps: number[], cfg_diffs: Record<string, number>, blocks: number, reused_blocks: number}} BlockListStats
 * @typedef {{seed: number, block_lists: BlockListStats[]}} OutputStats
 * @typedef {{images?: string[], video?: string, audio?: string, seeds: number[], time_cost: number,
 *   timings: Record<string, number>, request_id: string, cache: Evidence, warnings: Warning[],
 *   stats?: {cache_stats: OutputStats[]}}} Result
 * @typedef {{id: string, state: string, history: StateChange[], step?: number, steps?: number, cached_steps?: number,
 *   seconds_left?: number, priority: number, position?: number, starts_in_s?: number, events: string, outputs: string[], result?: Result,
 *   error?: ErrorBody}} Job
 * @typedef {{message: string, type: string, code: string | null, param: string | null}} ErrorBody
 * @typedef {{name: string, status: "unloaded" | "loading" | "ready" | "asleep" | "failed" | "draining", level?: string,
 *   reason?: string, weight_bytes: number, resident: string, default: boolean, ready_in_s?: number}} ModelState
 * @typedef {Record<string, any>} Schema  JSON schema of a field, with its default
 * @typedef {{name: string, allowed: boolean, default: boolean, settings: Record<string, any> | null,
 *   num_inference_steps: number, measured: Record<string, any> | null, live: LiveFigures | null,
 *   lowered_to: string | null, seconds?: number | null}} Speed
 * @typedef {{outputs: number, speedup: number, cached_steps: number, medians: Record<string, number>,
 *   worst_deciles: Record<string, number>}} LiveFigures
 * @typedef {{model: string, pipeline_class: string, tasks: string[], fields: Record<string, Schema>, speeds: Speed[],
 *   size_multiple?: number, limits: Record<string, any>, measured_on?: string | null,
 *   cache: {supported: boolean, reason: string | null, fields: Record<string, Schema>,
 *     default: Record<string, any> | null}}} Capabilities
 * @typedef {{onstate?: (change: StateChange) => void, onposition?: (place: {position: number, starts_in_s?: number}) => void,
 *   onprogress?: (progress: Progress) => void, onpreview?: (preview: Preview) => void,
 *   onwarning?: (warning: Warning) => void, ondraining?: () => void, onlost?: (error: Error) => void,
 *   onfound?: () => void}} Listeners
 */

const ENDED = new Set(["succeeded", "failed", "cancelled", "expired"]);
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 5000;
/** Tries at an output after the first: about a minute. */
const MOST_TRIES = 18;

/** A refusal by the server, in its own words. */
export class ServerError extends Error {
  /**
   * @param {number} status  HTTP status; 0: the server did not answer
   * @param {ErrorBody} error
   * @param {string} [requestId]
   * @param {number} [retryAfter]  seconds
   */
  constructor(status, error, requestId, retryAfter) {
    super(error.message);
    this.name = "ServerError";
    this.status = status;
    this.code = error.code;
    this.param = error.param;
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

export class Client {
  /**
   * @param {object} [options]
   * @param {string} [options.url]  base URL of the server; left out: the one that this module came from
   * @param {string} [options.key]  API key, where the server has keys
   * @param {string} [options.model]  name of the model, where the server has several; left out: its default one
   */
  constructor({ url = new URL("..", import.meta.url).href, key = "", model = "" } = {}) {
    this.url = url.endsWith("/") ? url : `${url}/`;
    this.key = key;
    this.model = model;
  }

  /**
   * Absolute URL of a route.
   * @param {string} route  `/jobs/...`, or a URL
   */
  at(route) {
    return new URL(route.replace(/^\//, ""), this.url).href;
  }

  /**
   * A route about a model, with its name in the query where it has one.
   * @param {string} route
   * @param {string} [model]  left out: the client's
   */
  of(route, model = this.model) {
    return model ? `${route}?${new URLSearchParams({ model })}` : route;
  }

  /**
   * @param {string} method
   * @param {string} route
   * @param {{body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} [options]
   * @returns {Promise<Response>}
   * @throws {ServerError} it refuses, fails, or does not answer
   */
  async request(method, route, { body, headers = {}, signal } = {}) {
    const sent = new Headers(headers);
    // A signed URL of another host (object storage) gets no key.
    if (this.key && this.at(route).startsWith(this.url)) sent.set("Authorization", `Bearer ${this.key}`);
    if (body !== undefined) sent.set("Content-Type", "application/json");
    let response;
    try {
      response = await fetch(this.at(route), {
        method,
        headers: sent,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ServerError(0, { message: "the server does not answer", type: "", code: "unreachable", param: null });
    }
    if (response.ok) return response;
    throw await refusal(response);
  }

  /**
   * @param {string} method
   * @param {string} route
   * @param {Parameters<Client["request"]>[2]} [options]
   * @returns {Promise<any>}
   */
  async json(method, route, options) {
    const response = await this.request(method, route, options);
    return response.status === 204 ? null : response.json();
  }

  /**
   * What requests to a model may hold. A model that was never loaded is loaded first.
   * @param {{model?: string, signal?: AbortSignal}} [options]  model; left out: the client's
   * @returns {Promise<Capabilities>}
   */
  capabilities({ model, signal } = {}) {
    return this.json("GET", this.of("/capabilities", model), { signal });
  }

  /** @returns {Promise<Record<string, any>>} */
  health() {
    return this.json("GET", "/health");
  }

  /** @returns {Promise<Record<string, any>>} */
  modelInfo() {
    return this.json("GET", this.of("/get_model_info"));
  }

  /**
   * @param {string} id
   * @returns {Promise<Job>}
   */
  job(id) {
    return this.json("GET", `/jobs/${encodeURIComponent(id)}`);
  }

  /**
   * @param {{limit?: number, state?: string, after?: string}} [page]
   * @returns {Promise<{jobs: Job[], next?: string}>}
   */
  jobs(page = {}) {
    const query = new URLSearchParams(Object.entries(page).map(([name, value]) => [name, String(value)]));
    return this.json("GET", `/jobs?${query}`);
  }

  /**
   * Cancel a job, or forget one that has ended.
   * @param {string} id
   * @returns {Promise<Job>}
   */
  remove(id) {
    return this.json("DELETE", `/jobs/${encodeURIComponent(id)}`);
  }

  /**
   * Have a job that waits run before those of a lower priority.
   * @param {string} id
   * @param {number} priority  0 to the server's `limits.max_priority`
   * @returns {Promise<Job>}
   */
  setPriority(id, priority) {
    return this.json("PATCH", `/jobs/${encodeURIComponent(id)}`, { body: { priority } });
  }

  /**
   * Submit a job. The same key is the same job, however often it is sent. Fields that name no model go to the client's.
   * @param {Fields} fields
   * @param {{idempotencyKey?: string, signal?: AbortSignal}} [options]
   * @returns {Promise<Job>}
   */
  submit(fields, { idempotencyKey = identifier(), signal } = {}) {
    const body = this.model ? { model: this.model, ...fields } : fields;
    return this.json("POST", "/jobs", { body, headers: { "Idempotency-Key": idempotencyKey }, signal });
  }

  /**
   * Follow a job to its end, over lost connections and restarts of the server.
   * @param {Job} job
   * @param {Listeners & {previews?: number, signal?: AbortSignal}} [options]
   * @returns {Promise<Job>} the job as it ended
   * @throws {ServerError} the job is forgotten, or the key is no longer taken
   */
  async follow(job, { previews = 0, signal, ...listeners } = {}) {
    let current = job;
    let wanted = previews;
    let unheard = 0;
    let lost = false;
    while (!ENDED.has(current.state)) {
      const heard = await this.#listen(current, wanted, listeners, signal);
      signal?.throwIfAborted();
      unheard = heard ? 0 : unheard + 1;
      try {
        current = await this.job(job.id);
        if (lost) listeners.onfound?.();
        lost = false;
        // A server that makes no previews refuses the events that ask for them; an EventSource does not tell why.
        if (!heard) wanted = 0;
        if (!heard && current.state === "running") listeners.onprogress?.(progressOf(current));
      } catch (error) {
        if (!(error instanceof ServerError) || !(error.status === 0 || error.status === 503)) throw error;
        lost = true;
        listeners.onlost?.(error);
      }
      if (!ENDED.has(current.state)) await pause(Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** unheard), signal);
    }
    return current;
  }

  /**
   * Draw, follow, and fetch what was drawn.
   * @param {Fields} fields
   * @param {Listeners & {previews?: number, signal?: AbortSignal}} [options]
   * @returns {Promise<{job: Job, result: Result, files: Blob[]}>}
   * @throws {ServerError} it was refused, or ended otherwise
   */
  async draw(fields, options = {}) {
    const ended = await this.follow(await this.submit(fields, { signal: options.signal }), options);
    return { job: ended, ...(await this.outcome(ended)) };
  }

  /**
   * Result and files of a job that has ended.
   * @param {Job} job
   * @returns {Promise<{result: Result, files: Blob[]}>}
   * @throws {ServerError} it did not succeed
   */
  async outcome(job) {
    if (!job.result) {
      const error = job.error ?? { message: `the job is ${job.state}`, type: "", code: job.state, param: null };
      throw new ServerError(200, error);
    }
    const responses = await Promise.all(job.outputs.map((route) => this.#output(route)));
    return { result: job.result, files: await Promise.all(responses.map((response) => response.blob())) };
  }

  /**
   * Fetch an output; a server that shuts down may end between a job's end and this, and the next one has it.
   * @param {string} route
   */
  async #output(route) {
    for (let tries = 0; ; tries++) {
      try {
        return await this.request("GET", route);
      } catch (error) {
        const lost = error instanceof ServerError && (error.status === 0 || error.status === 503);
        if (!lost || tries === MOST_TRIES) throw error;
        await pause(Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** tries));
      }
    }
  }

  /**
   * Listen to a job's events until the connection is closed by the server; true if any came.
   * @param {Job} job
   * @param {number} previews
   * @param {Listeners} listeners
   * @param {AbortSignal | undefined} signal
   * @returns {Promise<boolean>}
   */
  #listen(job, previews, listeners, signal) {
    const url = new URL(this.at(job.events));
    if (previews) url.searchParams.set("previews", String(previews));
    return new Promise((resolve) => {
      const source = new EventSource(url);
      let heard = false;
      const end = () => {
        source.close();
        signal?.removeEventListener("abort", end);
        resolve(heard);
      };
      signal?.addEventListener("abort", end);
      const on = (/** @type {string} */ name, /** @type {((data: any) => void) | undefined} */ listener) =>
        source.addEventListener(name, (event) => {
          heard = true;
          const data = JSON.parse(/** @type {MessageEvent} */ (event).data);
          listener?.(data);
          if (name === "state" && ENDED.has(data.state)) end();
        });
      on("state", listeners.onstate);
      on("position", listeners.onposition);
      on("progress", listeners.onprogress);
      on("preview", listeners.onpreview);
      on("warning", listeners.onwarning);
      on("draining", listeners.ondraining);
      // The browser reconnects by itself while the server takes it; a refusal ends the source, and a lost server is
      // asked by `follow`, which knows how long to wait.
      source.addEventListener("error", end);
    });
  }
}

/**
 * @param {Job} job
 * @returns {Progress}
 */
function progressOf({ step = 0, steps = 0, cached_steps = 0, seconds_left }) {
  return { step, steps, cached_steps, seconds_left };
}

/**
 * @param {Response} response
 * @returns {Promise<ServerError>}
 */
async function refusal(response) {
  const wait = Number(response.headers.get("Retry-After")) || undefined;
  try {
    const { error, request_id } = await response.json();
    if (typeof error?.message === "string") return new ServerError(response.status, error, request_id, wait);
  } catch {
    // A proxy's page.
  }
  const message = `the answer is ${response.status} ${response.statusText}`.trim();
  return new ServerError(response.status, { message, type: "", code: null, param: null }, undefined, wait);
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    signal?.addEventListener("abort", stop, { once: true });
  });
}

// crypto.randomUUID is there on https and localhost alone.
function identifier() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
