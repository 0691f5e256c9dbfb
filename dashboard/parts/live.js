// @ts-check
/**
 * The live figures: one stream for the tab, while a component wants it. It is closed some seconds after the tab was hidden, and
 * opened again when it is shown.
 */
import { Problem, stream } from "./api.js";
import { html, useEffect, useState } from "./preact.js";

const HIDDEN_MS = 5000;
const SILENT_MS = 10_000; // there is a message each second
const RETRY_MS = [1000, 2000, 4000, 8000, 15_000];

/**
 * @typedef {object} Live
 * @property {any} [figures] the last message of `GET /live`
 * @property {string} problem why there are no newer ones; "" if there are
 */

/** @type {Set<(live: Live) => void>} */
const LISTENERS = new Set();
/** @type {Live} */
let live = { problem: "" };
/** @type {AbortController | undefined} */
let open;
let failures = 0;
let hiddenTimer = 0;
let retryTimer = 0;

/** The live figures: the component is rendered again with each message, once a second. `isWanted`: false opens no stream. */
export function useLive(isWanted = true) {
  const [value, set] = useState(live);
  useEffect(() => {
    if (!isWanted) return undefined;
    LISTENERS.add(set);
    connect();
    return () => {
      LISTENERS.delete(set);
      setTimeout(() => LISTENERS.size || close()); // unless another page wants it at once
    };
  }, [isWanted]);
  return value;
}

/** Whether the figures are live, in a word and a dot. @param {{ live: Live }} props */
export function LiveDot({ live: { figures, problem } }) {
  const word = problem ? "not live" : figures ? "live" : "connecting";
  return html`<span class=${`live-dot ${problem ? "bad" : figures ? "done" : "muted"}`} title=${problem || undefined}>● ${word}</span>`;
}

function connect() {
  if (open || !LISTENERS.size || document.hidden) return;
  const { signal } = (open = new AbortController());
  const heard = (/** @type {string} */ name, /** @type {any} */ data) => {
    failures = 0;
    tell(name === "figures" ? { figures: data, problem: "" } : { ...live, problem: data.detail });
  };
  const ended = (/** @type {any} */ error) => {
    if (signal.aborted) return;
    open = undefined;
    tell({ ...live, problem: error instanceof Problem ? error.message : "The connection has ended" });
    if (error instanceof Problem && [401, 403, 404].includes(error.status)) return;
    retryTimer = setTimeout(connect, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
  };
  stream("/live", heard, { signal, silentMs: SILENT_MS }).then(ended, ended);
}

function close() {
  open?.abort();
  open = undefined;
  clearTimeout(retryTimer);
}

/** @param {Live} next */
function tell(next) {
  live = next;
  for (const set of LISTENERS) set(live);
}

addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) hiddenTimer = setTimeout(close, HIDDEN_MS);
  else connect();
});
