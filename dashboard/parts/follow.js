// @ts-check
/** A stream that is followed to its end, over lost connections. */
import { stream } from "./api.js";

const HIDDEN_MS = 2000; // browsers open six connections to a host: tabs that nobody sees must not use them up

/**
 * Follow a stream until `heard` returns true, it answers 204, or `signal` aborts. A lost connection is made anew, from
 * the last message on; so is one that was given up because the page was hidden. Throws the `Problem` of a request that
 * another try wouldn't mend.
 * @param {string} path
 * @param {(name: string, data: any) => boolean | void} heard true: that was the last message
 * @param {{ query?: Record<string, any>, signal: AbortSignal, onState?: (error: Error | null) => void }} options
 *   `onState`: why it isn't connected; null when it is
 */
export async function follow(path, heard, { query = {}, signal, onState = () => {} }) {
  let lastId = "";
  let failures = 0;
  while (!signal.aborted) {
    await shown(signal);
    let isOver = false;
    const one = new AbortController();
    const both = AbortSignal.any([signal, one.signal]);
    const forget = whenHidden(() => one.abort());
    try {
      const hasMore = await stream(
        path,
        (name, data, id) => {
          if (isOver) return;
          if (id) lastId = id;
          if (failures) onState(null);
          failures = 0;
          isOver = heard(name, data) === true;
          if (isOver) one.abort();
        },
        { query, signal: both, lastId },
      );
      if (isOver || !hasMore) return;
      failures++;
    } catch (error) {
      if (isOver || signal.aborted) return;
      if (one.signal.aborted) continue; // hidden
      const { status = 0 } = /** @type {any} */ (error);
      if (status >= 400 && status < 500 && status !== 429) throw error;
      failures++;
      onState(/** @type {Error} */ (error));
    } finally {
      forget();
    }
    await pause(Math.min(2 ** failures, 30) * 500, signal);
  }
}

/** @param {AbortSignal} signal @returns {Promise<void>} until the page is shown */
function shown(signal) {
  return new Promise((resolve) => {
    if (!document.hidden) return resolve();
    const changed = () => document.hidden || end();
    const end = () => {
      removeEventListener("visibilitychange", changed);
      signal.removeEventListener("abort", end);
      resolve();
    };
    addEventListener("visibilitychange", changed);
    signal.addEventListener("abort", end);
  });
}

/** Call `run` when the page was hidden for a while; what it returns forgets that. @param {() => void} run */
function whenHidden(run) {
  let timer = 0;
  const changed = () => {
    clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(run, HIDDEN_MS);
  };
  changed();
  addEventListener("visibilitychange", changed);
  return () => {
    clearTimeout(timer);
    removeEventListener("visibilitychange", changed);
  };
}

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
