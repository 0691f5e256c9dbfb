// @ts-check
/**
 * Requests to the API. They carry the session's cookie, or a key that is only kept in memory.
 * Every error is a `Problem`: one that the API answered with, or that it couldn't be reached.
 */

import { setClock } from "./clock.js";
import { parseJson, writeJson } from "./exact.js";

export { ExactNumber, parseJson, writeJson } from "./exact.js";

/** The URL of the API: this file is `{api}/page/{version}/parts/api.js`. */
export const API = new URL("../../..", import.meta.url).href.replace(/\/$/, "");

/** Sent with each change. Pages of other origins can't send it. */
const HEADERS = { "taskpool-page": "1" };
const KEY = { value: "" };

/** Send this key from now on; "" to send none. Only for sessions that Redis couldn't store. @param {string} key */
export const keepKey = (key) => void (KEY.value = key);

/** What the API, or the lack of one, says. `kind` is like `task-not-found`; `errors` name the faults of fields. */
export class Problem extends Error {
  /** @param {Record<string, any>} document @param {number} [retryAfterS] */
  constructor(document, retryAfterS) {
    super(document.detail || document.title);
    this.kind = String(document.type ?? "").split("/").pop() ?? "";
    this.status = document.status ?? 0;
    this.title = document.title ?? "";
    /** @type {{ pointer?: string, parameter?: string, detail: string }[]} */
    this.errors = document.errors ?? [];
    this.document = document;
    this.retryAfterS = retryAfterS;
  }
}

/**
 * Ask the API; resolves to the document of its answer (null without one). Throws `Problem`, or AbortError.
 * @param {string} method @param {string} path like `/tasks`
 * @param {{ query?: Record<string, any>, body?: any, headers?: Record<string, string>, signal?: AbortSignal }} [options]
 * @returns {Promise<any>}
 */
export async function request(method, path, { query = {}, body, headers = {}, signal } = {}) {
  const response = await send(method, path, { query, body, headers, signal });
  const text = await response.text();
  return text === "" ? null : parseJson(text);
}

/** @param {string} path @param {Record<string, any>} [query] @param {AbortSignal} [signal] */
export const get = (path, query, signal) => request("GET", path, { query, signal });
/** The answer as text: for documents whose numbers have to stay as they were written.
 * @param {string} path @param {Record<string, any>} [query] @param {AbortSignal} [signal] */
export const getText = async (path, query = {}, signal) => (await send("GET", path, { query, headers: {}, signal })).text();
/** @param {string} path @param {any} [body] @param {Record<string, any>} [query] */
export const post = (path, body, query) => request("POST", path, { body, query });
/** @param {string} path @param {any} body */
export const put = (path, body) => request("PUT", path, { body });
/** @param {string} path @param {any} body */
export const patch = (path, body) => request("PATCH", path, { body });
/** @param {string} path @param {Record<string, any>} [query] */
export const remove = (path, query) => request("DELETE", path, { query });

const SILENT_MS = 45_000; // the server sends something every 15 s

/**
 * Read a stream of Server-Sent Events until it ends, `signal` aborts, or it is silent for so long that its connection is
 * lost. Resolves to whether there is more to come: false if the server has said that there isn't (204).
 * @param {string} path @param {(name: string, data: any, id: string) => void} heard
 * @param {{ query?: Record<string, any>, signal?: AbortSignal, lastId?: string, silentMs?: number }} [options]
 * @returns {Promise<boolean>}
 */
export async function stream(path, heard, { query = {}, signal, lastId = "", silentMs = SILENT_MS } = {}) {
  const headers = { accept: "text/event-stream", ...(lastId && { "last-event-id": lastId }) };
  const response = await send("GET", path, { query, headers, signal });
  if (response.status === 204) return false;
  const reader = /** @type {ReadableStream<any>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const timer = setTimeout(() => reader.cancel().catch(() => {}), silentMs);
    const { done, value } = await reader.read().catch((error) => Promise.reject(unreachable(error))).finally(() => clearTimeout(timer));
    if (done) return true;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const event = { event: "message", data: "", id: "" };
      for (const line of block.split("\n")) {
        const [, name, text] = /^(event|data|id): ?(.*)$/s.exec(line) ?? [];
        if (name) event[/** @type {keyof typeof event} */ (name)] = text;
      }
      if (event.data) heard(event.event, parseJson(event.data), event.id);
    }
  }
}

/**
 * @param {string} method @param {string} path
 * @param {{ query: Record<string, any>, body?: any, headers: Record<string, string>, signal?: AbortSignal }} options
 */
async function send(method, path, { query, body, headers, signal }) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  // Browsers drop such parts, also as %2e: they would ask for another path.
  if (path.split("/").some((part) => part === "." || part === "..")) throw new Problem({ type: "/not-found", status: 404, title: "There is nothing of this name" });
  const askedMs = Date.now();
  const response = await fetch(API + path + (search && `?${search}`), {
    method,
    signal,
    headers: {
      ...HEADERS,
      accept: "application/json",
      ...(KEY.value && { authorization: `Bearer ${KEY.value}` }),
      ...(body !== undefined && { "content-type": "application/json" }),
      ...headers,
    },
    body: body === undefined ? undefined : writeJson(body),
    credentials: "same-origin",
    redirect: "error",
  }).catch((error) => Promise.reject(unreachable(error)));
  setClock(response.headers.get("date"), askedMs);
  if (response.ok) return response;
  const retryAfter = Number(response.headers.get("retry-after")) || undefined;
  const document = await response.json().catch(() => ({ title: `${response.status} ${response.statusText}`, status: response.status }));
  const problem = new Problem(document, retryAfter);
  if (problem.status === 401) dispatchEvent(new CustomEvent("signed-out"));
  throw problem;
}

/** @param {any} error */
function unreachable(error) {
  if (error.name === "AbortError") return error;
  return new Problem({ type: "/unreachable", title: "The API can't be reached" });
}
