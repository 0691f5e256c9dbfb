// @ts-check
/** Operations on many tasks that run, and those that can still be undone. They go on when the page is closed. */
import { post } from "./api.js";
import { attempt } from "./dialog.js";
import { html, useEffect } from "./preact.js";
import { format } from "./search.js";
import { sentence, useData } from "./state.js";
import { Text } from "./text.js";
import { clock, exact, many, useNow } from "./time.js";

const SOON_MS = 1000;
const LATER_MS = 15_000;
const SHOWN_MS = 60_000; // how long one that can't be undone is shown after its end

/** @type {Record<string, [string, string]>} */
const WORDS = {
  retry: ["Retrying", "Retried"],
  stop: ["Stopping", "Stopped"],
  cancel: ["Canceling", "Canceled"],
  remove: ["Removing", "Removed"],
  move: ["Moving", "Moved"],
  run_now: ["Queueing", "Queued"],
  undo: ["Restoring", "Restored"],
};

/** @type {Record<string, string>} What one needs to end or undo an operation. */
const SCOPES = { retry: "tasks:write", move: "tasks:write", run_now: "tasks:write" };

/** @param {{ may: (scope: string) => boolean, started: number, onChange?: () => void }} props `started` changes when an operation
 *   was started here */
export function Operations({ may, started, onChange }) {
  const seen = useData("/operations", {}, { everyMs: LATER_MS });
  const isRunning = (seen.value?.operations ?? []).some((/** @type {any} */ each) => each.status === "running");
  const now = useNow();
  useEffect(() => void (started && seen.reload()), [started]);
  useEffect(() => {
    if (!isRunning) return undefined;
    const timer = setInterval(seen.reload, SOON_MS);
    return () => {
      clearInterval(timer);
      onChange?.();
    };
  }, [isRunning]);
  const shown = (seen.value?.operations ?? []).filter((/** @type {any} */ each) => isOfNow(each, now));
  if (!shown.length) return null;
  const act = (/** @type {any} */ operation, /** @type {string} */ word) =>
    attempt(async () => {
      await post(`/operations/${operation.id}/${word}`);
      await seen.reload();
      onChange?.();
    });
  return html`<section class="operations" aria-label="Operations on many tasks">
    ${shown.map((/** @type {any} */ operation) => html`<${Operation} key=${operation.id} operation=${operation} now=${now} act=${act} mayAct=${may(SCOPES[operation.action] ?? "tasks:stop")} />`)}
  </section>`;
}

/** @param {any} operation @param {number} now */
function isOfNow(operation, now) {
  if (operation.status === "running") return true;
  return Date.parse(operation.undo_until ?? "") > now || now - Date.parse(operation.ended_at) < SHOWN_MS;
}

/** @param {{ operation: any, now: number, act: (operation: any, word: string) => void, mayAct: boolean }} props */
function Operation({ operation, now, act, mayAct }) {
  const { action, status, changed = 0, matched = 0, progress = 0, filter, undo_until: undoUntil, skipped = {}, error } = operation;
  const [doing, done] = WORDS[action] ?? [action, action];
  const isRunning = status === "running";
  const left = Date.parse(undoUntil ?? "") - now;
  const skippedText = Object.entries(skipped).map(([reason, n]) => `${exact(Number(n))} ${reason.replaceAll("_", " ")}`).join(", ");
  return html`<div class="operation">
    ${
      isRunning
        ? html`<span class="figure">${changed || progress >= 0.5 ? `${doing} ${exact(changed)} of ${exact(matched)}` : `Found ${exact(matched)} to ${action.replace("_", " ")}`}</span>
            <progress value=${progress} max="1" aria-label=${`${doing} tasks`}></progress>`
        : html`<span role="status">${status === "canceled" ? "Ended early: " : status === "failed" ? "Failed: " : ""}${done} ${many(changed, "task")}</span>`
    }
    <span class="muted cut" title=${format(filter ?? {})}>${format(filter ?? {})}</span>
    ${error && html`<span>${sentence(error)}</span>`}
    ${skippedText && html`<span class="muted">skipped: ${skippedText}</span>`}
    ${operation.by && html`<span class="muted">by <${Text} text=${operation.by} /></span>`}
    ${isRunning && mayAct && html`<button class="small" onClick=${() => act(operation, "cancel")}>End it</button>`}
    ${!isRunning && left > 0 && mayAct && html`<button class="small" onClick=${() => act(operation, "undo")}>Undo <span class="figure">${clock(left)}</span></button>`}
  </div>`;
}
