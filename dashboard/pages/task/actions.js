// @ts-check
/** What can be done with one task: stop, retry, remove, copy as a program, edit and submit again. */
import { API, Problem, post } from "../../parts/api.js";
import { Dialog, confirm, toast } from "../../parts/dialog.js";
import { writeJson, parseExact } from "../../parts/exact.js";
import { useKeys } from "../../parts/keys.js";
import { html, useState } from "../../parts/preact.js";
import { go, href, path } from "../../parts/router.js";
import { sentence } from "../../parts/state.js";
import { ENDED } from "../../parts/status.js";
import { copied } from "../../parts/text.js";
import { removeEnded } from "../tasks/bulk.js";
import { asCurl, asPython, asPytest, submissionOf } from "./copy.js";

const RUNNING = new Set(["in_progress", "stopping"]);

/**
 * @param {{ record: any, may: ReturnType<import("../../parts/session.js").useMay>, onChange: (record?: any) => void }} props `record` with numbers
 *   as they were written
 */
export function Actions({ record, may, onChange }) {
  const { id, status } = record;
  const at = `/tasks/${encodeURIComponent(id)}`;
  const [isEditing, setEditing] = useState(false);
  const hasEnded = ENDED.has(status);
  const mayStop = may("tasks:stop", record);
  const mayStart = may("tasks:write", record);
  const mayRetry = mayStart && hasEnded && status !== "done";
  const short = id.slice(-8);

  const stop = (/** @type {boolean} */ force) =>
    confirm({
      title: force ? `Kill task …${short} now?` : `Stop task …${short}?`,
      text: force
        ? "Its process is killed at once. Nothing of it can tidy up."
        : RUNNING.has(status)
          ? "It gets a signal, and 10 seconds to tidy up. Then its process is killed."
          : "It hasn't started, so it is canceled. Tasks that depend on it are canceled, too.",
      action: force ? "Kill it" : RUNNING.has(status) ? "Stop it" : "Cancel it",
      isDangerous: true,
      run: async () => onChange(await post(`${at}/stop`, force ? { force: true } : {})),
    });
  const retry = () =>
    confirm({
      title: `Retry task …${short}?`,
      text: "It is queued again with the same payload and all its attempts.",
      action: "Retry it",
      run: async () => onChange(await post(`${at}/retry`)),
    });
  const removeIt = async () => {
    const isRemoved = await confirm({
      title: `Remove task …${short}?`,
      text: "Its record, its result and its log are deleted. They can't be restored.",
      action: "Remove it",
      isDangerous: true,
      run: () => removeEnded(at),
    });
    if (isRemoved === undefined) return;
    toast("The task was removed.");
    go(href("tasks"));
  };
  const copy = async (/** @type {string} */ text, /** @type {string} */ as) => {
    const isCopied = await copied(text);
    toast(isCopied ? `Copied ${as}.` : "The browser didn't allow to copy.", { isProblem: !isCopied });
  };
  const copies = () => [
    { as: "the id", title: "Id", text: () => id },
    { as: "as curl", title: "curl", text: () => asCurl(record, API) },
    { as: "as Python", title: "Python", text: () => asPython(record, API) },
    { as: "as pytest", title: "pytest", text: () => asPytest(record) },
    { as: "the record", title: "JSON", text: () => writeJson(record, 2) },
    { as: "the link", title: "Link", text: () => location.href },
  ];
  useKeys([
    { keys: "c", help: "copy the id", run: () => copy(id, "the id") },
    ...(mayStop && !hasEnded ? [{ keys: "s", help: "stop the task", run: () => stop(false) }] : []),
    ...(mayRetry ? [{ keys: "r", help: "retry the task", run: retry }] : []),
  ]);
  const leave = (/** @type {any} */ event) => event.currentTarget.contains(event.relatedTarget) || (event.currentTarget.open = false);
  const escape = (/** @type {any} */ event) => event.key === "Escape" && (event.currentTarget.open = false);
  return html`<div class="actions">
    ${mayStop && !hasEnded && status !== "stopping" && html`<button onClick=${() => stop(false)}>${RUNNING.has(status) ? "Stop…" : "Cancel…"}</button>`}
    ${mayStop && RUNNING.has(status) && html`<button class=${status === "stopping" ? "danger" : ""} onClick=${() => stop(true)}>Kill…</button>`}
    ${mayRetry && html`<button class="primary" onClick=${retry}>Retry…</button>`}
    ${mayStart && html`<button onClick=${() => setEditing(true)}>Edit and resubmit…</button>`}
    ${mayStop && hasEnded && html`<button onClick=${removeIt}>Remove…</button>`}
    <details class="menu" onFocusOut=${leave} onKeyDown=${escape}>
      <summary class="button">Copy as</summary>
      <div class="menu-items">
        ${copies().map(
          ({ as, title, text }) =>
            html`<button type="button" class="plain" key=${as} onClick=${(/** @type {any} */ event) => {
              event.currentTarget.closest("details").open = false;
              return copy(text(), as);
            }}>${title}</button>`,
        )}
      </div>
    </details>
    ${isEditing && html`<${Resubmit} record=${record} onClose=${() => setEditing(false)} />`}
  </div>`;
}

/** Edit the task's submission and submit it as a new task. @param {{ record: any, onClose: () => void }} props */
function Resubmit({ record, onClose }) {
  const [text, setText] = useState(() => writeJson(submissionOf(record), 2));
  const [problem, setProblem] = useState(/** @type {{ message: string, errors: any[] } | null} */ (null));
  const [isBusy, setBusy] = useState(false);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const { id } = await post("/tasks", parseExact(text));
      onClose();
      toast("Submitted a new task.");
      go(href(path("tasks", id)));
    } catch (error) {
      if (!(error instanceof Problem) && !(error instanceof SyntaxError)) throw error;
      setProblem({ message: error.message, errors: error instanceof Problem ? error.errors : [] });
      setBusy(false);
    }
  };
  const isMasked = text.includes('"***"');
  return html`<${Dialog} title="Edit and resubmit" onClose=${onClose} isWide>
    <form onSubmit=${submit}>
      <p class="muted">A new task with this type, payload and these options. The old one stays as it is.</p>
      ${isMasked && html`<p class="banner warning">Secrets were not kept: put the real values in the place of ***.</p>`}
      <label class="field">Submission
        <textarea class="mono" rows=${Math.min(20, text.split("\n").length + 1)} spellcheck=${false} value=${text} aria-invalid=${problem ? "true" : undefined}
          aria-describedby="resubmit-problem" onInput=${(/** @type {any} */ event) => setText(event.target.value)}></textarea>
      </label>
      <div id="resubmit-problem">
        ${problem && html`<div class="banner critical" role="alert"><div>
          <p>${sentence(problem.message)}</p>
          ${problem.errors.length > 1 && html`<ul>${problem.errors.map((each) => html`<li><code>${each.pointer}</code> ${each.detail}</li>`)}</ul>`}
        </div></div>`}
      </div>
      <div class="buttons">
        <button type="button" onClick=${onClose}>Cancel</button>
        <button class="primary" disabled=${isBusy}>Submit</button>
      </div>
    </form>
  <//>`;
}
