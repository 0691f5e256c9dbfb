// @ts-check
/** A task: what became of it and why, its life as a timeline, its log, and what can be done with it. */
import { getText, parseJson } from "../parts/api.js";
import { parseExact } from "../parts/exact.js";
import { follow } from "../parts/follow.js";
import { Json } from "../parts/json.js";
import { html, useContext, useEffect, useMemo, useRef, useState } from "../parts/preact.js";
import { href } from "../parts/router.js";
import { SessionContext, useMay } from "../parts/session.js";
import { Empty, Loaded, useAnswer } from "../parts/state.js";
import { ENDED, Status } from "../parts/status.js";
import { CopyButton, Text } from "../parts/text.js";
import { Ago, clock, duration, percent, useNow } from "../parts/time.js";
import { Actions } from "./task/actions.js";
import { Ask } from "./task/ask.js";
import { ErrorPanel } from "./task/error.js";
import { Audit, Durations, Facts, Relatives, comparedTo, useDurations, useParents } from "./task/facts.js";
import { Log, useLog } from "./task/log.js";
import { timelineOf } from "./task/timeline.js";
import { TimeAxis } from "./task/time_axis.js";
import { LiveStack, Why } from "./task/why.js";

const LEAST_MS = 250; // between two readings of a task that changes
const WAITING = new Set(["queued", "scheduled", "waiting", "waiting_confirmation", "throttled"]);
const RUNNING = new Set(["in_progress", "stopping"]);

/** @param {{ params: { id: string } }} props */
export default function TaskPage({ params: { id } }) {
  const at = `/tasks/${encodeURIComponent(id)}`;
  const data = useAnswer(`task ${id}`, async (signal) => {
    const text = await getText(at, {}, signal);
    return { record: parseJson(text), exact: parseExact(text) };
  });
  useChanges(id, data);
  const missing = html`<${Empty} title="There is no such task">
    It may have been removed: records of ended tasks are kept for a day by default. <a href=${href("tasks")}>All tasks</a>
  <//>`;
  return html`<nav class="crumbs" aria-label="Where you are"><a href=${href("tasks")}>Tasks</a>${data.value && html` › <a href=${href("tasks", { type: data.value.record.type })}><${Text} text=${data.value.record.type} /></a>`}</nav>
    <${Loaded} of=${data} missing=${missing}>
      ${(/** @type {any} */ { record, exact }) => html`<${Task} key=${id} record=${record} exact=${exact} reload=${data.reload} />`}
    <//>`;
}

/** Read the task again when it has changed, at most four times a second. @param {string} id @param {any} data */
function useChanges(id, data) {
  const latest = useRef(data);
  latest.current = data;
  const hasEnded = ENDED.has(data.value?.record.status);
  const isThere = data.value !== undefined;
  useEffect(() => {
    if (!isThere || hasEnded) return undefined;
    const abort = new AbortController();
    let timer = 0;
    const heard = (/** @type {string} */ name, /** @type {any} */ message) => {
      if (name === "message" && message.event === "log") return false; // the log is followed by itself
      if (name === "snapshot" && message.seq === latest.current.value?.record.seq) return ENDED.has(message.status);
      timer ||= window.setTimeout(() => {
        timer = 0;
        latest.current.reload();
      }, LEAST_MS);
      return name === "gone" || ENDED.has(message.status);
    };
    follow(`/tasks/${encodeURIComponent(id)}/events`, heard, { signal: abort.signal })
      .catch(() => {}) // what is wrong shows when the record is read
      .finally(() => abort.signal.aborted || latest.current.reload());
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [id, isThere, hasEnded]);
}

/** @param {{ record: any, exact: any, reload: () => void }} props */
function Task({ record, exact, reload }) {
  const may = useMay();
  const { project } = useContext(SessionContext);
  const hasEnded = ENDED.has(record.status);
  const now = useNow(!hasEnded);
  const parents = useParents(record);
  const durations = useDurations(record.type, project === null);
  const timeline = useMemo(() => timelineOf(record, now, parents), [record, hasEnded ? 0 : now, parents.length]);
  const attempts = timeline.spans.filter(({ kind }) => kind === "attempt");
  const last = attempts.at(-1);
  const ranMs = last ? last.to - last.from : NaN;
  const hasRun = Number.isFinite(ranMs) && (hasEnded || RUNNING.has(record.status));
  const usual = comparedTo(durations.value, ranMs);
  const isAsking = record.status === "waiting_confirmation";
  return html`<header class="task-head">
      <h1><${Text} text=${record.type} /> <span class="mono task-id">…${record.id.slice(-8)}</span> <${CopyButton} text=${record.id} label="Copy the id" /></h1>
      <${Actions} record=${exact} may=${may} onChange=${reload} />
    </header>
    <p class="task-line">
      <strong><${Status} status=${record.status} /></strong>
      ${record.reason && !record.error && html` · <${Text} text=${record.reason.replaceAll("_", " ")} />`}
      ${record.attempt > 0 && html` · attempt ${record.attempt}${record.attempt <= record.max_attempts ? ` of ${record.max_attempts}` : ""}`}
      ${hasRun && html` · <span class="figure">${hasEnded ? duration(ranMs) : clock(ranMs)}</span>`}
      ${hasRun && usual && html`<span class="muted">, ${usual}</span>`}
      ${hasEnded && record.ended_at && html` · <${Ago} at=${record.ended_at} />`}
      <span role="status" class="only-read">${record.status}</span>
    </p>
    ${record.progress && html`<${Progress} progress=${record.progress} isOver=${hasEnded && record.status !== "done"} />`}
    <div class="task-columns">
      <div class="task-main">
        ${isAsking && html`<${Ask} key=${record.asked_at} record=${record} mayConfirm=${may("tasks:confirm", record)} onDone=${reload} />`}
        ${record.status === "failed" && html`<${ErrorPanel} record=${record} />`}
        ${WAITING.has(record.status) && !isAsking && html`<${Why} record=${record} />`}
        <${Life} record=${record} timeline=${timeline} />
        ${record.error && record.status !== "failed" && html`<${ErrorPanel} record=${record} />`}
      </div>
      <div class="task-side">
        ${record.status === "done" && html`<${JsonCard} title="Result" value=${exact.result ?? null} />`}
        <${JsonCard} title="Payload" value=${exact.payload} />
        <${Relatives} record=${record} parents=${parents} />
        ${hasEnded && html`<${Durations} durations=${durations.value} type=${record.type} ms=${ranMs} />`}
        <${Facts} record=${record} />
        ${may("admin") && html`<${Audit} id=${record.id} />`}
      </div>
    </div>`;
}

/** The timeline and the log, on one axis. It renders by itself: lines arrive more often than anything else changes.
 * @param {{ record: any, timeline: import("./task/timeline.js").Timeline }} props */
function Life({ record, timeline }) {
  const log = useLog(record.id);
  const [goTo, setGoTo] = useState(/** @type {{ at: number, count: number } | null} */ (null));
  const [seenAt, setSeenAt] = useState(/** @type {number | null} */ (null));
  const lineTimes = useMemo(() => log.lines.map(({ at }) => at), [log.lines]);
  const starts = useMemo(() => new Map(timeline.spans.filter(({ kind }) => kind === "attempt").map((span) => [span.attempt, span.from])), [timeline]);
  const pick = (/** @type {number} */ at) => setGoTo({ at, count: (goTo?.count ?? 0) + 1 });
  return html`<section class="card" aria-labelledby="timeline-title">
      <h2 id="timeline-title">Timeline</h2>
      <${TimeAxis} timeline=${timeline} lineTimes=${lineTimes} seenAt=${seenAt} onPick=${pick} />
    </section>
    ${RUNNING.has(record.status) && html`<${LiveStack} record=${record} />`}
    <${Log} id=${record.id} log=${log} goTo=${goTo} onSeen=${setSeenAt} startedAt=${(/** @type {number} */ attempt) => starts.get(attempt) ?? timeline.from} />`;
}

/** @param {{ title: string, value: any }} props */
function JsonCard({ title, value }) {
  return html`<section class="card" aria-label=${title}><h2>${title}</h2><${Json} value=${value} label=${title.toLowerCase()} /></section>`;
}

/** @param {{ progress: any, isOver: boolean }} props */
function Progress({ progress: { done, total, note }, isOver }) {
  const isKnown = Number(total) > 0 && Number.isFinite(Number(done));
  return html`<div class="progress">
    ${isKnown && html`<progress value=${Math.min(Number(done), Number(total))} max=${Number(total)} aria-label="progress"></progress>`}
    <span class="figure">${isKnown ? `${done} of ${total}, ${percent(Number(done), Number(total))}` : String(done ?? "")}</span>
    ${note && html`<span class="muted"><${Text} text=${String(note)} /></span>`}
    ${isOver && html`<span class="muted">when it ended</span>`}
  </div>`;
}
