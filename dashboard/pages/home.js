// @ts-check
/** Home answers three questions: is it healthy, what changed, and who waits longest? */
import { now } from "../parts/clock.js";
import { LiveDot, useLive } from "../parts/live.js";
import { listed, rate } from "../parts/operate.js";
import { Plot } from "../parts/plot.js";
import { html, useContext, useMemo } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { TaskSearch } from "../parts/search_box.js";
import { SessionContext } from "../parts/session.js";
import { Empty, Loaded, NotAvailable, sentence, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Text } from "../parts/text.js";
import { Ago, Count, bytes, duration, exact, figure, many, percent } from "../parts/time.js";
import { detailOf } from "./failures.js";

const RANGES = { "1h": 10_000, "24h": 30_000, "7d": 300_000, "90d": 300_000 };
const DEPTHS = ["--queued", "--scheduled", "--waiting_confirmation", "--stopping", "--throttled"];
const SHOWN = 8;
const MOST_GROUPS = 50;
/** What "Waits longest" can be asked by: the word of its tab, what a group without a name has, and where a group's row leads to.
 * @type {Record<string, { word: string, none: string, to: (group: any) => string }>} */
const WAITS = {
  queue: { word: "Queue", none: "", to: ({ name }) => href(path("queues", name)) },
  type: { word: "Type", none: "", to: ({ name }) => href("tasks", { status: "queued", type: name }) },
  key: { word: "Key", none: "without a key", to: ({ name, queues }) => href("tasks", { status: "queued", ...(name ? { submitted_by: name } : only(queues)) }) },
  project: { word: "Project", none: "without a project", to: ({ name, queues }) => href("tasks", { status: "queued", ...(name ? { project: name } : only(queues)) }) },
};

/** The filter of the only queue, if there is just one. @param {string[]} queues */
const only = (queues) => ({ queue: queues.length === 1 ? queues[0] : "" });

/** @param {{ query: Record<string, string> }} props */
export default function Home({ query }) {
  const range = Object.hasOwn(RANGES, query.range ?? "") ? /** @type {keyof typeof RANGES} */ (query.range) : "1h";
  const by = Object.hasOwn(WAITS, query.by ?? "") ? query.by : "queue";
  const { project } = useContext(SessionContext);
  const live = useLive(project === null);
  if (project !== null) {
    return html`<h1>Home</h1><${Empty} title=${`This key sees the project ${project}`}>
      Figures of the whole cluster need a key without a project. <a href=${href("tasks")}>Tasks of the project</a><//>`;
  }
  return html`<div class="head">
      <h1>Home</h1><${LiveDot} live=${live} /><span class="grow"></span>
      <nav class="buttons" aria-label="Range">
        ${Object.keys(RANGES).map((each) => html`<a class="button small" aria-current=${each === range ? "true" : undefined} href=${href("", placeOf(each, by))}>${each}</a>`)}
      </nav>
    </div>
    <${TaskSearch} />
    ${live.problem && html`<p class="banner warning" role="status">${sentence(`The figures aren't live: ${live.problem}`)}</p>`}
    <${Findings} />
    <${Tiles} totals=${live.figures?.totals} />
    <${Plots} range=${range} />
    <div class="columns">
      <${Changed} range=${range} />
      <${Waits} by=${by} range=${range} people=${live.figures?.totals?.waiting_confirmation ?? 0} />
    </div>`;
}

/** The query of this page; what is usual is left out. @param {string} range @param {string} by */
const placeOf = (range, by) => ({ range: range === "1h" ? "" : range, by: by === "queue" ? "" : by });

/** What is wrong, the most urgent first. */
function Findings() {
  const findings = useData("/findings", {}, { everyMs: 10_000 });
  const marks = { critical: "✕", warning: "!", info: "i" };
  return html`<${Loaded} of=${findings} missing=${html`<${NotAvailable} what="The list of findings" />`}>
    ${(/** @type {any} */ { findings: list }) =>
      list.length === 0
        ? html`<p class="all-well"><span class="done">✓</span> Nothing found wrong.</p>`
        : html`<ul class="findings" aria-label="Findings">
            ${list.map(
              (/** @type {any} */ each) => html`<li key=${each.id} class=${`banner ${each.severity}`}>
                <span class="mark" title=${each.severity}>${marks[/** @type {keyof typeof marks} */ (each.severity)]}<span class="only-read">${each.severity}</span></span>
                <p>${each.link ? html`<a href=${each.link}>${each.title}</a>` : each.title}${each.since && html` <span class="small nowrap">· since <${Ago} at=${each.since} /></span>`}</p>
                <details><summary class="small">What to do</summary><p>${each.text}</p>${each.action && html`<p><code>${each.action}</code></p>`}</details>
              </li>`,
            )}
          </ul>`}
  <//>`;
}

/** @param {{ totals: any }} props */
function Tiles({ totals }) {
  const ended = totals && totals.done_per_s !== null ? totals.done_per_s + totals.failed_per_s : null;
  const share = ended ? percent(totals.failed_per_s, ended) : null;
  const memory = totals?.redis_maxmemory ? percent(totals.redis_memory, totals.redis_maxmemory) : bytes(totals?.redis_memory);
  const tiles = [
    { label: "ended", value: rate(ended), to: href("tasks", { status: "done" }) },
    { label: "failed", value: share ?? (ended === 0 ? "0%" : "–"), note: totals && ended ? rate(totals.failed_per_s) : "", isBad: (totals?.failed_per_s ?? 0) > 0, to: href("tasks", { status: "failed" }) },
    { label: "wait p95", value: duration(totals?.wait_p95_ms), to: href("queues") },
    { label: "queued", value: figure(totals?.queued), title: totals && exact(totals.queued), to: href("tasks", { status: "queued" }) },
    { label: "busy", value: totals ? `${figure(totals.busy)}/${figure(totals.workers)}` : "–", to: href("workers") },
    { label: totals?.redis_maxmemory ? "Redis memory" : "Redis · no limit", value: memory, title: totals && `${exact(totals.redis_memory)} bytes`, to: "" },
  ];
  return html`<ul class="tiles" aria-label="Figures of now">
    ${tiles.map(({ label, value, note, title, isBad, to }) => {
      const inner = html`<span class=${`value figure ${isBad ? "bad" : ""}`} title=${title}>${value}</span><span class="label">${label}${note && html` · ${note}`}</span>`;
      return html`<li>${to ? html`<a class="tile card" href=${to}>${inner}</a>` : html`<div class="tile card">${inner}</div>`}</li>`;
    })}
  </ul>`;
}

/** @param {{ range: keyof typeof RANGES }} props */
function Plots({ range }) {
  const stats = useData("/stats", { range }, { everyMs: RANGES[range] });
  return html`<${Loaded} of=${stats} missing=${html`<${NotAvailable} what="The history" />`}>
    ${(/** @type {any} */ value) => html`<${FourPlots} stats=${value} />`}
  <//>`;
}

/** @param {{ stats: any }} props */
function FourPlots({ stats }) {
  const made = useMemo(() => prepared(stats), [stats]);
  const { times, marks, lines } = made;
  return html`<div class="plots">
    <${Plot} title="Ended" times=${times} lines=${lines.ended} marks=${marks} unit=${rate} />
    <${Plot} title="Failed" note="on its own scale" times=${times} lines=${lines.failed} marks=${marks} unit=${rate} />
    <${Plot} title="Wait" note="for a worker" times=${times} lines=${lines.wait} marks=${marks} unit=${duration} />
    <${Plot} title="Queued" note=${stats.depth.length > DEPTHS.length ? `the ${DEPTHS.length} longest queues` : ""} times=${times} lines=${lines.depth} marks=${marks} unit=${figure} />
  </div>`;
}

/** The lines of the plots. @param {any} stats */
function prepared({ step_s: stepS, start, points, series: [all], depth, builds }) {
  const startS = Date.parse(start) / 1000;
  const times = Array.from({ length: points }, (_, index) => startS + index * stepS);
  const openS = Math.max(1, now() / 1000 - times[points - 1]); // the last point isn't over
  const rate = (/** @type {string[]} */ ...names) =>
    times.map((_, index) => names.reduce((sum, name) => sum + all[name][index], 0) / (index === points - 1 ? Math.min(stepS, openS) : stepS));
  const deepest = depth.filter((/** @type {any} */ each) => each.queue !== "(other)").slice(0, DEPTHS.length);
  return {
    times,
    marks: builds.map((/** @type {any} */ each) => ({ atS: Date.parse(each.since) / 1000, label: each.build })),
    lines: {
      ended: [
        { label: "done", color: "--done", values: rate("done") },
        { label: "submitted", color: "--queued", values: rate("submitted") },
      ],
      failed: [
        { label: "failed", color: "--failed", values: rate("failed") },
        { label: "retried", color: "--stopping", values: rate("retried") },
        { label: "crashed", color: "--stopped", values: rate("crashed") },
      ],
      wait: [
        { label: "p50", color: "--queued", values: all.wait_p50_ms },
        { label: "p95", color: "--waiting_confirmation", values: all.wait_p95_ms },
      ],
      depth: deepest.map((/** @type {any} */ each, /** @type {number} */ index) => ({ label: each.queue, color: DEPTHS[index], values: each.values })),
    },
  };
}

/** @type {import("../parts/table.js").Column<any>[]} */
const GROUPS = [
  { title: "Failure", kind: "wide", phone: "first", show: (group) => html`<b>${group.error_type}</b> ${group.place || detailOf(group)}` },
  { title: "Failed", kind: "right", width: 72, show: (group) => html`<${Count} value=${group.count} />` },
  { title: "First", kind: "right", width: 104, show: (group) => html`<${Ago} at=${group.first_seen} />` },
];

/** Failures in the range, the new ones first. @param {{ range: string }} props */
function Changed({ range }) {
  const failures = useData("/failures", { since: range, limit: MOST_GROUPS }, { everyMs: 10_000 });
  const builds = useData("/stats", { range: "1h" });
  const newest = builds.value?.builds?.reduce((/** @type {any} */ last, /** @type {any} */ each) => (!last || each.since > last.since ? each : last), null);
  return html`<section aria-label="What changed">
    <h2>What changed ${newest && html`<span class="muted small">build ${newest.build}, <${Ago} at=${newest.since} /></span>`}</h2>
    <${Loaded} of=${failures} missing=${html`<${NotAvailable} what="The list of failures" />`}>
      ${(/** @type {any} */ { groups }) => {
        const isNew = (/** @type {any} */ group) => newest && group.first_seen >= newest.since;
        const rows = [...groups].sort((a, b) => Number(isNew(b)) - Number(isNew(a)) || b.count - a.count).slice(0, SHOWN);
        const columns = [...GROUPS.slice(0, 1), { title: "New", width: 68, show: (/** @type {any} */ group) => isNew(group) && html`<span class="badge failed">new</span>` }, ...GROUPS.slice(1)];
        return html`<${Table} label="Failures" columns=${columns} rows=${rows} isLive id=${(/** @type {any} */ group) => group.fingerprint}
          href=${(/** @type {any} */ group) => href(path("failures", group.fingerprint))}
          empty=${html`<${Empty} title=${`No failure in the last ${range}`} />`} />
          ${groups.length > rows.length && html`<p class="small"><a href=${href("failures", { since: range })}>All ${groups.length}${groups.length < MOST_GROUPS ? "" : " or more"}</a></p>`}`;
      }}
    <//>
  </section>`;
}

/** @param {string} by @returns {import("../parts/table.js").Column<any>[]} */
const groupColumns = (by) => [
  { title: WAITS[by].word, kind: "wide", phone: "first", show: ({ name }) => (name ? html`<${Text} text=${name} />` : html`<span class="muted">${WAITS[by].none}</span>`) },
  { title: "Waiting", kind: "right", width: 90, show: ({ count, queued }) => html`<${Count} value=${queued ?? count} />` },
  ...(by === "queue" ? [] : [{ title: "Queues", width: 150, show: (/** @type {any} */ { queues }) => listed(queues, 2) }]),
  { title: "Oldest", kind: "right", width: 110, show: ({ oldest_s: oldestS }) => duration(oldestS * 1000) },
];

/** Who waits longest, by what is chosen. @param {{ by: string, range: string, people: number }} props */
function Waits({ by, range, people }) {
  const waits = useData("/waits", { by }, { everyMs: 10_000 });
  return html`<section aria-label="Who waits longest">
    <h2>Waits longest</h2>
    <nav class="tabs" aria-label="By">
      ${Object.entries(WAITS).map(([each, { word }]) => html`<a key=${each} href=${href("", placeOf(range, each))} aria-current=${each === by ? "page" : undefined}>${word}</a>`)}
    </nav>
    <${Loaded} of=${waits} missing=${html`<${NotAvailable} what="Who waits longest" />`}>
      ${(/** @type {any} */ { by: answered, groups, looked_at: lookedAt, queued }) => {
        const of = Object.hasOwn(WAITS, answered) ? answered : by; // while the next answer comes, that of another tab is shown
        return html`<${Table}
          label=${`Who waits longest, by ${of}`} columns=${groupColumns(of)} rows=${groups.slice(0, SHOWN)} isLive of=${of}
          id=${(/** @type {any} */ group) => group.name ?? ""} href=${WAITS[of].to} empty=${html`<${Empty} title="No task waits for a worker" />`} />
        ${of !== "queue" && lookedAt < queued && html`<p class="muted small">Of ${many(queued, "queued task")}, ${figure(lookedAt)} of those that wait longest were looked at.</p>`}`;
      }}
    <//>
    ${people > 0 && html`<p class="small"><a href=${href("tasks", { status: "waiting_confirmation" })}>${many(people, "task")} ${people === 1 ? "needs" : "need"} confirmation</a></p>`}
  </section>`;
}
