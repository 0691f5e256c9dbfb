// @ts-check
/** Workers by pool: what each runs since when, memory; pause, drain, stop. A pool that went away undrained stays, red. */
import { post } from "../parts/api.js";
import { Button, Command, Facts, Head, act, listed, useRights } from "../parts/operate.js";
import { html, useState } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Ago, Running, bytes, figure, many } from "../parts/time.js";
import { Paused, pause } from "./queues.js";

const EVERY_MS = 2000;
const MOST_POOLS = 30; // at once
const MOST_LINKS = 12; // to what the processes of a pool that is gone ran
/** @type {Record<string, string>} */
const STATES = { running: "● running", paused: "‖ paused", draining: "↓ draining", gone: "✕ gone, not drained" };

export default function Workers() {
  const rights = useRights();
  const [most, setMost] = useState(MOST_POOLS);
  const pools = useData(rights.readAll ? "/pools" : null, {}, { everyMs: EVERY_MS });
  const workers = useData(rights.readAll ? "/workers" : null, {}, { everyMs: EVERY_MS });
  if (!rights.readAll) return html`<${Head} title="Workers" /><${Empty} title="Only keys that see all projects see the workers" />`;
  const known = pools.value?.pools ?? [];
  const names = new Set(known.map((/** @type {any} */ pool) => pool.name));
  const reload = () => Promise.all([pools.reload(), workers.reload()]);
  return html`<${Head} title="Workers" />
    <${Loaded} of=${workers}>
      ${(/** @type {any} */ { workers: all, warnings = [] }) => {
        const others = all.filter((/** @type {any} */ each) => !names.has(each.pool));
        return html`${warnings.map((/** @type {string} */ text) => html`<p class="banner warning">${text}</p>`)}
          ${[...known].sort(goneFirst).slice(0, most).map((/** @type {any} */ pool) => html`<${Pool} key=${pool.name} pool=${pool} workers=${all.filter((/** @type {any} */ each) => each.pool === pool.name)} rights=${rights} reload=${reload} />`)}
          ${known.length > most && html`<p><button type="button" onClick=${() => setMost(most + MOST_POOLS)}>${figure(Math.min(MOST_POOLS, known.length - most))} more of ${many(known.length - most, "pool")}</button></p>`}
          ${others.length > 0 && html`<section class="card"><h2>${known.length ? "Other workers" : "Processes"}</h2><${Processes} label="Other workers" workers=${others} rights=${rights} reload=${reload} /></section>`}
          ${!all.length && !known.length && html`<${Empty} title="No worker runs">Tasks stay queued until one does. Start a pool:<${Command}>taskpool worker --tasks tasks.py<//><//>`}`;
      }}
    <//>`;
}

/** @param {any} a @param {any} b */
const goneFirst = (a, b) => Number(b.state === "gone") - Number(a.state === "gone") || (a.name < b.name ? -1 : 1);

/** @param {{ pool: any, workers: any[], rights: any, reload: () => any }} props */
function Pool({ pool, workers, rights, reload }) {
  const at = `/${path("pools", pool.name)}`;
  const isGone = pool.state === "gone";
  const running = `It runs ${many(pool.busy, "task")} now; what it runs goes on.`;
  const resume = () => act({ title: `Resume the pool ${pool.name}?`, text: `${many(pool.processes, "process", "processes")} take tasks again.`, action: "Resume", run: () => post(`${at}/resume`), done: `Resumed ${pool.name}`, reload });
  const drain = () => pause(`the pool ${pool.name}`, `It takes no more tasks, finishes the ${many(pool.busy, "task")} it runs, and ends: ${many(pool.processes, "process", "processes")}. It can't be resumed.`, `${at}/drain`, reload, "Drain");
  return html`<section class=${`card pool ${isGone ? "gone" : ""}`} aria-label=${`Pool ${pool.name}`}>
    <div class="head">
      <h2>${pool.name} <span class=${`word ${isGone ? "critical" : pool.state === "running" ? "" : "warning"}`}>${STATES[pool.state] ?? pool.state}</span></h2>
      ${
        rights.stopAll &&
        !isGone &&
        html`<div class="buttons">
          ${pool.state === "running" && html`<${Button} isSmall of=${pool.name} onClick=${() => pause(`the pool ${pool.name}`, running, `${at}/pause`, reload)}>Pause<//>`}
          ${pool.state === "paused" && html`<${Button} isSmall of=${pool.name} onClick=${resume}>Resume<//>`}
          ${pool.state !== "draining" && html`<${Button} isSmall of=${pool.name} onClick=${drain}>Drain…<//>`}
        </div>`
      }
    </div>
    ${pool.paused && html`<p><${Paused} paused=${pool.paused} /></p>`}
    ${isGone && html`<p>It was last heard of <${Ago} at=${pool.last_seen_ms} />, and didn't say that it ends: it was killed, or can't reach Redis. Tasks that it ran are taken back when their leases end. What it ran: ${Array.from({ length: Math.min(pool.processes, MOST_LINKS) }, (_, at) => html`<a class="process" href=${href("tasks", { worker: `${pool.name}.${at + 1}` })}>process ${at + 1}</a> `)}</p>`}
    <${Facts}
      of=${[
        ["Host", pool.host],
        ["Build", pool.build ?? listed([...new Set(workers.map((each) => each.build).filter(Boolean))])],
        ["Started", pool.started_at && html`<${Ago} at=${pool.started_at} />`],
        ["Busy", !isGone && `${figure(pool.busy)} of ${figure(pool.processes * (pool.slots ?? 1))}`],
        ["Memory", pool.memory_bytes && bytes(pool.memory_bytes)],
        ["Queues", listed(pool.queues, 8)],
        ["Version", pool.version],
      ]}
    />
    ${workers.length > 0 && html`<${Processes} label=${`Processes of ${pool.name}`} workers=${workers} rights=${rights} reload=${reload} />`}
  </section>`;
}

/** @param {{ label: string, workers: any[], rights: any, reload: () => any }} props */
function Processes({ label, workers, rights, reload }) {
  return html`<${Table} label=${label} rows=${workers} id=${(/** @type {any} */ row) => row.name} isLive columns=${processColumns(rights, reload)} />`;
}

/** @param {any} rights @param {() => any} reload @returns {import("../parts/table.js").Column<any>[]} */
function processColumns(rights, reload) {
  const idOf = (/** @type {any} */ row) => row.task?.id ?? row.current?.[0];
  const stop = (/** @type {any} */ row) =>
    act({
      title: `Stop 1 task: ${row.task?.type ?? idOf(row)}?`,
      text: "The task is asked to stop, and interrupted. It won't be tried again by itself.",
      action: "Stop 1 task",
      isDangerous: true,
      run: () => post(`/${path("tasks", idOf(row))}/stop`, {}),
      done: "Asked it to stop",
      reload,
    });
  return [
    { title: "Process", width: 110, phone: "first", show: (row) => html`<span title=${row.name}>${row.pid}</span>` },
    {
      title: "Runs",
      kind: "wide",
      show: (row) =>
        idOf(row)
          ? html`<a href=${href(path("tasks", idOf(row)))}>${row.task?.type ?? `…${idOf(row).slice(-8)}`}</a>${row.current?.length > 1 && html` <span class="muted">and ${row.current.length - 1} more</span>`}`
          : html`<span class="muted">${row.state}</span>`,
    },
    { title: "Since", kind: "right", width: 84, show: (row) => (row.task ? html`<${Running} since=${row.task.since_ms} />` : "") },
    { title: "Memory", kind: "right", width: 92, phone: "hidden", show: (row) => bytes(row.memory_bytes) },
    { title: "Done", kind: "right", width: 76, phone: "hidden", show: (row) => figure(row.done) },
    { title: "Failed", kind: "right", width: 76, phone: "hidden", show: (row) => figure(row.failed) },
    { title: "Seen", kind: "right", width: 96, phone: "hidden", show: (row) => html`<${Ago} at=${row.last_heartbeat} />` },
    ...(rights.stop
      ? [{ title: "Action", width: 84, show: (/** @type {any} */ row) => idOf(row) && rights.may("tasks:stop", row.task) && html`<${Button} isSmall of=${`what ${row.pid} runs`} onClick=${() => stop(row)}>Stop…<//>` }]
      : []),
  ];
}
