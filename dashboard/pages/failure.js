// @ts-check
/** One cause of failures: its traceback, what it hits, and a careful retry of what failed because of it. */
import { post } from "../parts/api.js";
import { Failure as Traceback } from "../parts/frames.js";
import { Bar, Button, Facts, Head, act, useRights } from "../parts/operate.js";
import { html } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Ago, Count, figure, many, percent } from "../parts/time.js";
import { Spark, detailOf } from "./failures.js";

const EVERY_MS = 2000;

/** @param {{ params: { fingerprint: string } }} props */
export default function Failure({ params: { fingerprint } }) {
  const rights = useRights();
  const group = useData(`/${path("failures", fingerprint)}`, {}, { everyMs: EVERY_MS });
  const missing = html`<${Head} title="Failure" above=${[["Failures", "#/failures"]]} /><${Empty} title="There is no such group">It was last seen too long ago. <a href="#/failures">All failures</a><//>`;
  return html`<${Loaded} of=${group} missing=${missing}>
    ${(/** @type {any} */ it) => html`<${Head} title=${it.error_type} above=${[["Failures", "#/failures"]]}>
        ${rights.startAll && it.redrive?.status !== "running" && it.tasks > 0 && html`<${Redrive} of=${it} reload=${group.reload} />`}
      <//>
      <p class="message">${detailOf(it)}</p>
      <${RedriveState} of=${it} mayStop=${rights.startAll} reload=${group.reload} />
      <${Facts}
        of=${[
          ["Failed attempts", html`<${Count} value=${it.count} />`],
          ["Tasks that stayed failed", html`<a href=${href("tasks", { fingerprint, status: "failed" })}><${Count} value=${it.tasks} /></a>`],
          ["First seen", html`<${Ago} at=${it.first_seen} />`],
          ["Last seen", html`<${Ago} at=${it.last_seen} />`],
          ["Where", it.place && html`<code>${it.place}</code>`],
          ["24 h", html`<${Spark} values=${it.spark} />`],
          ["Retryable", it.retryable ? "yes" : "no: it is NonRetryable"],
          ["Last task", it.sample && html`<a href=${href(path("tasks", it.sample))}>…${it.sample.slice(-8)}</a>`],
        ]}
      />
      <div class="splits">
        <${Split} title="By build" counts=${it.builds} nameless="unknown" />
        <${Split} title="By type" counts=${it.types} link=${(/** @type {string} */ name) => href(path("types", name))} />
        <${Split} title="By queue" counts=${it.queues} link=${(/** @type {string} */ name) => href(path("queues", name))} />
        <${Split} title="By worker" counts=${it.workers} />
      </div>
      ${it.traceback && html`<h2>Traceback of the last one</h2><div class="card"><${Traceback} text=${it.traceback} /></div>`}`}
  <//>`;
}

/** @param {{ title: string, counts: Record<string, number>, link?: (name: string) => string, nameless?: string }} props */
function Split({ title, counts, link, nameless = "others" }) {
  const entries = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  const all = entries.reduce((sum, [, count]) => sum + count, 0);
  if (!entries.length) return null;
  return html`<section class="card">
    <h2>${title}</h2>
    <ul class="split">
      ${entries.slice(0, 8).map(
        ([name, count]) => html`<li key=${name}>
          <span class="cut" title=${name}>${name === "" ? nameless : link ? html`<a href=${link(name)}>${name}</a>` : name}</span>
          <${Bar} shares=${[["failed", count / all]]} />
          <span class="figure" title=${`${count} of ${all}`}>${figure(count)} · ${percent(count, all)}</span>
        </li>`,
      )}
    </ul>
    ${entries.length > 8 && html`<p class="muted">and ${entries.length - 8} more</p>`}
  </section>`;
}

/** @param {{ of: any, reload: () => any }} props */
function Redrive({ of, reload }) {
  const start = () => {
    let all = false;
    return act({
      title: `Retry ${many(of.tasks, "task")} step by step?`,
      text: html`<p>It retries 1, then 10, then all. The next step begins when all of the last one are done; when they fail again, it stops by itself.</p>
        <label><input type="checkbox" onChange=${(/** @type {any} */ event) => void (all = event.target.checked)} /> Also those that are NonRetryable</label>`,
      action: "Retry 1, then 10, then all",
      run: () => post(`/${path("failures", of.fingerprint)}/redrive`, { steps: [1, 10, "all"], include_nonretryable: all }),
      done: "Retrying 1 task first",
      reload,
    });
  };
  return html`<${Button} onClick=${start}>Retry 1, then 10, then all…<//>`;
}

/** @param {{ of: any, mayStop: boolean, reload: () => any }} props */
function RedriveState({ of, mayStop, reload }) {
  const it = of.redrive;
  if (!it) return null;
  const left = it.left_out ? `, ${figure(it.left_out)} left out` : "";
  const counts = `${many(it.retried, "task")} retried: ${figure(it.succeeded)} done, ${figure(it.failed_again)} failed again${left}`;
  const stop = () => act({ title: "Stop the retry?", text: `${counts}. It retries no more; those that were retried run on.`, action: "Stop the retry", run: () => post(`/${path("failures", of.fingerprint)}/redrive/stop`), done: "Stopped the retry", reload });
  const words = { running: `Step ${it.step} of ${it.steps.length} runs`, done: "Retried all", stopped: "The retry has stopped" }[/** @type {"running"} */ (it.status)] ?? it.status;
  return html`<div class=${`banner ${it.status === "stopped" ? "warning" : ""}`} role="status">
    <span class="grow"><b>${words}</b>: ${counts}.${it.why && ` ${it.why}.`} <span class="muted">By ${it.by ?? "a caller without a key"}, <${Ago} at=${it.created_at} /></span></span>
    ${it.status === "running" && mayStop && html`<${Button} isSmall onClick=${stop}>Stop<//>`}
  </div>`;
}
