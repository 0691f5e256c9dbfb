// @ts-check
/**
 * Keyboard shortcuts: what each key does now. They do nothing in fields, with Ctrl, Alt or Meta, or while a dialog is
 * open, and can be switched off for people who use speech input.
 */
import { useEffect, useRef } from "./preact.js";

/** @typedef {{ keys: string, help: string, run: (event: KeyboardEvent) => void }} Shortcut `keys`: "j", "Enter", "g t" */

/** @type {Set<{ current: Shortcut[] }>} */
const REGISTERED = new Set();
const SEQUENCE_MS = 1500;
const OFF = "taskpool.shortcuts-off";
let before = { key: "", atMs: 0 };

export const areOff = () => localStorage.getItem(OFF) === "1";
/** @param {boolean} off */
export const switchOff = (off) => localStorage.setItem(OFF, off ? "1" : "0");

/** Shortcuts while the component is shown. Of two with the same keys, the one of the later component counts. @param {Shortcut[]} list */
export function useKeys(list) {
  const holder = useRef(list);
  holder.current = list;
  useEffect(() => {
    REGISTERED.add(holder);
    return () => void REGISTERED.delete(holder);
  }, []);
}

/** All shortcuts of now, for the help. @returns {Shortcut[]} */
export function shortcuts() {
  const found = new Map();
  for (const { current } of REGISTERED) for (const each of current) found.set(each.keys, each);
  return [...found.values()];
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || areOff()) return;
  const target = /** @type {HTMLElement} */ (event.target);
  if (target.closest("input, textarea, select, [contenteditable]") || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && target.closest("a, button, summary")) return; // it does what it always does
  const sequence = event.timeStamp - before.atMs < SEQUENCE_MS ? `${before.key} ${event.key}` : "";
  const all = shortcuts();
  const found = all.find(({ keys }) => keys === sequence) ?? all.find(({ keys }) => keys === event.key);
  before = { key: event.key, atMs: event.timeStamp };
  if (!found) return;
  event.preventDefault();
  found.run(event);
});
