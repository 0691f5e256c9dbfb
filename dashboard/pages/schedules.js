// @ts-check
/** Schedules: when they run, in words, and what became of the last runs. */
import { Head, NextPage, useRights } from "../parts/operate.js";
import { now } from "../parts/clock.js";
import { html } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Ago, duration, wholeTime } from "../parts/time.js";
import { ScheduleActions } from "./schedule.js";

const EVERY_MS = 5000;

/** @param {{ query: Record<string, string> }} props */
export default function Schedules({ query }) {
  const rights = useRights();
  const schedules = useData("/schedules", { cursor: query.cursor }, { everyMs: EVERY_MS });
  const empty = html`<${Empty} title="No schedule yet">taskpool schedule add nightly TYPE --cron '0 2 * * *' --tz Europe/Berlin<//>`;
  return html`<${Head} title="Schedules" />
    <${Loaded} of=${schedules}>
      ${(/** @type {any} */ page) => html`<${Table}
          label="Schedules" rows=${page.schedules} id=${(/** @type {any} */ row) => idOf(row, rights.ofAll)} isLive
          href=${(/** @type {any} */ row) => href(path("schedules", idOf(row, rights.ofAll)))}
          columns=${columns(rights, schedules.reload)} empty=${empty}
        />
        <${NextPage} path="schedules" query=${query} cursor=${page.next_cursor} />`}
    <//>`;
}

/** The name by which the API knows a schedule: with its project, for those who see all projects. @param {any} row @param {boolean} ofAll */
export const idOf = (row, ofAll) => (row.project && ofAll ? `${row.project}:${row.name}` : row.name);

/** @param {any} rights @param {() => any} reload @returns {import("../parts/table.js").Column<any>[]} */
function columns(rights, reload) {
  return [
    { title: "Schedule", kind: "wide", phone: "first", show: (row) => idOf(row, rights.ofAll) },
    { title: "Runs", width: 260, show: (row) => html`<span class="cut" title=${row.words}>${row.words}</span>` },
    { title: "Type", width: 130, phone: "hidden", show: (row) => html`<a href=${href(path("types", row.task.type ?? ""))}>${row.task.type}</a>` },
    { title: "Last 10", width: 140, show: (row) => html`<${Dots} runs=${row.history ?? []} />` },
    { title: "Next", width: 110, show: (row) => html`<${Next} schedule=${row} />` },
    { title: "State", width: 130, phone: "hidden", show: (row) => html`<${State} schedule=${row} />` },
    ...(rights.start ? [{ title: "Action", width: 170, show: (/** @type {any} */ row) => html`<${ScheduleActions} schedule=${row} reload=${reload} isSmall />` }] : []),
  ];
}

/** @param {{ schedule: any }} props */
export function Next({ schedule }) {
  if (schedule.status !== "active" || !schedule.next_at) return html`<span class="muted">–</span>`;
  const lateMs = now() - Date.parse(schedule.next_at);
  return lateMs > 5000 ? html`<span class="word warning" title=${wholeTime(Date.parse(schedule.next_at))}>! ${duration(lateMs)} late</span>` : html`<${Ago} at=${schedule.next_at} />`;
}

/** @type {Record<string, [string, string]>} */
const STATES = { active: ["", "active"], paused: ["warning", "‖ paused"], undeclared: ["critical", "✕ undeclared"], ended: ["muted", "ended"] };

/** @param {{ schedule: any }} props */
export function State({ schedule }) {
  const [kind, word] = STATES[schedule.status] ?? ["", schedule.status];
  return html`<span class=${`word ${kind}`}>${word}${schedule.paused_at && html`, <${Ago} at=${schedule.paused_at} />`}</span>`;
}

/** @type {Record<string, [string, string]>} */
export const OUTCOMES = { submitted: ["✓", "done"], refused: ["✕", "failed"], skipped: ["–", "canceled"], missed: ["!", "stopped"] };

/** The last runs as marks, the oldest first, each with its outcome as title. @param {{ runs: any[] }} props */
export function Dots({ runs }) {
  if (!runs.length) return html`<span class="muted">none yet</span>`;
  const last = [...runs].slice(0, 10).reverse();
  const count = (/** @type {string} */ outcome) => last.filter((run) => run.outcome === outcome).length;
  const words = Object.keys(OUTCOMES).filter(count).map((outcome) => `${count(outcome)} ${outcome}`).join(", ");
  return html`<span class="dots" role="img" aria-label=${`Last runs: ${words}`}>
    ${last.map((run) => {
      const [sign, kind] = OUTCOMES[run.outcome] ?? ["?", "canceled"];
      const title = `${wholeTime(Date.parse(run.occurrence))}: ${run.outcome}${run.reason ? ` (${run.reason})` : ""}`;
      return html`<span class=${`dot status ${kind}`} title=${title}>${sign}</span>`;
    })}
  </span>`;
}
