// @ts-check
/** Who uses the page, and what they may do: what a key's scopes don't allow isn't shown. */
import { API, keepKey, post, remove, request } from "./api.js";
import { createContext, useContext } from "./preact.js";

/**
 * @typedef {object} Session
 * @property {string | null} key its id; null without one
 * @property {string | null} name of the key
 * @property {string[]} scopes
 * @property {string | null} project
 * @property {string[] | null} types the only ones that it can start and stop
 * @property {string[] | null} queues the only ones in which it can do that
 * @property {boolean} needs_key whether the API needs a key at all
 * @property {boolean} read_only whether nothing can be changed with it
 */

/** @type {Session} */
const NOBODY = { key: null, name: null, scopes: [], project: null, types: null, queues: null, needs_key: false, read_only: true };

export const SessionContext = createContext(NOBODY);

/**
 * Whether the caller may do what needs a scope: `may("tasks:stop")`; with a task of this type in this queue.
 * @returns {(scope: string, task?: { type?: string, queue?: string }) => boolean}
 */
export function useMay() {
  const { scopes, types, queues } = useContext(SessionContext);
  const isIn = (/** @type {string[] | null} */ names, /** @type {string | undefined} */ name) => !names || name === undefined || names.includes(name);
  return (scope, task) => (scopes.includes(scope) || scopes.includes("admin")) && (!task || (isIn(types, task.type) && isIn(queues, task.queue)));
}

/** @returns {Promise<Session>} */
export const readSession = () => request("GET", "/session");

/**
 * Start a session with a key. Resolves to whether it lasts longer than this tab: if Redis is full, it can't be stored, and
 * the key stays in memory. Throws Problem.
 * @param {string} key
 */
export async function signIn(key) {
  const answer = await post("/session", { key });
  keepKey(answer ? key : "");
  TABS.postMessage("");
  return answer === null;
}

/** End the session. */
export async function signOut() {
  keepKey("");
  await remove("/session");
  TABS.postMessage("");
}

/** The tabs of this browser have one session. @type {BroadcastChannel} */
const TABS = new BroadcastChannel(`taskpool ${API}`);

/** Call it when another tab has signed in or out; what it returns forgets that. @param {() => void} run */
export function onOtherTab(run) {
  TABS.addEventListener("message", run);
  return () => TABS.removeEventListener("message", run);
}
