// @ts-check
/** A stream that is followed to its end, over lost connections. */
import { stream } from "./api.js";

/**
 * Follow a stream until `heard` returns true, it answers 204, or `signal` aborts. A lost connection is made anew, from
 * the last message on. Throws the `Problem` of a request that another try wouldn't mend.
 * @param {string} path
 * @param {(name: string, data: any) => boolean | void} heard true: that was the last message
 * @param {{ query?: Record<string, any>, signal: AbortSignal, onState?: (error: Error | null) => void }} options
 *   `onState`: why it isn't connected; null when it is
 */
export async function follow(path, heard, { query = {}, signal, onState = () => {} }) {
  let lastId = "";
  let failures = 0;
  while (!signal.aborted) {
    let isOver = false;
    const one = new AbortController();
    const both = AbortSignal.any([signal, one.signal]);
    try {
      const began = Date.now();
      await stream(
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
      if (isOver || (lastId && Date.now() - began < 50)) return; // it ended at once: there is no more
      failures++;
    } catch (error) {
      if (isOver || signal.aborted) return;
      const { status = 0 } = /** @type {any} */ (error);
      if (status >= 400 && status < 500 && status !== 429) throw error;
      failures++;
      onState(/** @type {Error} */ (error));
    }
    await pause(Math.min(2 ** failures, 30) * 500, signal);
  }
}

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
