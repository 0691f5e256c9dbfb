// @ts-check
/** A task's status: always an icon, a word and a colour. tests/browser compares the table with the API's. */
import { html } from "./preact.js";

/** Shapes on a grid of 14 by 14; `fill` ones are filled, all others drawn with lines. */
const CIRCLE = "M7 1.75a5.25 5.25 0 1 0 0 10.5a5.25 5.25 0 1 0 0-10.5";
/** @type {Record<string, { word: string, path: string, fill?: string, dash?: string }>} */
export const STATUSES = {
  queued: { word: "queued", path: CIRCLE },
  scheduled: { word: "scheduled", path: `${CIRCLE}M7 4v3.2l2 1.3` },
  waiting: { word: "waiting", path: "M4.5 2.5v9M9.5 2.5v9" },
  waiting_confirmation: { word: "needs confirmation", path: "M7 1.75a2.5 2.5 0 1 0 0 5a2.5 2.5 0 1 0 0-5M2 12.5c.6-2.6 2.6-4 5-4s4.4 1.4 5 4" },
  throttled: { word: "throttled", path: "M1.75 2.5h10.5L8.5 7.25v4.5l-3-1.5v-3z" },
  in_progress: { word: "running", path: CIRCLE, fill: "M7 1.75a5.25 5.25 0 0 1 0 10.5z" },
  stopping: { word: "stopping", path: "M2.5 2.5h9v9h-9z", dash: "2.2 1.4" },
  done: { word: "done", path: "M2 7.5l3.5 3.5L12 3.5" },
  failed: { word: "failed", path: "M3 3l8 8M11 3l-8 8" },
  stopped: { word: "stopped", path: "M2.5 2.5h9v9h-9z", fill: "M2.5 2.5h9v9h-9z" },
  canceled: { word: "canceled", path: `${CIRCLE}M3.3 3.3l7.4 7.4` },
};

/** The statuses in which nothing happens to a task any more by itself. */
export const ENDED = new Set(["done", "failed", "stopped", "canceled"]);

/** Icon and word of a status. @param {{ status: string, short?: boolean }} props */
export function Status({ status, short = false }) {
  const { word } = STATUSES[status] ?? { word: status };
  return html`<span class=${`status ${status}`} title=${short ? word : undefined}>
    <${StatusIcon} status=${status} />${short ? html`<span class="only-read">${word}</span>` : word}
  </span>`;
}

/** The icon alone, for where the word stands beside it. @param {{ status: string }} props */
export function StatusIcon({ status }) {
  const { path, fill, dash } = STATUSES[status] ?? { path: CIRCLE };
  return html`<svg class=${`icon ${status}`} viewBox="0 0 14 14" aria-hidden="true">
    <path d=${path} stroke-dasharray=${dash} />${fill && html`<path class="filled" d=${fill} />`}
  </svg>`;
}
