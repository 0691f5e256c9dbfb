// @ts-check
/** Who uses the page, and what they may do: what a key's scopes don't allow isn't shown. */
import { keepKey, post, remove, request } from "./api.js";
import { createContext, useContext } from "./preact.js";

/**
 * @typedef {object} Session
 * @property {string | null} name of the key; null without one
 * @property {string[]} scopes
 * @property {string | null} project
 * @property {boolean} needs_key whether the API needs a key at all
 * @property {boolean} read_only whether nothing can be changed with it
 */

/** @type {Session} */
const NOBODY = { name: null, scopes: [], project: null, needs_key: false, read_only: true };

export const SessionContext = createContext(NOBODY);

/** Whether the caller has a scope: `may("stop")`. */
export function useMay() {
  const { scopes } = useContext(SessionContext);
  return (/** @type {string} */ scope) => scopes.includes(scope) || scopes.includes("admin");
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
  return answer === null;
}

/** End the session. */
export async function signOut() {
  keepKey("");
  await remove("/session");
}
