// @ts-check
/** Task types: who serves them, how long they take, how often they fail. */
import { Head, listed, useRights } from "../parts/operate.js";
import { html } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { marked } from "../parts/text.js";
import { Ago, bytes, duration, figure, percent } from "../parts/time.js";

const EVERY_MS = 10000;
const SLOW_MS = 30000;

export default function Types() {
  const rights = useRights();
  const types = useData("/types", {}, { everyMs: EVERY_MS });
  const stats = useData(rights.readAll ? "/stats" : null, { range: "1h", by: "type" }, { everyMs: EVERY_MS }).value;
  const storage = useData(rights.readAll ? "/storage" : null, {}, { everyMs: SLOW_MS }).value;
  const stored = new Map((storage?.types ?? []).map((/** @type {any} */ each) => [each.type, each]));
  const figures = new Map((stats?.series ?? []).map((/** @type {any} */ each) => [each.type, summary(each)]));
  return html`<${Head} title="Types" />
    <${Loaded} of=${types}>
      ${(/** @type {any} */ page) => html`<${Table}
        label="Task types" rows=${page.types} id=${(/** @type {any} */ row) => row.name} isLive
        columns=${columns(stats ? figures : null, storage ? stored : null)}
        empty=${html`<${Empty} title="No task type yet">Worker pools announce the types that they have loaded: taskpool worker --tasks tasks.py<//>`}
      />`}
    <//>`;
}

/** @typedef {{ ended: number, failed: number, p50: number | null, p95: number | null }} Summary */

/** What a series of the last hour comes to. @param {any} series @returns {Summary} */
export function summary(series) {
  const sum = (/** @type {(number | null)[] | undefined} */ values) => (values ?? []).reduce((/** @type {number} */ all, value) => all + (value ?? 0), 0);
  const failed = sum(series.failed) + sum(series.crashed);
  return { ended: failed + sum(series.done) + sum(series.stopped), failed, p50: series.durations?.run_p50_ms ?? null, p95: series.durations?.run_p95_ms ?? null };
}

/** @param {Map<string, Summary> | null} figures @param {Map<string, any> | null} stored @returns {import("../parts/table.js").Column<any>[]} */
function columns(figures, stored) {
  const of = (/** @type {any} */ row) => figures?.get(row.name);
  const lastHour = figures
    ? [
        { title: "Ended, 1 h", kind: "right", width: 96, phone: "hidden", show: (/** @type {any} */ row) => figure(of(row)?.ended ?? 0) },
        { title: "Failed", kind: "right", width: 110, show: (/** @type {any} */ row) => failures(row.name, of(row)) },
        { title: "p50", kind: "right", width: 84, phone: "hidden", show: (/** @type {any} */ row) => duration(of(row)?.p50) },
        { title: "p95", kind: "right", width: 84, phone: "hidden", show: (/** @type {any} */ row) => duration(of(row)?.p95) },
      ]
    : [];
  return /** @type {any} */ ([
    { title: "Type", kind: "wide", phone: "first", show: (/** @type {any} */ row) => html`<a class="row-link" href=${href(path("types", row.name))} title=${row.description}>${row.name}</a> <span class="muted">${marked(row.description ?? "")}</span>` },
    { title: "Queue", width: 120, phone: "hidden", show: (/** @type {any} */ row) => html`<a href=${href(path("queues", row.queue))}>${row.queue}</a>` },
    { title: "Served by", width: 150, show: (/** @type {any} */ row) => servedBy(row) },
    ...lastHour,
    ...(stored ? [{ title: "Kept in Redis", kind: "right", width: 130, show: (/** @type {any} */ row) => kept(stored.get(row.name)) }] : []),
  ]);
}

/** How many records, and about how much memory. @param {any} of */
const kept = (of) => (of ? html`<span title="by a sample of its records">${figure(of.tasks)}${of.bytes != null && html` <span class="muted">· ${bytes(of.bytes)}</span>`}</span>` : html`<span class="muted">0</span>`);

/** @param {string} name @param {Summary | undefined} of */
function failures(name, of) {
  if (!of?.failed) return html`<span class="muted">0</span>`;
  return html`<a href=${href("tasks", { type: name, status: "failed", since: "1h" })} title=${`${of.failed} of ${of.ended}`}>${figure(of.failed)} · ${percent(of.failed, of.ended)}</a>`;
}

/** @param {any} type */
export const servedBy = (type) =>
  type.served_by.length
    ? html`<span class="cut" title=${type.served_by.join(", ")}>${listed(type.served_by, 1)}</span>`
    : html`<span class="word warning">! no worker, since <${Ago} at=${type.last_seen_at} /></span>`;
