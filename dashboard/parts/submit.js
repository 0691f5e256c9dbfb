// @ts-check
/** The state of a form that is sent: busy, its faults, its problem, the answer. */
import { Problem } from "./api.js";
import { useState } from "./preact.js";
import { sentence } from "./state.js";

/**
 * @param {() => Promise<any>} send @param {(answer: any) => any} [done]
 * @returns {{ state: { isBusy: boolean, faults: any[] | null, problem: string, answer: any }, submit: (event: Event) => Promise<void>, clear: () => void }}
 */
export function useSubmit(send, done) {
  const blank = { isBusy: false, faults: /** @type {any[] | null} */ (null), problem: "", answer: /** @type {any} */ (null) };
  const [state, set] = useState(blank);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    set({ ...blank, isBusy: true });
    try {
      const answer = await send();
      set({ ...blank, answer });
      await done?.(answer);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      set({ ...blank, faults: error.errors, problem: sentence(error.errors.length ? `${error.title}: see the marked fields` : error.message) });
    }
  };
  return { state, submit, clear: () => set(blank) };
}
