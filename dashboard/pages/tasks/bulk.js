// @ts-check
/** Actions on many tasks: on the selected ones one by one, on all that match by an operation of the server. */
import { Problem, get, post, remove } from "../../parts/api.js";
import { Dialog, confirm, toast } from "../../parts/dialog.js";
import { html, useEffect, useState } from "../../parts/preact.js";
import { format } from "../../parts/search.js";
import { sentence } from "../../parts/state.js";
import { ENDED, Status } from "../../parts/status.js";
import { Text } from "../../parts/text.js";
import { exact, many } from "../../parts/time.js";

const AT_ONCE = 4;
const MOST_UNTYPED = 1000; // removals before the number has to be typed

/**
 * @typedef {{ action: string, title: string, does: (what: string) => string, done: string, scope: string, isDangerous?: boolean,
 *   one?: (at: string) => Promise<any>, text: string, oneText?: string }} Action
 */

/** DELETE would cancel a task that hasn't ended, such as one that was retried meanwhile. @param {string} at */
export async function removeEnded(at) {
  const { status } = await get(at);
  if (!ENDED.has(status)) throw new Problem({ title: "It hasn't ended yet", status: 409 });
  return remove(at);
}

/** @type {Action[]} */
export const ACTIONS = [
  { action: "retry", title: "Retry", does: (what) => `Retry ${what}`, done: "Retried", scope: "tasks:write", text: "They are queued again with the same payload.", one: (at) => post(`${at}/retry`) },
  { action: "run_now", title: "Run now", does: (what) => `Run ${what} now`, done: "Queued", scope: "tasks:write", text: "Scheduled tasks don't wait for their time." },
  { action: "move", title: "Move", does: (what) => `Move ${what}`, done: "Moved", scope: "tasks:write", text: "Tasks that wait for a worker go to the end of another queue." },
  { action: "stop", title: "Stop", does: (what) => `Stop ${what}`, done: "Stopping", scope: "tasks:stop", isDangerous: true, text: "Running tasks get 10 seconds to tidy up; the others are canceled.", one: (at) => post(`${at}/stop`, {}) },
  { action: "cancel", title: "Cancel", does: (what) => `Cancel ${what}`, done: "Canceled", scope: "tasks:stop", isDangerous: true, text: "Tasks that haven't started don't run. You can undo it for 10 minutes." },
  { action: "remove", title: "Remove", does: (what) => `Remove ${what}`, done: "Removed", scope: "tasks:stop", isDangerous: true, text: "The records of ended tasks are removed. You can undo it for 10 minutes.", one: removeEnded, oneText: "Their records, results and logs are deleted, and can't be restored." },
];

/**
 * What can be done with the selected tasks, or with all that match.
 * @param {{ selected: Set<string>, areAll: boolean, total: number | null, may: (scope: string) => boolean,
 *   onSelectAll: () => void, onClear: () => void, onAct: (action: Action) => void }} props
 *   `total`: how many match, if that is known
 */
export function ActionBar({ selected, areAll, total, may, onSelectAll, onClear, onAct }) {
  const shown = ACTIONS.filter(({ scope, one }) => may(scope) && (areAll || one));
  const all = total === null ? "all that match" : `all ${exact(total)} that match`;
  return html`<div class="action-bar" role="region" aria-label="Selected tasks">
    <strong>${areAll ? `${all.charAt(0).toUpperCase()}${all.slice(1)}` : many(selected.size, "selected", "selected")}</strong>
    ${!areAll && html`<button class="small" onClick=${onSelectAll}>Select ${all}</button>`}
    <span class="grow"></span>
    ${shown.map((each) => html`<button key=${each.action} class="small" onClick=${() => onAct(each)}>${each.title}…</button>`)}
    <button class="small plain" onClick=${onClear}>Clear</button>
  </div>`;
}

/** Ask, and do it with each of these tasks. @param {Action} action @param {string[]} ids @returns {Promise<boolean>} whether it was done */
export async function actOnEach(action, ids) {
  const what = many(ids.length, "task");
  const result = await confirm({
    title: `${action.does(what)}?`,
    text: action.oneText ?? action.text,
    action: action.does(what),
    isDangerous: action.isDangerous,
    run: () => forEach(ids, (id) => /** @type {NonNullable<Action["one"]>} */ (action.one)(`/tasks/${encodeURIComponent(id)}`)),
  });
  if (result === undefined) return false;
  const { worked, problems } = result;
  const left = problems.length ? ` ${many(problems.length, "was", "were")} left: ${sentence(problems[0].message)}` : "";
  toast(`${action.done} ${many(worked, "task")}.${left}`, { isProblem: problems.length > 0 });
  return true;
}

/** @param {string[]} ids @param {(id: string) => Promise<any>} run */
async function forEach(ids, run) {
  const rest = ids.slice();
  let worked = 0;
  /** @type {Problem[]} */
  const problems = [];
  const worker = async () => {
    for (let id = rest.shift(); id !== undefined; id = rest.shift()) {
      try {
        await run(id);
        worked++;
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        problems.push(error);
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return { worked, problems };
}

/**
 * An operation on all tasks that match: a preview, then its start.
 * @param {{ action: Action, filter: Record<string, string>, queues: string[], onClose: () => void, onStarted: (operation: any) => void }} props
 */
export function BulkDialog({ action, filter, queues, onClose, onStarted }) {
  const [state, set] = useState(/** @type {{ preview?: any, problem?: string, isBusy: boolean, typed: string, queue: string, includes: boolean }} */ ({ isBusy: true, typed: "", queue: "", includes: false }));
  const { preview, problem, isBusy, typed, queue, includes } = state;
  const body = { action: action.action, filter: { ...filter, ...(filter.attempts && { attempts: Number(filter.attempts) }) }, ...(includes && { include_nonretryable: true }), ...(action.action === "move" && { queue: queue || queues[0] || "default" }) };
  useEffect(() => {
    let isOver = false;
    set((old) => ({ ...old, isBusy: true, problem: undefined }));
    post("/operations", { ...body, preview: true }).then(
      (found) => isOver || set((old) => ({ ...old, preview: found, isBusy: false })),
      (error) => {
        if (!(error instanceof Problem)) throw error;
        if (!isOver) set((old) => ({ ...old, isBusy: false, problem: saidOf(error) }));
      },
    );
    return () => void (isOver = true);
  }, [includes]);
  const start = async (/** @type {Event} */ event) => {
    event.preventDefault();
    set({ ...state, isBusy: true });
    try {
      onStarted(await post("/operations", body));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      set({ ...state, isBusy: false, problem: saidOf(error) });
    }
  };
  const count = preview?.count ?? 0;
  const number = exact(count);
  const what = preview ? `${preview.is_exact === false ? "about " : ""}${count === 1 ? "1 task" : `${number} tasks`}` : "tasks";
  const mustType = action.action === "remove" && count > MOST_UNTYPED;
  const left = Object.entries(preview?.left_out ?? {}).filter(([, n]) => Number(n) > 0);
  const nonretryable = Number(preview?.left_out?.nonretryable ?? 0);
  return html`<${Dialog} title=${`${action.does(what)}?`} onClose=${onClose} isWide>
    <form onSubmit=${start}>
      <p class="mono">${format(filter) || "all tasks"}</p>
      <p>${action.text}</p>
      ${problem && html`<p class="banner critical" role="alert">${problem}</p>`}
      ${!preview && !problem && html`<p class="muted" role="status">Counting …</p>`}
      ${
        preview &&
        html`${left.length > 0 && html`<p class="muted">Left out: ${left.map(([reason, n]) => `${exact(Number(n))} ${LEFT[reason] ?? reason.replaceAll("_", " ")}`).join(", ")}.</p>`}
          ${action.action === "retry" && (nonretryable > 0 || includes) && html`<label class="check"><input type="checkbox" checked=${includes} onChange=${(/** @type {any} */ event) => set({ ...state, includes: event.target.checked })} /> Retry also those that say a retry is no use</label>`}
          ${preview.sample?.length > 0 && html`<h3>${preview.sample.length < count ? `${preview.sample.length} of them` : "These are"}</h3>
            <ul class="plain-list sample">${preview.sample.map((/** @type {any} */ task) => html`<li key=${task.id}><${Status} status=${task.status} /> <${Text} text=${task.type} /> <span class="mono">…${task.id.slice(-8)}</span> ${task.error && html`<span class="muted cut"><${Text} text=${task.error.slice(0, 200)} /></span>`}</li>`)}</ul>`}
          ${action.action === "move" && html`<label class="field">To the queue
            <input list="bulk-queues" required value=${queue} onInput=${(/** @type {any} */ event) => set({ ...state, queue: event.target.value })} />
            <datalist id="bulk-queues">${queues.map((each) => html`<option value=${each}></option>`)}</datalist>
          </label>`}
          ${mustType && html`<label class="field">Type ${number} to confirm
            <input autocomplete="off" value=${typed} onInput=${(/** @type {any} */ event) => set({ ...state, typed: event.target.value })} />
          </label>`}`
      }
      <div class="buttons">
        <button type="button" onClick=${onClose}>${action.action === "cancel" ? "Don't cancel" : "Cancel"}</button>
        <button class=${action.isDangerous ? "danger" : "primary"} disabled=${isBusy || !count || (mustType && typed.replaceAll(/\D/g, "") !== String(count))}>${action.does(what)}</button>
      </div>
    </form>
  <//>`;
}

/** @type {Record<string, string>} */
const LEFT = { nonretryable: "NonRetryable", non_retryable: "NonRetryable" };

/** @param {Problem} error */
function saidOf(error) {
  if (error.status === 404) return "This API process has no operations on many tasks. It may be of an older release.";
  return sentence(error.message);
}
