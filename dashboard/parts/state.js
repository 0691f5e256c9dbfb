// @ts-check
/** Data from the API, and the three states in which there is none: loading, error, empty. */
import { Problem, get } from "./api.js";
import { now as serverNow } from "./clock.js";
import { html, useCallback, useEffect, useRef, useState } from "./preact.js";
import { timeOfDay, useNow } from "./time.js";

const THIN_BAR_AFTER_MS = 300;
const RETRY_S = [2, 4, 8, 16, 30];

/**
 * @template T
 * @typedef {object} Data
 * @property {T | undefined} value the last answer; it stays while new data is loaded, and after an error
 * @property {Problem | undefined} problem why the last request failed
 * @property {boolean} isLoading
 * @property {number} atMs when `value` was true
 * @property {number} retryAtMs when it is asked again after a problem; 0: never
 * @property {() => Promise<void>} reload ask now
 * @property {(value: T) => void} set put a value in place, until the next answer
 */

/**
 * The answer to `GET path?query`, asked again when one of them changes, and every `everyMs` while the page is visible.
 * `null` as path asks nothing.
 * @param {string | null} path @param {Record<string, any>} [query] @param {{ everyMs?: number }} [options]
 * @returns {Data<any>}
 */
export function useData(path, query = {}, { everyMs = 0 } = {}) {
  const key = path === null ? "" : `${path} ${JSON.stringify(query)}`;
  return useAnswer(key, (signal) => get(/** @type {string} */ (path), query, signal), { everyMs });
}

/**
 * As `useData`, for any way to get an answer. `key` says what is asked; "" asks nothing.
 * @param {string} key @param {(signal: AbortSignal) => Promise<any>} ask @param {{ everyMs?: number }} [options]
 * @returns {Data<any>}
 */
export function useAnswer(key, ask, { everyMs = 0 } = {}) {
  const [state, set] = useState(/** @type {any} */ ({ isLoading: key !== "", atMs: 0, retryAtMs: 0 }));
  const latest = useRef(/** @type {any} */ ({}));
  latest.current.ask = ask;

  const load = useCallback(async () => {
    const { current } = latest;
    if (!current.key || current.isLeft) return;
    current.abort?.abort();
    clearTimeout(current.timer);
    const abort = (current.abort = new AbortController());
    const again = (/** @type {number} */ ms) => void (current.timer = setTimeout(() => (document.hidden ? again(ms) : load()), ms));
    set((/** @type {any} */ old) => ({ ...old, isLoading: true }));
    try {
      const value = await current.ask(abort.signal);
      if (abort.signal.aborted) return;
      current.failures = 0;
      set({ value, isLoading: false, atMs: serverNow(), retryAtMs: 0 });
      if (current.everyMs) again(current.everyMs);
    } catch (error) {
      if (abort.signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      const mayPass = error.status === 0 || error.status === 429 || error.status >= 500;
      const waitMs = 1000 * Math.max(error.retryAfterS ?? 0, RETRY_S[Math.min(current.failures++, RETRY_S.length - 1)]);
      const retryAtMs = mayPass ? serverNow() + waitMs : 0;
      set((/** @type {any} */ old) => ({ ...old, problem: error, isLoading: false, retryAtMs }));
      if (mayPass) again(waitMs);
    }
  }, []);

  useEffect(() => {
    const isSame = latest.current.key === key; // only how often it is asked has changed
    Object.assign(latest.current, { key, everyMs, failures: 0, isLeft: false });
    if (!isSame) set({ isLoading: key !== "", atMs: 0, retryAtMs: 0 });
    load();
    return () => {
      latest.current.isLeft = true; // a dialog that is still open may ask for a reload
      latest.current.abort?.abort();
      clearTimeout(latest.current.timer);
    };
  }, [key, everyMs]);

  const put = useCallback((/** @type {any} */ value) => set((/** @type {any} */ old) => ({ ...old, value })), []);
  return { ...state, reload: load, set: put };
}

/**
 * Shows data: `children` is called with the value. Old data stays while new data is loaded, and after an error, with a
 * line that says since when it is old. A 404 without data shows `missing`; so does an API that doesn't have the path.
 * @param {{ of: Data<any>, children: (value: any) => any, missing?: any }} props
 */
export function Loaded({ of, children, missing }) {
  const { value, problem, isLoading } = of;
  const isMissing = problem?.status === 404 && missing !== undefined;
  return html`<div class="loaded" aria-busy=${isLoading}>
    <${ThinBar} isLoading=${isLoading} />
    ${problem && (isMissing && value === undefined ? missing : html`<${Failure} of=${of} />`)}
    ${value !== undefined && children(value)}
  </div>`;
}

/** A line of movement at the top, if loading takes longer than usual. @param {{ isLoading: boolean }} props */
function ThinBar({ isLoading }) {
  const [isLate, set] = useState(false);
  useEffect(() => {
    set(false);
    const timer = isLoading ? setTimeout(() => set(true), THIN_BAR_AFTER_MS) : 0;
    return () => clearTimeout(timer);
  }, [isLoading]);
  return isLate ? html`<div class="thin-bar" role="progressbar" aria-label="loading"></div>` : null;
}

/** What went wrong, since when the data is old, and when it is tried again. @param {{ of: Data<any> }} props */
function Failure({ of: { problem, value, atMs, retryAtMs, reload } }) {
  const now = useNow(retryAtMs > 0);
  const seconds = Math.ceil((retryAtMs - now) / 1000);
  return html`<div class="banner warning" role="alert">
    <span class="grow">
      ${value !== undefined && `Not updated since ${timeOfDay(atMs)}: `}${sentence(problem?.message ?? "")}
      ${retryAtMs > 0 && (seconds > 0 ? ` Again in ${seconds} s.` : " Trying again …")}
    </span>
    <button class="small" onClick=${reload}>Try now</button>
  </div>`;
}

/** Nothing to show: why, and what to do. @param {{ title: any, children?: any }} props */
export const Empty = ({ title, children }) => html`<div class="empty"><p>${title}</p>${children && html`<p class="muted">${children}</p>`}</div>`;

/** A part whose API isn't there: an older API process answers, or this one was built without it. @param {{ what: string }} props */
export const NotAvailable = ({ what }) => html`<${Empty} title=${`${what} isn't available`}>This API process doesn't have it. It may be of an older release.<//>`;

/** The text as a sentence. @param {string} text */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");
