// @ts-check
/** One schedule: its next runs, what became of the last 100, and why it doesn't run. */
import { post, remove } from "../parts/api.js";
import { toast } from "../parts/dialog.js";
import { Json } from "../parts/json.js";
import { Button, Facts, Head, act, useRights } from "../parts/operate.js";
import { now } from "../parts/clock.js";
import { html, useState } from "../parts/preact.js";
import { go, href, path } from "../parts/router.js";
import { useMay } from "../parts/session.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Ago, DAY, duration, figure, wholeTime } from "../parts/time.js";
import { Dots, Next, OUTCOMES, State, idOf } from "./schedules.js";

const EVERY_MS = 3000;
const SHOWN_RUNS = 20;

/** @param {{ params: { name: string } }} props */
export default function Schedule({ params: { name } }) {
  const schedule = useData(`/${path("schedules", name)}`, {}, { everyMs: EVERY_MS });
  const missing = html`<${Head} title=${name} above=${[["Schedules", "#/schedules"]]} /><${Empty} title="There is no such schedule"><a href="#/schedules">All schedules</a><//>`;
  return html`<${Loaded} of=${schedule} missing=${missing}>
    ${(/** @type {any} */ it) => html`<${Head} title=${it.name} above=${[["Schedules", "#/schedules"]]}>
        <${ScheduleActions} schedule=${it} reload=${schedule.reload} isWhole />
      <//>
      ${why(it)}
      <${Facts}
        of=${[
          ["Runs", it.words],
          ["State", html`<${State} schedule=${it} />`],
          ["Next", html`<${Next} schedule=${it} />`],
          ["Lag of the last run", lag(it.history?.[0])],
          ["Last task", it.last_task && html`<a href=${href(path("tasks", it.last_task))}>…${it.last_task.slice(-8)}</a>`],
          ["Type", html`<a href=${href(path("types", it.task.type ?? ""))}>${it.task.type}</a>`],
          ["Time zone", it.tz],
          ["Jitter", it.jitter && String(it.jitter)],
          ["Missed runs", it.catch_up === "all" ? `makes up for the last ${figure(it.catch_up_limit)}` : it.catch_up === "none" ? "are not made up for" : "makes up for the last one"],
          ["Overlap", it.overlap],
          ["Declared at", it.declared_at],
          ["Project", it.project],
        ]}
      />
      <div class="columns">
        <section>
          <h2>Next runs</h2>
          ${it.next_runs?.length ? html`<ol class="runs">${it.next_runs.map((/** @type {string} */ at) => html`<li key=${at}><${Moment} at=${at} tz=${it.tz} /></li>`)}</ol>` : html`<p class="muted">None.</p>`}
          ${it.clock_changes?.map((/** @type {string} */ text) => html`<p class="hint">${text}</p>`)}
        </section>
        <section>
          <h2>What it submits</h2>
          <${Json} value=${it.task} label="What it submits" />
        </section>
      </div>
      <h2>Last runs</h2>
      ${it.history?.length > 0 && html`<p><${Dots} runs=${it.history} /></p>`}
      <${History} runs=${it.history ?? []} />`}
  <//>`;
}

/** @param {{ runs: any[] }} props */
function History({ runs }) {
  const [most, setMost] = useState(SHOWN_RUNS);
  return html`<${Table}
      label="Last runs" rows=${runs.slice(0, most)} id=${(/** @type {any} */ row) => row.occurrence} isLive columns=${HISTORY}
      empty=${html`<${Empty} title="It hasn't run yet" />`}
    />
    ${runs.length > most && html`<p><button type="button" onClick=${() => setMost(runs.length)}>All ${figure(runs.length)}</button></p>`}`;
}

/** @type {import("../parts/table.js").Column<any>[]} */
const HISTORY = [
  { title: "Due", width: 170, phone: "first", show: (row) => html`<${Ago} at=${row.occurrence} />` },
  {
    title: "What became of it",
    width: 190,
    show: (row) => html`<span class=${`status ${OUTCOMES[row.outcome]?.[1] ?? ""}`}>${OUTCOMES[row.outcome]?.[0] ?? "?"} ${row.outcome}</span>${row.until && html` <span class="muted">until <${Ago} at=${row.until} /></span>`}`,
  },
  { title: "Lag", kind: "right", width: 100, show: (row) => lag(row) },
  { title: "Task", kind: "wide", show: (row) => (row.task ? html`<a href=${href(path("tasks", row.task))}>…${row.task.slice(-8)}</a>` : html`<span class="muted">${row.reason ?? ""}</span>`) },
];

/** How late a run was. @param {any} run */
function lag(run) {
  if (!run || run.outcome !== "submitted") return "";
  return duration(Math.max(0, Date.parse(run.at) - Date.parse(run.occurrence)));
}

/** A sentence on what is wrong, and what to do. @param {any} it */
function why(it) {
  if (it.status === "undeclared") {
    return html`<p class="banner critical">It doesn't run: it is declared in code (${it.declared_at}), and no live worker pool has loaded that code. Start a pool with it, or remove the schedule.</p>`;
  }
  if (it.status === "paused") return html`<p class="banner warning">It doesn't run: it was paused <${Ago} at=${it.paused_at} />. Resume it to go on with the next run.</p>`;
  const missed = (it.history ?? []).slice(0, 10).filter((/** @type {any} */ run) => run.outcome === "missed" || run.outcome === "refused");
  const lateMs = it.next_at ? now() - Date.parse(it.next_at) : 0;
  if (lateMs > 60000) return html`<p class="banner critical">A run is ${duration(lateMs)} late: does any worker pool live? <a href="#/workers">Workers</a></p>`;
  if (!missed.length) return null;
  return html`<p class="banner warning">Of the last ten runs, ${figure(missed.length)} ${missed.length === 1 ? "was" : "were"} missed or refused${missed[0].reason ? `: ${missed[0].reason}` : ": no worker pool was up"}. Run it now to make up for that.</p>`;
}

/** @param {{ at: string, tz?: string }} props */
function Moment({ at, tz }) {
  return html`<time datetime=${at} title=${wholeTime(Date.parse(at))}>${inZone(Date.parse(at), tz)}</time>${Date.parse(at) - now() < DAY && html` <span class="muted"><${Ago} at=${at} /></span>`}`;
}

/** A time in a zone; in UTC, if the browser doesn't know the zone. @param {number} atMs @param {string} [tz] */
function inZone(atMs, tz) {
  const format = (/** @type {string | undefined} */ timeZone) => new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium", timeZone }).format(atMs);
  try {
    return format(tz);
  } catch {
    return `${format("UTC")} UTC`;
  }
}

/** @param {{ schedule: any, reload: () => any, isSmall?: boolean, isWhole?: boolean }} props */
export function ScheduleActions({ schedule, reload, isSmall = false, isWhole = false }) {
  const name = idOf(schedule, useRights().ofAll);
  const isAllowed = useMay()("tasks:write", schedule.task);
  const at = `/${path("schedules", name)}`;
  const run = async () => {
    const receipt = await act({
      title: `Run ${name} now?`,
      text: `It submits 1 task of the type ${schedule.task.type}, beside its other runs.`,
      action: "Run now",
      run: () => post(`${at}/run`),
      done: "",
      reload,
    });
    if (receipt?.id) toast(`Submitted …${receipt.id.slice(-8)}`, { action: "Open", run: () => go(href(path("tasks", receipt.id))) });
  };
  const pause = () => act({ title: `Pause ${name}?`, text: "It submits nothing until it is resumed, also after a deployment.", action: "Pause", run: () => post(`${at}/pause`), done: `Paused ${name}`, reload });
  const resume = () => act({ title: `Resume ${name}?`, text: "It goes on with its next run.", action: "Resume", run: () => post(`${at}/resume`), done: `Resumed ${name}`, reload });
  const drop = () =>
    act({ title: `Remove the schedule ${name}?`, text: "The tasks that it has submitted stay.", action: "Remove 1 schedule", isDangerous: true, run: () => remove(at), done: `Removed ${name}` }).then((answer) => answer && go("#/schedules"));
  if (!isAllowed) return null;
  const isDeclared = schedule.declared_at && schedule.status !== "undeclared";
  return html`<span class="buttons">
    <${Button} isSmall=${isSmall} of=${name} onClick=${run}>Run now<//>
    ${schedule.status === "paused" ? html`<${Button} isSmall=${isSmall} of=${name} onClick=${resume}>Resume<//>` : schedule.status !== "ended" && html`<${Button} isSmall=${isSmall} of=${name} onClick=${pause}>Pause<//>`}
    ${isWhole && !isDeclared && html`<${Button} onClick=${drop}>Remove…<//>`}
  </span>`;
}
