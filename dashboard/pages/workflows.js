// @ts-check
/** Workflows: how far each one is. */
import { countsText } from "../parts/graph.js";
import { Bar, Head, NextPage } from "../parts/operate.js";
import { html } from "../parts/preact.js";
import { go, href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Status } from "../parts/status.js";
import { Table } from "../parts/table.js";
import { Ago, figure, percent } from "../parts/time.js";

const EVERY_MS = 2000;
const STATUSES = ["in_progress", "stopping", "done", "failed", "stopped"];

/** @param {{ query: Record<string, string> }} props */
export default function Workflows({ query }) {
  const wanted = { status: query.status, name: query.name, cursor: query.cursor };
  const workflows = useData("/workflows", { ...wanted, limit: 50 }, { everyMs: EVERY_MS });
  const isFiltered = query.status || query.name;
  const empty = isFiltered
    ? html`<${Empty} title="No such workflow"><a href="#/workflows">All workflows</a><//>`
    : html`<${Empty} title="No workflow yet">Submit one: taskpool workflow submit FILE<//>`;
  return html`<${Head} title="Workflows" />
    <div class="filters" role="group" aria-label="Status">
      ${["", ...STATUSES].map((status) => html`<a class="button" aria-current=${(query.status ?? "") === status ? "true" : undefined} href=${href("workflows", { ...query, cursor: undefined, status })}>${status ? html`<${Status} status=${status} />` : "All"}</a>`)}
      ${query.name && html`<button type="button" onClick=${() => go(href("workflows", { ...query, name: "" }))}>name: ${query.name} ✕</button>`}
    </div>
    <${Loaded} of=${workflows}>
      ${(/** @type {any} */ page) => html`<${Table}
          label="Workflows" rows=${page.workflows} id=${(/** @type {any} */ row) => row.id} of=${JSON.stringify(wanted)}
          href=${(/** @type {any} */ row) => href(path("workflows", row.id))} columns=${COLUMNS} empty=${empty}
        />
        <${NextPage} path="workflows" query=${query} cursor=${page.next_cursor} />`}
    <//>`;
}

/** @type {import("../parts/table.js").Column<any>[]} */
const COLUMNS = [
  { title: "Status", width: 120, show: (row) => html`<${Status} status=${row.status} />` },
  { title: "Name", kind: "wide", phone: "first", show: (row) => row.name },
  { title: "Id", kind: "id", width: 110, phone: "hidden", show: (row) => html`<span title=${row.id}>…${row.id.slice(-8)}</span>` },
  { title: "Progress", width: 190, show: (row) => html`<${Progress} of=${row} />` },
  { title: "Tasks", width: 240, phone: "hidden", show: (row) => html`<span class="cut" title=${countsText(row.counts)}>${countsText(row.counts)}</span>` },
  { title: "Made", kind: "right", width: 110, show: (row) => html`<${Ago} at=${row.created_at} />` },
];

/** @param {{ of: any }} props */
export function Progress({ of }) {
  const all = of.total || 1;
  const failed = of.counts.failed ?? 0;
  return html`<span class="progress-of">
    <${Bar} shares=${[["done", of.total ? (of.ended - failed) / all : 1], ["failed", failed / all]]} />
    <span class="figure" title=${`${of.ended} of ${of.total} tasks have ended`}>${percent(of.ended, all)} of ${figure(of.total)}</span>
  </span>`;
}
