// @ts-check
/** Dialogs: questions before something is changed, and what an action did. */
import { Problem } from "./api.js";
import { html, render, useLayoutEffect, useRef, useState } from "./preact.js";
import { sentence } from "./state.js";

const TOAST_MS = 8000;

/**
 * A modal dialog. Esc, a click beside it, and another place (Back) close it. With `isFirm`, only its buttons do.
 * Then the focus goes back to what opened it, or to the page if that is gone.
 * @param {{ title: string, onClose: () => void, children: any, isWide?: boolean, isFirm?: boolean }} props
 */
export function Dialog({ title, onClose, children, isWide = false, isFirm = false }) {
  const ref = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const isPressedBeside = useRef(false); // a press in a field that ends beside the dialog, such as to select text, is no click
  const isOver = useRef(false);
  const close = useRef(onClose);
  close.current = onClose;
  useLayoutEffect(() => {
    const dialog = /** @type {HTMLDialogElement} */ (ref.current);
    const opener = document.activeElement;
    const left = () => isFirm || close.current();
    dialog.showModal();
    addEventListener("hashchange", left);
    return () => {
      removeEventListener("hashchange", left);
      isOver.current = true;
      dialog.close(); // a dialog that is only removed would leave the focus nowhere
      if (!opener?.isConnected) document.getElementById("main")?.focus({ preventScroll: true });
    };
  }, []);
  const pressed = (/** @type {Event} */ event) => void (isPressedBeside.current = event.target === ref.current);
  const clicked = (/** @type {Event} */ event) => !isFirm && isPressedBeside.current && event.target === ref.current && onClose();
  const canceled = (/** @type {Event} */ event) => isFirm && event.preventDefault();
  const closed = () => isOver.current || onClose();
  return html`<dialog ref=${ref} class=${isWide ? "wide" : ""} aria-labelledby="dialog-title" onClose=${closed} onCancel=${canceled} onPointerDown=${pressed} onClick=${clicked}>
    <div class="dialog">
      <h2 id="dialog-title">${title}</h2>
      ${children}
    </div>
  </dialog>`;
}

/**
 * @typedef {object} Question
 * @property {string} title `Stop 3 tasks?`: it says what happens, and to how many
 * @property {any} [text] what can't be undone, or is left out
 * @property {string} action the button: `Stop 3 tasks`
 * @property {boolean} [isDangerous] it destroys something
 * @property {string} [typed] what the person must type, for the worst
 * @property {() => Promise<any>} run what is done; the dialog stays open while it runs, and shows its problem
 */

/**
 * Show a dialog beside the page: it stays when the page changes, for example to the login.
 * @param {(close: () => void) => any} view
 */
export function open(view) {
  const holder = document.body.appendChild(document.createElement("div"));
  const close = () => {
    if (!holder.isConnected) return;
    render(null, holder);
    holder.remove();
  };
  render(view(close), holder);
}

/** Ask, do it, and resolve to what `run` gave; undefined if the person says no. @param {Question} question @returns {Promise<any>} */
export function confirm(question) {
  return new Promise((resolve) => open((close) => html`<${Confirmation} ...${question} close=${close} end=${resolve} />`));
}

/** @param {Question & { close: () => void, end: (value: any) => void }} props */
function Confirmation({ title, text, action, isDangerous = false, typed, run, close, end }) {
  const [state, set] = useState({ isBusy: false, problem: "", given: "" });
  const isClosed = useRef(false);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    set({ ...state, isBusy: true, problem: "" });
    try {
      const value = (await run()) ?? true;
      close();
      end(value);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      const problem = sentence(error.message);
      set({ ...state, isBusy: false, problem });
      if (isClosed.current) {
        toast(problem, { isProblem: true });
        end(undefined);
      }
    }
  };
  const leave = () => {
    isClosed.current = true;
    close();
    if (!state.isBusy) end(undefined); // else it is being done: what becomes of it is still said
  };
  return html`<${Dialog} title=${title} onClose=${leave}>
    <form onSubmit=${submit}>
      ${text && html`<div class="text">${text}</div>`}
      ${
        typed &&
        html`<label class="field">Type ${typed} to confirm
          <input autocomplete="off" value=${state.given} onInput=${(/** @type {any} */ event) => set({ ...state, given: event.target.value })} />
        </label>`
      }
      ${state.problem && html`<p class="banner critical" role="alert">${state.problem}</p>`}
      <div class="buttons">
        <button type="button" onClick=${leave}>${state.isBusy ? "Close" : action.startsWith("Cancel") ? "Don't cancel" : "Cancel"}</button>
        <button class=${isDangerous ? "danger" : "primary"} autofocus=${!isDangerous && !typed} disabled=${state.isBusy || (!!typed && state.given !== typed)}>
          ${action}
        </button>
      </div>
    </form>
  <//>`;
}

/**
 * Say what an action did, for some seconds; with a button such as Undo.
 * @param {string} text @param {{ action?: string, run?: () => void, isProblem?: boolean }} [options]
 */
export function toast(text, { action, run, isProblem = false } = {}) {
  const place = document.getElementById("toasts") ?? document.body;
  const holder = place.appendChild(document.createElement("div"));
  const end = () => {
    render(null, holder);
    holder.remove();
  };
  const timer = setTimeout(end, TOAST_MS);
  const clicked = () => {
    clearTimeout(timer);
    end();
    run?.();
  };
  render(
    html`<div class=${`toast ${isProblem ? "critical" : ""}`}>
      <span>${text}</span>${action && html`<button class="small" onClick=${clicked}>${action}</button>`}
      <button class="small plain" aria-label="Close" onClick=${end}>✕</button>
    </div>`,
    holder,
  );
}

/** Do something at once; a problem is shown as a toast. Resolves to whether it worked. @param {() => Promise<any>} run @param {string} [done] */
export async function attempt(run, done) {
  try {
    await run();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    toast(sentence(error.message), { isProblem: true });
    return false;
  }
  if (done) toast(done);
  return true;
}
