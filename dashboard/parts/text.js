// @ts-check
/** Text that a task, or the one who submitted it, has written. */

import { html, useEffect, useRef, useState } from "./preact.js";

/** A text by itself: letters that are written from right to left don't turn the text around it. @param {{text: string}} props */
export const Text = ({ text }) => html`<bdi>${String(text)}</bdi>`;

/** A text in which what stands between backticks is code. @param {string} text */
export const marked = (text) => text.split("`").map((part, at) => (at % 2 ? html`<code>${part}</code>` : part));

/** Copies a text and says so. @param {{text: string | (() => string), label?: string, children?: any}} props */
export function CopyButton({ text, label = "Copy", children = "Copy" }) {
  const [said, setSaid] = useState("");
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async () => {
    setSaid((await copied(typeof text === "string" ? text : text())) ? "Copied" : "Not copied");
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => setSaid(""), 2000);
  };
  return html`<button type="button" class="small" onClick=${copy} aria-label=${said || label}>${said || children}</button>
    <span role="status" class="only-read">${said}</span>`;
}

/** Put a text on the clipboard; without TLS by a selection, because browsers then have no other way. @param {string} text */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "only-read";
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}
