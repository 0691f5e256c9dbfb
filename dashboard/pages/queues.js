// @ts-check
/** Queues: what waits where, how long, and who paused it. */
import { get, post } from "../parts/api.js";
import { Button, Head, NextPage, act, rate, useRights } from "../parts/operate.js";
import { html } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { Empty, Loaded, useAnswer, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Ago, Count, duration, many } from "../parts/time.js";

const EVERY_MS = 2000;
const SLOW_MS = 15000;
const RATE_OVER = 5; // buckets

/** @param {{ query: Record<string, string> }} props */
export default function Queues({ query }) {
  const rights = useRights();
  const queues = useData("/queues", { cursor: query.cursor }, { everyMs: EVERY_MS });
  const rates = useAnswer(rights.readAll ? "rates" : "", readRates, { everyMs: SLOW_MS }).value ?? {};
  const served = useServed(rights.readAll);
  return html`<${Head} title="Queues">
      ${rights.stopAll && html`<${PauseAll} of=${queues.value} />`}
    <//>
    <${Loaded} of=${queues}>
      ${(/** @type {any} */ page) => html`<${Table}
          label="Queues" rows=${page.queues} id=${(/** @type {any} */ row) => row.name} isLive
          href=${(/** @type {any} */ row) => href(path("queues", row.name))} columns=${columns(rates, served, rights, queues.reload)}
          empty=${html`<${Empty} title="No queue has had a task yet"><a href="#/types">Submit one</a><//>`}
        />
        <${NextPage} path="queues" query=${query} cursor=${page.next_cursor} />`}
    <//>`;
}

/** @param {Record<string, Rates>} rates @param {Set<string> | null} served @param {ReturnType<typeof useRights>} rights @param {() => any} reload */
function columns(rates, served, rights, reload) {
  const count = (/** @type {string} */ status) => (/** @type {any} */ row) =>
    row[status] ? html`<a href=${href("tasks", { queue: row.name, status })}><${Count} value=${row[status]} /></a>` : html`<span class="muted">0</span>`;
  return /** @type {import("../parts/table.js").Column<any>[]} */ ([
    { title: "Queue", kind: "wide", phone: "first", show: (row) => row.name },
    { title: "State", width: 210, show: (row) => html`<${State} queue=${row} served=${served} />` },
    { title: "Queued", kind: "right", width: 72, show: count("queued") },
    { title: "Oldest", kind: "right", width: 96, show: (row) => (row.queued ? duration(1000 * (row.oldest_s ?? 0)) : html`<span class="muted">–</span>`) },
    { title: "Running", kind: "right", width: 76, phone: "hidden", show: count("in_progress") },
    { title: "Scheduled", kind: "right", width: 88, phone: "hidden", show: count("scheduled") },
    { title: "In", kind: "right", width: 72, phone: "hidden", show: (row) => rate(rates[row.name]?.in) },
    { title: "Out", kind: "right", width: 72, phone: "hidden", show: (row) => rate(rates[row.name]?.out) },
    { title: "Empty in", kind: "right", width: 92, phone: "hidden", show: (row) => emptyIn(row, rates[row.name]) },
    ...(rights.stop && rights.ofAll ? [{ title: "Action", width: 92, show: (/** @type {any} */ row) => rights.pause(row.name) && html`<${PauseButton} queue=${row} reload=${reload} isSmall />` }] : []),
  ]);
}

/** @param {{ queue: any, served: Set<string> | null }} props */
function State({ queue, served }) {
  if (queue.paused) return html`<${Paused} paused=${queue.paused} />`;
  if (!served) return html`<span class="muted">–</span>`;
  if (served.has(queue.name)) return html`<span class="muted">served</span>`;
  return queue.queued ? html`<span class="word critical">✕ no worker serves it</span>` : html`<span class="word warning">! no worker serves it</span>`;
}

/** Who paused it, since when, and why. @param {{ paused: any }} props */
export const Paused = ({ paused }) =>
  html`<span class="word warning">‖ ${paused.drains ? "draining" : "paused"}${paused.by && ` by ${paused.by}`}, <${Ago} at=${paused.at} />${paused.why && `: ${paused.why}`}</span>`;

/** @typedef {{ in: number, out: number }} Rates */

/** How many tasks came and ended per second in each queue, over the last minutes. @param {AbortSignal} signal @returns {Promise<Record<string, Rates>>} */
async function readRates(signal) {
  const { series, step_s: step } = await get("/stats", { range: "1h", by: "queue" }, signal);
  const perS = (/** @type {(number | null)[] | undefined} */ values) => {
    const last = (values ?? []).slice(-1 - RATE_OVER, -1); // the last bucket isn't full yet
    return last.reduce((/** @type {number} */ sum, value) => sum + (value ?? 0), 0) / (Math.max(1, last.length) * step);
  };
  return Object.fromEntries(
    series.map((/** @type {any} */ each) => [
      each.queue,
      { in: perS(each.submitted), out: perS(each.done) + perS(each.failed) + perS(each.stopped) + perS(each.canceled) + perS(each.expired) },
    ]),
  );
}

/** @param {any} queue @param {Rates | undefined} rates */
function emptyIn(queue, rates) {
  if (!queue.queued) return html`<span class="muted">empty</span>`;
  if (!rates || queue.paused) return html`<span class="muted">–</span>`;
  if (rates.out > rates.in) return duration((1000 * queue.queued) / (rates.out - rates.in));
  return rates.in > rates.out ? html`<span class="word warning" title="More tasks come than end">grows</span>` : html`<span class="muted">–</span>`;
}

/** The queues that live workers serve; null if this isn't known. @param {boolean} mayKnow @returns {Set<string> | null} */
export function useServed(mayKnow) {
  const { value } = useData(mayKnow ? "/workers" : null, {}, { everyMs: SLOW_MS });
  return value ? new Set(value.workers.flatMap((/** @type {any} */ each) => each.queues)) : null;
}

/** @param {{ queue: any, reload: () => any, isSmall?: boolean }} props */
export function PauseButton({ queue, reload, isSmall = false }) {
  const at = `/${path("queues", queue.name)}`;
  if (queue.paused) {
    const resume = () =>
      act({
        title: `Resume the queue ${queue.name}?`,
        text: `${tasksWait(queue.queued)} in it. They start as soon as workers are free.`,
        action: "Resume",
        run: () => post(`${at}/resume`),
        done: `Resumed ${queue.name}`,
        reload,
      });
    return html`<${Button} isSmall=${isSmall} of=${queue.name} onClick=${resume}>Resume<//>`;
  }
  const text = `${tasksWait(queue.queued)} in it and won't start until the queue is resumed. What runs (${queue.in_progress}) goes on.`;
  return html`<${Button} isSmall=${isSmall} of=${queue.name} onClick=${() => pause(`the queue ${queue.name}`, text, `${at}/pause`, reload)}>Pause<//>`;
}

/** @param {number} count */
const tasksWait = (count) => `${many(count, "task")} ${count === 1 ? "waits" : "wait"}`;

/** Ask why, and pause or drain. @param {string} what @param {string} text @param {string} at @param {() => any} [reload] @param {string} [verb] */
export function pause(what, text, at, reload, verb = "Pause") {
  let why = "";
  return act({
    title: `${verb} ${what}?`,
    text: html`<p>${text}</p>
      <label class="field">Why, for the others to read
        <input autocomplete="off" maxlength="200" placeholder="migration" onInput=${(/** @type {any} */ event) => void (why = event.target.value)} />
      </label>`,
    action: verb,
    isDangerous: verb !== "Pause",
    run: () => post(at, why.trim() ? { why: why.trim() } : {}),
    done: `${verb === "Pause" ? "Paused" : "Draining"} ${what}`,
    reload,
  });
}

/** @param {{ of: any }} props `of`: the page of queues */
function PauseAll({ of }) {
  const pools = useData("/pools", {}, { everyMs: SLOW_MS });
  const { value, reload } = pools;
  if (!value) return null;
  if (value.paused) {
    const resume = () =>
      act({
        title: "Resume everything?",
        text: "Queues and pools that were paused by themselves stay paused.",
        action: "Resume everything",
        run: () => post("/resume"),
        done: "Resumed everything",
        reload,
      });
    return html`<${Paused} paused=${value.paused} /> <${Button} onClick=${resume}>Resume everything<//>`;
  }
  const queues = of?.queues ?? [];
  const count = queues.reduce((/** @type {number} */ sum, /** @type {any} */ each) => sum + each.queued, 0);
  const isWhole = of && !of.next_cursor && queues[0] && !location.hash.includes("cursor=");
  const text = `${isWhole ? `${tasksWait(count)} in ${many(queues.length, "queue")}. ` : ""}No task starts until everything is resumed. What runs goes on.`;
  return html`<${Button} onClick=${() => pause("everything", text, "/pause", reload)}>Pause everything…<//>`;
}
