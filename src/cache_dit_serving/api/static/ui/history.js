// The outputs of this browser, in its own database: settings, evidence and files. Nothing of it is sent anywhere.

/** @import { Result } from "./client.js" */

/**
 * @typedef {object} Drawn
 * @property {string} id  the job's
 * @property {number} at  milliseconds since 1970
 * @property {Record<string, any>} fields  the request, without its files
 * @property {Result} result
 * @property {Blob[]} files
 * @property {string} model
 */

const KEPT = 60;
const STORE = "drawn";

/** @returns {Promise<IDBDatabase>} */
function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("cache-dit-serving", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" }).createIndex("at", "at");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * Kept outputs, the newest first. Empty where the browser keeps nothing (a private window).
 * @returns {Promise<Drawn[]>}
 */
export async function kept() {
  try {
    const database = await open();
    const all = await done(database.transaction(STORE).objectStore(STORE).index("at").getAll());
    database.close();
    return all.reverse();
  } catch {
    return [];
  }
}

/** @param {Drawn} drawn */
export async function keep(drawn) {
  try {
    const database = await open();
    const store = database.transaction(STORE, "readwrite").objectStore(STORE);
    await done(store.put(drawn));
    const ids = await done(store.index("at").getAllKeys());
    for (const id of ids.slice(0, Math.max(0, ids.length - KEPT))) store.delete(id);
    database.close();
  } catch {
    // The output is on the page all the same.
  }
}

export async function forgetAll() {
  try {
    const database = await open();
    await done(database.transaction(STORE, "readwrite").objectStore(STORE).clear());
    database.close();
  } catch {
    // There was nothing.
  }
}
