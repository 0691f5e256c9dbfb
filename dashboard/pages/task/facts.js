// @ts-check
/** What stands beside a task: its options and times, how long its type takes, its relatives, and who touched it. */
import { html, useState } from "../../parts/preact.js";
import { href, path } from "../../parts/router.js";
import { Loaded, useAnswer, useData } from "../../parts/state.js";
import { get } from "../../parts/api.js";
import { ENDED, Status } from "../../parts/status.js";
import { CopyButton, Text } from "../../parts/text.js";
import { Ago, duration, many } from "../../parts/time.js";

const MOST_RELATIVES = 20;
const RELATIVES_MS = 5000; // between two readings while the task hasn't ended
const FEWEST = 20; // runs with which another one is compared
const MARGIN = 2; // buckets beside those with runs

/** @param {{ record: any }} props */
export function Facts({ record }) {
  const { id, queue, type, tags = [], worker, workflow, schedule, project, crashes, snoozes, operations = [] } = record;
  /** @type {Array<[string, any]>} */
  const facts = [
    ["Id", html`<span class="mono">${id}</span> <${CopyButton} text=${id} label="Copy the id" />`],
    ["Type", html`<a href=${href(path("types", type))}><${Text} text=${type} /></a>`],
    ["Queue", html`<a href=${href(path("queues", queue))}>${queue}</a>`],
    ["Tags", tags.length > 0 && tags.map((/** @type {string} */ tag) => html`<a class="tag" key=${tag} href=${href("tasks", { tag })}><${Text} text=${tag} /></a> `)],
    ["Worker", worker && html`<a class="mono" href=${href("tasks", { worker })}>${worker}</a>`],
    ["Workflow", workflow && html`<a class="mono" href=${href(path("workflows", workflow))}>…${workflow.slice(-8)}</a>${record.node && html` · <${Text} text=${record.node} />`}`],
    ["Schedule", schedule && html`<a href=${href(path("schedules", schedule))}><${Text} text=${schedule} /></a>`],
    ["Operations", operations.length > 0 && operations.map((/** @type {string} */ each) => html`<a class="mono" key=${each} href=${href("audit", { about: each })}>…${each.slice(-8)}</a> `)],
    ["Project", project && html`<a href=${href("tasks", { project })}>${project}</a>`],
    ["Key", record.submitted_by && html`<a href=${href("tasks", { submitted_by: record.submitted_by })}><${Text} text=${record.submitted_by} /></a>`],
    ["Submitted", record.created_at && html`<${Ago} at=${record.created_at} />`],
    ["Due", record.run_at && html`<${Ago} at=${record.run_at} />`],
    ["Started", record.started_at && html`<${Ago} at=${record.started_at} />`],
    ["Ended", record.ended_at && html`<${Ago} at=${record.ended_at} />`],
    ["Expires", record.expires_at && html`<${Ago} at=${record.expires_at} />`],
    ["Attempts", `${record.attempt}${record.attempt <= record.max_attempts ? ` of ${record.max_attempts}` : ""}`],
    ["Crashes", crashes],
    ["Snoozes", snoozes],
    ["Timeout", record.timeout_s && duration(record.timeout_s * 1000)],
    ["Back-off", record.backoff_s !== undefined && `${duration(record.backoff_s * 1000)}${record.backoff_max_s ? ` to ${duration(record.backoff_max_s * 1000)}` : ""}`],
    ["Unique key", record.unique_key && html`<${Text} text=${record.unique_key} />`],
    ["Build", record.build && html`<span class="mono">${record.build}</span>`],
    ["Trace", record.traceparent && html`<span class="mono cut" title=${record.traceparent}>${record.traceparent.split("-")[1]}</span>`],
  ];
  return html`<section class="card" aria-labelledby="facts-title">
    <h2 id="facts-title">Facts</h2>
    <dl class="facts">${facts.filter(([, value]) => value).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
  </section>`;
}

/** The durations of a type in the last 7 days, for those who see all projects. @param {string} type @param {boolean} maySee */
export const useDurations = (type, maySee) => useData(maySee ? `/types/${encodeURIComponent(type)}/durations` : null);

/** `usually 1.2 s (slower than 97%)`: where a run lies. @param {any} durations @param {number} ms */
export function comparedTo(durations, ms) {
  if (!durations || durations.count < FEWEST || !Number.isFinite(ms)) return "";
  const share = shareBelow(durations.buckets, ms / 1000, durations.count);
  const most = (/** @type {number} */ part) => Math.min(99, Math.floor(part * 100)); // it is one of them itself
  const place = share >= 0.5 ? `slower than ${most(share)}%` : `faster than ${most(1 - share)}%`;
  return `usually ${duration(durations.p50_ms)} (${place})`;
}

/** Which share of the runs took less, from how many took at most each time; in between by a straight line.
 * @param {Array<[number | null, number]>} buckets @param {number} seconds @param {number} count */
function shareBelow(buckets, seconds, count) {
  let [before, seen] = [0, 0];
  for (const [le, n] of buckets) {
    const edge = le ?? Infinity;
    if (seconds <= edge) return (seen + (Number.isFinite(edge) ? (n * (seconds - before)) / Math.max(edge - before, 1e-9) : 0)) / count;
    seen += n;
    before = edge;
  }
  return seen / count;
}

/** @typedef {Array<[number | null, number]>} Buckets up to how many seconds (null: longer), and how many runs */

/** The buckets with runs, and two more on each side, so that one bucket alone has a size.
 * @param {{ durations: { count: number, p50_ms: number, p95_ms: number, buckets: Buckets } | undefined, type: string, ms: number }} props */
export function Durations({ durations, type, ms }) {
  if (!durations?.count) return null;
  const { buckets, count } = durations;
  const here = buckets.findIndex(([le]) => ms / 1000 <= (le ?? Infinity));
  const used = buckets.flatMap(([, n], at) => (n > 0 || at === here ? [at] : []));
  const first = Math.max(0, Math.min(...used) - MARGIN);
  const shown = buckets.slice(first, Math.max(...used) + 1 + MARGIN);
  const most = Math.max(...buckets.map(([, n]) => n));
  const words = (/** @type {number | null} */ le) => (le === null ? "longer" : duration(le * 1000));
  return html`<section class="card" aria-labelledby="durations-title">
    <h2 id="durations-title">How long <${Text} text=${type} /> takes</h2>
    <p class="muted">${many(count, "run")} in the last 7 days: half took up to ${duration(durations.p50_ms)}, 95% up to ${duration(durations.p95_ms)}.</p>
    <div class="histogram" role="img" aria-label=${comparedTo(durations, ms) || "How long the runs took"}>
      ${shown.map(
        ([le, n], at) => html`<span key=${at} class=${`bin ${first + at === here ? "is-here" : ""}`}
          style=${{ height: `${n ? Math.max(3, Math.round((44 * n) / most)) : 1}px` }} title=${`${le === null ? "longer" : `up to ${words(le)}`}: ${many(n, "run")}${first + at === here ? "; this one, too" : ""}`}></span>`,
      )}
    </div>
    <div class="histogram-ends muted"><span>${words(first ? buckets[first - 1][0] : 0)}</span><span>${words(shown.at(-1)?.[0] ?? null)}</span></div>
  </section>`;
}

/** The tasks that it depends on and those that depend on it; the task that has added it and those that it has added.
 * @param {{ record: any, parents: any[] }} props */
export function Relatives({ record, parents }) {
  const edges = record.depends_on ?? [];
  const known = new Map(parents.map((parent) => [parent.id, parent]));
  const canceledBy = record.canceled_by;
  const addedBy = record.added_by;
  const often = { everyMs: ENDED.has(record.status) ? 0 : RELATIVES_MS };
  const children = useData("/tasks", { parent: record.id, limit: MOST_RELATIVES }, often).value;
  const added = useData("/tasks", { added_by: record.id, limit: MOST_RELATIVES }, often).value;
  if (!edges.length && !canceledBy && !addedBy && !mayHave(children) && !mayHave(added)) return null;
  return html`<section class="card" aria-labelledby="relatives-title">
    <h2 id="relatives-title">Parents and children</h2>
    ${addedBy && html`<p>Added by <${Relative} id=${addedBy} />.</p>`}
    ${canceledBy && html`<p>It was canceled because of <${Relative} id=${canceledBy} task=${known.get(canceledBy)} />.</p>`}
    ${edges.length > 0 && html`<h3>It waits for</h3>
      <ul class="plain-list">${edges.slice(0, MOST_RELATIVES).map((/** @type {any} */ edge) => {
        const id = typeof edge === "string" ? edge : (edge.id ?? edge.workflow);
        return html`<li key=${id}><${Relative} id=${id} task=${known.get(id)} isWorkflow=${Boolean(edge.workflow)} />${edge.on && edge.on !== "success" && html` <span class="muted">on ${edge.on}</span>`}</li>`;
      })}</ul>
      ${edges.length > MOST_RELATIVES && html`<p class="muted">${many(edges.length - MOST_RELATIVES, "more", "more")}</p>`}`}
    <${Listed} title="What depends on it" page=${children} all=${href("tasks", { parent: record.id })} />
    <${Listed} title="What it has added" page=${added} all=${href("tasks", { added_by: record.id })} />
  </section>`;
}

/** Whether a listing has tasks, as far as its first page tells. @param {any} page */
const mayHave = (page) => page !== undefined && (page.tasks.length > 0 || page.next_cursor !== undefined);

/** The first tasks of a listing, and a link to all of them. @param {{ title: string, page: any, all: string }} props */
function Listed({ title, page, all }) {
  if (!mayHave(page)) return null;
  return html`<h3>${title}</h3>
    <ul class="plain-list">${page.tasks.map((/** @type {any} */ task) => html`<li key=${task.id}><${Relative} id=${task.id} task=${task} /></li>`)}</ul>
    ${page.next_cursor && html`<a href=${all}>${page.tasks.length < MOST_RELATIVES ? "Look further" : "All of them"}</a>`}`;
}

/** @param {{ id: string, task?: any, isWorkflow?: boolean }} props */
function Relative({ id, task, isWorkflow = false }) {
  return html`<a href=${href(path(isWorkflow ? "workflows" : "tasks", id))}>
    ${task ? html`<${Text} text=${task.type} /> ` : isWorkflow ? "workflow " : "task "}<span class="mono">…${id.slice(-8)}</span>
  </a>${task && html` <${Status} status=${task.status} />`}`;
}

/** The documents of the parents that are tasks. @param {any} record @returns {any[]} */
export function useParents(record) {
  const ids = (record?.depends_on ?? []).slice(0, MOST_RELATIVES).map((/** @type {any} */ edge) => (typeof edge === "string" ? edge : edge.id)).filter(Boolean);
  const read = (/** @type {AbortSignal} */ signal) =>
    Promise.all(ids.map((/** @type {string} */ id) => get(`/tasks/${encodeURIComponent(id)}`, {}, signal).catch((error) => (error.status === 404 ? null : Promise.reject(error)))));
  const answer = useAnswer(ids.length ? `parents ${record.id} ${record.status} ${ids.join()}` : "", read);
  return (answer.value ?? []).filter(Boolean);
}

/** How many tasks an entry is about besides this one. @param {any} entry */
function others({ what, count }) {
  if (what.startsWith("operation.")) return count > 0 ? `, ${many(count, "task")}` : "";
  return count > 1 ? `, with ${count - 1} others` : "";
}

/** Who touched the task. @param {{ id: string }} props */
export function Audit({ id }) {
  const [isOpen, setOpen] = useState(false);
  const audit = useData(isOpen ? "/audit" : null, { about: id, limit: 50 });
  return html`<section class="card" aria-labelledby="audit-title">
    <details onToggle=${(/** @type {any} */ event) => setOpen(event.target.open)}>
      <summary><h2 id="audit-title">Who touched it</h2></summary>
      ${
        isOpen &&
        html`<${Loaded} of=${audit}>
          ${(/** @type {any} */ { entries }) =>
            entries.length
              ? html`<ul class="plain-list">${entries.map((/** @type {any} */ entry) => html`<li key=${entry.at + entry.what}>
                  <${Ago} at=${entry.at} /> ${entry.what.replace("task.", "")} by <${Text} text=${entry.by.name} />
                  <span class="muted"> from ${entry.by.address}${others(entry)}</span>
                  ${entry.comment && html`<br /><span class="muted">“<${Text} text=${entry.comment} />”</span>`}
                </li>`)}</ul>`
              : html`<p class="muted">Nothing is recorded. Programs that use Redis themselves aren't audited; of a batch, only the first and the last task are.</p>`}
        <//>`
      }
    </details>
  </section>`;
}
