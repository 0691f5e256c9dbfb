// @ts-check
/** The tasks that a filter keeps, page by page; and how one stands in a row. */
import { get } from "../../parts/api.js";
import { ExactNumber, writeJson } from "../../parts/exact.js";
import { html, useCallback, useEffect, useRef, useState } from "../../parts/preact.js";
import { href, path } from "../../parts/router.js";
import { useData } from "../../parts/state.js";
import { ENDED, Status } from "../../parts/status.js";
import { Text } from "../../parts/text.js";
import { Ago, Running, duration, percent } from "../../parts/time.js";

export const PAGE = 50;
const SOON_MS = 3000;
const LATER_MS = 15_000; // what needs a scan isn't asked for so often
const INDEXED = new Set(["status", "type", "queue", "tag", "project", "workflow", "node", "parent"]);

/** @typedef {{ key: string, rows: Map<string, any>, looked: number, page?: any }} Known what is known of a filter's tasks */

/**
 * The tasks of a filter. `looked`: how many were looked at so far; `hasMore`: a further page may have more.
 * @param {Record<string, string>} filter
 */
export function useTasks(filter) {
  const key = JSON.stringify(filter);
  const isIndexed = Object.keys(filter).every((name) => INDEXED.has(name));
  const first = useData("/tasks", { ...filter, limit: PAGE }, { everyMs: isIndexed ? SOON_MS : LATER_MS });
  const known = useRef(/** @type {Known} */ ({ key: "", rows: new Map(), looked: 0 }));
  const [further, setFurther] = useState({ key, cursor: /** @type {string | null | undefined} */ (undefined), isLoading: false, problem: /** @type {any} */ (null), count: 0 });

  if (known.current.key !== key && first.value) known.current = { key, rows: new Map(), looked: first.value.looked_at ?? 0 };
  const isOurs = known.current.key === key;
  const rows = first.value && isOurs ? merged(known.current, first.value) : [];
  useEffect(() => {
    if (first.value && isOurs) Object.assign(known.current, { rows: new Map(rows.map((row) => [row.id, row])), page: first.value });
  });
  const cursor = further.key === key && further.cursor !== undefined ? further.cursor : first.value?.next_cursor;

  const loadMore = useCallback(async () => {
    setFurther((old) => ({ ...old, key, isLoading: true, problem: null }));
    try {
      const page = await get("/tasks", { ...filter, limit: PAGE, cursor });
      if (known.current.key !== key) return;
      for (const task of page.tasks) known.current.rows.set(task.id, task);
      known.current.looked += page.looked_at ?? 0;
      setFurther((old) => ({ key, cursor: page.next_cursor ?? null, isLoading: false, problem: null, count: old.count + 1 }));
    } catch (problem) {
      setFurther((old) => ({ ...old, isLoading: false, problem }));
    }
  }, [key, cursor]);

  const hasMore = Boolean(cursor);
  const { looked } = known.current;
  return { first, rows, hasMore, loadMore, isLoadingMore: further.isLoading, problem: further.problem, looked, of: key };
}

/**
 * The rows to show: the newest page, then all others that are known. New rows push as many off that page; what is missing
 * on it beyond that doesn't match any more, and is left out.
 * @param {Known} known @param {any} page
 * @returns {any[]}
 */
function merged({ rows, page: before }, page) {
  if (before === page) return [...rows.values()];
  const newest = new Map(page.tasks.map((/** @type {any} */ task) => [task.id, task]));
  const ids = (before?.tasks ?? []).map((/** @type {any} */ task) => task.id);
  const isNew = (/** @type {any} */ task) => !ids.includes(task.id);
  const pushed = page.next_cursor ? ids.slice(Math.max(0, ids.length - page.tasks.filter(isNew).length)) : [];
  const left = ids.filter((/** @type {string} */ id) => !newest.has(id) && !pushed.includes(id));
  return [...newest.values(), ...[...rows.values()].filter(({ id }) => !newest.has(id) && !left.includes(id))];
}

/** @type {import("../../parts/table.js").Column<any>[]} */
export const COLUMNS = [
  { title: "Status", width: 176, phone: "first", show: (task) => html`<${Status} status=${task.status} />` },
  { title: "Type", width: 136, phone: "first", show: (task) => html`<${Text} text=${task.type} />` },
  { title: "What", kind: "wide", show: (task) => html`<${What} task=${task} />` },
  { title: "Id", kind: "id", width: 96, phone: "hidden", show: (task) => html`<span title=${task.id}>…${task.id.slice(-8)}</span>` },
  { title: "Queue", width: 96, phone: "hidden", show: (task) => task.queue },
  { title: "Attempt", kind: "right", width: 68, phone: "hidden", show: (task) => (!task.attempt ? "–" : task.attempt > task.max_attempts ? task.attempt : `${task.attempt}/${task.max_attempts}`) },
  { title: "Took", kind: "right", width: 76, phone: "hidden", show: (task) => html`<${Took} task=${task} />` },
  { title: "When", kind: "right", width: 96, show: (task) => html`<${Ago} at=${task.ended_at ?? task.started_at ?? task.created_at} />` },
];

/** @param {any} task */
export const hrefOf = (task) => href(path("tasks", task.id));

/** The last attempt's time; of a running one, until now. @param {{ task: any }} props */
function Took({ task }) {
  if (!task.started_at) return html`<span class="muted">–</span>`;
  if (!ENDED.has(task.status)) return task.status === "in_progress" || task.status === "stopping" ? html`<${Running} since=${task.started_at} />` : html`<span class="muted">–</span>`;
  const ms = Date.parse(task.ended_at) - Date.parse(task.started_at);
  return ms >= 0 ? duration(ms) : html`<span class="muted">–</span>`;
}

const LONGEST = 300;

/** What is to say about a task in one line: its error, question or progress, else its payload. @param {{ task: any }} props */
function What({ task }) {
  const { error, progress, question, confirm, status, reason } = task;
  if (error) return html`<${Text} text=${error.slice(0, LONGEST)} />`;
  if (status === "waiting_confirmation") return html`<${Text} text=${(question?.text ?? confirm?.text ?? "").slice(0, LONGEST)} />`;
  if (status === "in_progress" && progress) {
    const share = Number(progress.total) ? `${percent(Number(progress.done), Number(progress.total))} ` : "";
    return html`${share}<${Text} text=${String(progress.note ?? "").slice(0, LONGEST)} />`;
  }
  if (reason) return html`<${Text} text=${reason.replaceAll("_", " ").slice(0, LONGEST)} />`;
  return html`<span class="muted"><${Text} text=${payloadText(task.payload)} /></span>`;
}

/** @param {any} payload */
function payloadText(payload) {
  if (!isTree(payload)) return String(writeJson(payload)).slice(0, LONGEST);
  const parts = [];
  for (const [key, value] of Object.entries(payload)) {
    const text = isTree(value) ? (Array.isArray(value) ? `[${value.length}]` : "{…}") : String(value);
    parts.push(`${key}=${text.slice(0, 80)}`);
    if (parts.length > 8) break;
  }
  return parts.join(" ").slice(0, LONGEST) || "no payload";
}

/** @param {any} value */
const isTree = (value) => value !== null && typeof value === "object" && !(value instanceof ExactNumber);
