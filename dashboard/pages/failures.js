// @ts-check
/** Failures by cause: how many, since when, of which builds. */
import { Head, listed, useRights } from "../parts/operate.js";
import { html } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { Empty, Loaded, NotAvailable, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Ago, Count, many } from "../parts/time.js";

const EVERY_MS = 5000;
const MOST = 200;
const RANGES = [["1h", "Last hour"], ["24h", "Last 24 h"], ["", "All"]];

/** @param {{ query: Record<string, string> }} props */
export default function Failures({ query }) {
  const wanted = { type: query.type, since: query.since };
  const rights = useRights();
  const failures = useData(rights.readAll ? "/failures" : null, { ...wanted, limit: MOST }, { everyMs: EVERY_MS });
  const empty = html`<${Empty} title=${query.type ? `No failure of ${query.type}` : "No failure"}>
    ${query.since || query.type ? html`<a href="#/failures">Of all types, of all times</a>` : "Failed attempts are grouped here by exception and place."}
  <//>`;
  if (!rights.readAll) return html`<${Head} title="Failures" /><${Empty} title="Only keys that see all projects see failures by cause"><a href="#/tasks?status=failed">Failed tasks</a><//>`;
  return html`<${Head} title="Failures" />
    <div class="filters" role="group" aria-label="Since">
      ${RANGES.map(([since, word]) => html`<a class="button" aria-current=${(query.since ?? "") === since ? "true" : undefined} href=${href("failures", { ...query, since })}>${word}</a>`)}
      ${query.type && html`<a class="button" href=${href("failures", { ...query, type: "" })}>type: ${query.type} ✕</a>`}
    </div>
    <${Loaded} of=${failures} missing=${html`<${NotAvailable} what="Failures by cause" />`}>
      ${(/** @type {any} */ page) => html`<${Table}
        label="Groups of failures" rows=${page.groups} id=${(/** @type {any} */ row) => row.fingerprint} of=${JSON.stringify(wanted)}
        href=${(/** @type {any} */ row) => href(path("failures", row.fingerprint))} columns=${COLUMNS} empty=${empty}
        />
        ${page.groups.length >= MOST && html`<p class="muted">These are the ${MOST} causes that failed last.</p>`}`}
    <//>`;
}

/** @type {import("../parts/table.js").Column<any>[]} */
const COLUMNS = [
  { title: "What", kind: "wide", phone: "first", show: (row) => html`<b>${row.error_type}</b> <span class="muted">${detailOf(row)}</span>` },
  { title: "Where", width: 200, phone: "hidden", show: (row) => html`<span class="mono cut" title=${row.place}>${row.place}</span>` },
  { title: "Types", width: 120, phone: "hidden", show: (row) => listed(Object.keys(row.types), 2) },
  { title: "Count", kind: "right", width: 72, show: (row) => html`<${Count} value=${row.count} />` },
  { title: "24 h", width: 112, phone: "hidden", show: (row) => html`<${Spark} values=${row.spark} />` },
  { title: "First", kind: "right", width: 100, phone: "hidden", show: (row) => html`<${Ago} at=${row.first_seen} />` },
  { title: "Last", kind: "right", width: 100, show: (row) => html`<${Ago} at=${row.last_seen} />` },
  { title: "Builds", width: 92, phone: "hidden", show: (row) => html`<span class="mono">${listed(Object.keys(row.builds).filter(Boolean), 1) || "–"}</span>` },
];

/** Its message without the name of the exception, which stands before it. @param {{ error_type: string, message: string }} group */
export const detailOf = ({ error_type, message }) => (message.startsWith(`${error_type}: `) ? message.slice(error_type.length + 2) : message);

/** Bars by hour, the current one last. @param {{ values: readonly number[] }} props */
export function Spark({ values }) {
  const most = Math.max(1, ...values);
  const bar = (/** @type {number} */ value, /** @type {number} */ at) => (value > 0 ? `M${at * 4} 20v${-Math.max(1.5, (20 * value) / most)}h3v${Math.max(1.5, (20 * value) / most)}z` : "");
  return html`<svg class="spark" viewBox=${`0 0 ${values.length * 4} 20`} role="img" aria-label=${`${many(values.at(-1) ?? 0, "failure")} in the current hour, ${many(values.reduce((sum, value) => sum + value, 0), "failure")} in 24 h`}>
    <path class="bars" d=${values.map(bar).join("")} />
    <path d=${`M0 19.5H${values.length * 4}`} />
  </svg>`;
}
