// @ts-check
/** A JSON value as a tree: its numbers as they were written, long texts and lists cut, everything copied whole. */

import { html, useState } from "./preact.js";
import { ExactNumber, writeJson } from "./exact.js";
import { CopyButton, Text } from "./text.js";

const LONGEST = 400; // characters of a text before it is cut
const MOST = 25; // members of one level before the rest is folded
const OPEN = 2; // levels that are open at first
const ROOM = 400; // rows that are shown at first

/**
 * @param {{value: any, label: string, open?: number}} props `value` as `parseExact` reads it
 */
export function Json({ value, label, open = OPEN }) {
  return html`<div class="json" role="group" aria-label=${label}>
    <div class="json-bar"><${CopyButton} text=${() => writeJson(value, 2)} label=${`Copy ${label}`} /></div>
    <div class="json-tree mono"><${Node} value=${value} depth=${0} open=${open} room=${ROOM} /></div>
  </div>`;
}

/** @param {{name?: string | number, value: any, depth: number, open: number, room: number}} props @returns {any} */
function Node({ name, value, depth, open, room }) {
  const key =
    name === undefined ? null : html`<span class="json-key">${typeof name === "number" ? name : html`<${Text} text=${name.length > LONGEST ? `${name.slice(0, LONGEST)}…` : name} />`}</span>: `;
  const isTree = value !== null && typeof value === "object" && !(value instanceof ExactNumber);
  if (!isTree) return html`<div class="json-row">${key}<${Leaf} value=${value} /></div>`;
  return html`<${Branch} name=${key} value=${value} depth=${depth} open=${open} room=${room} />`;
}

/** @param {{name: any, value: any, depth: number, open: number, room: number}} props */
function Branch({ name, value, depth, open, room }) {
  const isList = Array.isArray(value);
  /** @type {Array<[string | number, any]>} */
  const members = isList ? value.map((each, at) => [at, each]) : Object.entries(value);
  const [isOpen, setOpen] = useState(depth === 0 || (depth < open && members.length <= room));
  const [shown, setShown] = useState(MOST);
  const count = `${members.length.toLocaleString("en")} ${isList ? "item" : "member"}${members.length === 1 ? "" : "s"}`;
  if (!members.length) return html`<div class="json-row">${name}<span class="muted">${isList ? "[]" : "{}"}</span></div>`;
  return html`<div class="json-row">
    <button type="button" class="json-fold" aria-expanded=${isOpen ? "true" : "false"} onClick=${() => setOpen(!isOpen)}>
      <span aria-hidden="true">${isOpen ? "▾" : "▸"}</span> ${name}<span class="muted">${isList ? "[" : "{"}${count}${isList ? "]" : "}"}</span>
    </button>
    ${
      isOpen &&
      html`<div class="json-members">
        ${members.slice(0, shown).map(([key, each]) => html`<${Node} key=${key} name=${key} value=${each} depth=${depth + 1} open=${open} room=${room / Math.min(members.length, shown)} />`)}
        ${
          members.length > shown &&
          html`<button type="button" class="link" onClick=${() => setShown(shown + 10 * MOST)}>
            ${(members.length - shown).toLocaleString("en")} more
          </button>`
        }
      </div>`
    }
  </div>`;
}

/** @param {{value: any}} props */
function Leaf({ value }) {
  const [isWhole, setWhole] = useState(false);
  if (typeof value === "string") {
    const isCut = value.length > LONGEST && !isWhole;
    return html`<span class="json-text">"<${Text} text=${isCut ? value.slice(0, LONGEST) : value} />${isCut ? "…" : '"'}</span>
      ${isCut && html` <button type="button" class="link" onClick=${() => setWhole(true)}>all ${value.length.toLocaleString("en")} characters</button>`}`;
  }
  const kind = typeof value === "boolean" || value === null ? "json-word" : "json-number";
  return html`<span class=${kind}>${String(value)}</span>`;
}
