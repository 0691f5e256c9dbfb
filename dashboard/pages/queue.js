// @ts-check
/** One queue: what starts next, who serves it, who paused it. */
import { Command, Facts, Head, NextPage, rate, useRights } from "../parts/operate.js";
import { html } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Status } from "../parts/status.js";
import { Table } from "../parts/table.js";
import { duration, figure, many } from "../parts/time.js";
import { PauseButton, Paused, useServed } from "./queues.js";

const EVERY_MS = 2000;
const SLOW_MS = 15000;
const IS_NAME = /^[\w.-]{1,64}$/; // RQ programs, and addresses that others have made, may have any other

/** @type {import("../parts/table.js").Column<any>[]} */
const COLUMNS = [
  { title: "Place", kind: "right", width: 72, show: (row) => figure(row.position) },
  { title: "Type", kind: "wide", phone: "first", show: (row) => row.type },
  { title: "Id", kind: "id", width: 110, show: (row) => html`<span title=${row.id}>…${row.id.slice(-8)}</span>` },
  { title: "Status", width: 120, phone: "hidden", show: (row) => html`<${Status} status=${row.status} />` },
  { title: "Waits", kind: "right", width: 110, show: (row) => duration(1000 * row.wait_s) },
];

/** @param {{ params: { name: string }, query: Record<string, string> }} props */
export default function Queue({ params: { name }, query }) {
  const rights = useRights();
  const at = path("queues", name);
  const tasks = useData(`/${at}`, { limit: 50, cursor: query.cursor }, { everyMs: EVERY_MS });
  const load = useData(rights.readAll ? `/${at}/load` : null, {}, { everyMs: SLOW_MS }).value;
  const served = useServed(rights.readAll);
  const queue = tasks.value?.info ?? { name };
  const oldest = duration(1000 * (queue.oldest_s ?? 0));
  return html`<${Head} title=${name} above=${[["Queues", "#/queues"]]}>
      ${rights.pause(name) && tasks.value && html`<${PauseButton} queue=${queue} reload=${tasks.reload} />`}
    <//>
    ${queue.paused && html`<div class="banner warning"><span class="grow"><${Paused} paused=${queue.paused} /></span></div>`}
    ${
      served &&
      !served.has(name) &&
      html`<div class=${`banner ${queue.queued ? "critical" : "warning"}`}>
        <div class="grow">
          <p>No worker serves this queue${queue.queued ? `: ${many(queue.queued, "task")} ${queue.queued === 1 ? "waits" : "wait"}, the oldest for ${oldest}` : ""}.${IS_NAME.test(name) && " Start one:"}</p>
          ${IS_NAME.test(name) && html`<${Command}>${`taskpool worker --queues ${name}`}<//>`}
        </div>
      </div>`
    }
    <${Facts}
      of=${[
        ["Queued", figure(queue.queued)],
        ["Oldest", queue.queued ? oldest : "–"],
        ["Running", figure(queue.in_progress)],
        ["Scheduled", figure(queue.scheduled)],
        ["Waiting", figure(queue.waiting)],
        ["In", load && rate(load.arrival_per_s)],
        ["Out", load && rate(load.service_per_s)],
        ["Workers", load && `${figure(load.workers)}${load.workers_needed > load.workers ? `, ${figure(load.workers_needed)} needed` : ""}`],
      ]}
    />
    <p>
      <a href=${href("tasks", { queue: name })}>All its tasks</a> · <a href=${href("tasks", { queue: name, status: "in_progress" })}>running</a> ·
      <a href=${href("tasks", { queue: name, status: "failed" })}> failed</a>
    </p>
    <h2>Next to start</h2>
    <${Loaded} of=${tasks}>
      ${(/** @type {any} */ page) => html`<${Table}
          label=${`Tasks in ${name}, in the order of their start`} rows=${page.tasks} id=${(/** @type {any} */ row) => row.id} isLive
          href=${(/** @type {any} */ row) => href(path("tasks", row.id))} columns=${COLUMNS}
          empty=${html`<${Empty} title="Nothing is queued here">Tasks that are scheduled, wait or run aren't in this list.<//>`}
        />
        <${NextPage} path=${at} query=${query} cursor=${page.next_cursor} />`}
    <//>`;
}
