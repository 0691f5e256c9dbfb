// @ts-check
/** Why a task doesn't run yet; what a running one does at this moment. */
import { Problem, post } from "../../parts/api.js";
import { html, useState } from "../../parts/preact.js";
import { href, path } from "../../parts/router.js";
import { Loaded, sentence, useData } from "../../parts/state.js";
import { Status } from "../../parts/status.js";
import { CopyButton, Text } from "../../parts/text.js";
import { Ago, many, useNow } from "../../parts/time.js";
import { FrameView, Traceback } from "../../parts/frames.js";

const EVERY_MS = 5000;

/** @param {{ record: any }} props */
export function Why({ record }) {
  const why = useData(`/tasks/${encodeURIComponent(record.id)}/why`, {}, { everyMs: EVERY_MS });
  return html`<section class="card why" aria-labelledby="why-title">
    <h2 id="why-title">Why it isn't running</h2>
    <${Loaded} of=${why} missing=${html`<p class="muted">This API process can't say: it doesn't have this operation.</p>`}>
      ${(/** @type {any} */ { reasons, can_run }) =>
        reasons.length
          ? html`<ul class="reasons">${reasons.map((/** @type {any} */ reason, /** @type {number} */ at) => html`<${Reason} key=${at} reason=${reason} />`)}</ul>`
          : html`<p>${can_run ? "Nothing holds it back: a worker takes it any moment." : "No reason is known."}</p>`}
    <//>
  </section>`;
}

/** @param {{ reason: any }} props @returns {any} */
function Reason({ reason }) {
  const tasks = reason.tasks ?? [];
  return html`<li>
    <${Text} text=${sentence(reason.text)} />
    ${reason.at && html` <span class="muted"><${Ago} at=${reason.at} /></span>`}
    ${reason.with?.length > 0 && html`<span class="muted"> They run ${reason.with.map((/** @type {any} */ each) => `${each.n} × ${each.type}`).join(", ")}.</span>`}
    ${
      tasks.length > 0 &&
      html`<ul>${tasks.slice(0, 20).map(
        (/** @type {any} */ task) => html`<li key=${task.id}>
          <a href=${href(path("tasks", task.id))}>…${task.id.slice(-8)}</a> <${Status} status=${task.status} />
          ${(Array.isArray(task.why) ? task.why : task.why ? [task.why] : []).map((/** @type {any} */ each) => html`<ul><${Reason} reason=${typeof each === "string" ? { text: each } : each} /></ul>`)}
        </li>`,
      )}${tasks.length > 20 && html`<li class="muted">${many(tasks.length - 20, "more", "more")}</li>`}</ul>`
    }
  </li>`;
}

/** The live stack of a running task, taken on demand. @param {{ record: any }} props */
export function LiveStack({ record }) {
  const [state, set] = useState(/** @type {{ stack?: any, problem?: string, isBusy?: boolean }} */ ({}));
  const now = useNow(Boolean(state.stack));
  const take = async () => {
    set({ ...state, isBusy: true });
    try {
      set({ stack: await post(`/tasks/${encodeURIComponent(record.id)}/stack`) });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      set({ ...state, isBusy: false, problem: error.kind === "not-found" ? "This API process can't take one" : error.message });
    }
  };
  const { stack, problem, isBusy } = state;
  const frames = stack?.frames ?? [];
  const user = frames.findLast((/** @type {any} */ frame) => frame.is_user) ?? frames.at(-1);
  const view = (/** @type {any} */ frame) => ({ ...frame, name: frame.function, code: frame.code ?? "", isUser: frame.is_user, kind: "frame" });
  return html`<section class="card" aria-labelledby="stack-title">
    <header class="card-head">
      <h2 id="stack-title">What it does now</h2>
      ${stack && html`<span class="muted">${Math.max(0, Math.round((now - Date.parse(stack.taken_at)) / 1000))} s ago</span>`}
      <span class="grow"></span>
      ${stack && html`<${CopyButton} text=${stack.text} label="Copy the stack" />`}
      <button class="small" onClick=${take} disabled=${isBusy}>${stack ? "Again" : "Show its stack"}</button>
    </header>
    ${problem && html`<p class="banner warning" role="alert">${sentence(problem)}</p>`}
    ${user && html`<${FrameView} frame=${view(user)} isFirst />`}
    ${frames.length > 0 && html`<${Traceback} parts=${frames.map(view)} title="Its stack, the innermost frame last" />`}
    ${stack && html`<details class="dossier"><summary>All threads of its process</summary><pre><${Text} text=${stack.text} /></pre></details>`}
  </section>`;
}
