// @ts-check
/** One task type: who serves it, how long it takes, what runs now, and a form to submit one. */
import { post } from "../parts/api.js";
import { parseExact } from "../parts/exact.js";
import { JsonBeside, SchemaForm, started } from "../parts/form.js";
import { Facts, Head, useRights } from "../parts/operate.js";
import { html, useContext, useState } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { SessionContext } from "../parts/session.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Status } from "../parts/status.js";
import { useSubmit } from "../parts/submit.js";
import { Table } from "../parts/table.js";
import { marked } from "../parts/text.js";
import { Ago, Running, duration, figure } from "../parts/time.js";
import { servedBy } from "./types.js";

const EVERY_MS = 3000;
const SENT = 5; // tasks whose state is shown after their submission
/** Options that the page of a type has already, or that make no sense for one task by hand. */
const HIDDEN = ["type", "payload", "traceparent", "tracestate", "delay_s"];

/** @param {{ params: { name: string }, query: Record<string, string> }} props */
export default function Type({ params: { name }, query }) {
  const rights = useRights();
  const types = useData("/types", {}, { everyMs: 5 * EVERY_MS });
  return html`<${Loaded} of=${types}>
    ${(/** @type {any} */ page) => {
      const type = page.types.find((/** @type {any} */ each) => each.name === name);
      if (!type) return html`<${Head} title=${name} above=${[["Types", "#/types"]]} /><${Empty} title="No worker pool has announced this type"><a href="#/types">All types</a><//>`;
      return html`<${Head} title=${name} above=${[["Types", "#/types"]]} />
        ${type.description && html`<p>${marked(type.description)}</p>`}
        <${Durations} type=${type} />
        <p>
          <a href=${href("tasks", { type: name })}>All its tasks</a> · <a href=${href("tasks", { type: name, status: "failed" })}>failed</a>
          ${rights.readAll && html` · <a href=${href("failures", { type: name })}>failures by cause</a>`}
        </p>
        <${RunningNow} name=${name} />
        ${rights.may("tasks:write", { type: name }) && html`<${Submit} key=${name} type=${type} draft=${query.payload} />`}`;
    }}
  <//>`;
}

/** @param {{ type: any }} props */
function Durations({ type }) {
  const { value } = useData(useRights().readAll ? `/${path("types", type.name)}/durations` : null);
  return html`<${Facts}
    of=${[
      ["Queue", html`<a href=${href(path("queues", type.queue))}>${type.queue}</a>`],
      ["Served by", servedBy(type)],
      ["Attempts", figure(type.max_attempts)],
      ["Timeout", type.timeout_s && duration(1000 * type.timeout_s)],
      ["Last 7 days", value && `${figure(value.count)} ended`],
      ["p50", value?.count ? duration(value.p50_ms) : ""],
      ["p95", value?.count ? duration(value.p95_ms) : ""],
      ["p99", value?.count ? duration(value.p99_ms) : ""],
    ]}
  />`;
}

/** @param {{ name: string }} props */
function RunningNow({ name }) {
  const { value } = useData("/tasks", { type: name, status: "in_progress", limit: 50 }, { everyMs: EVERY_MS });
  if (!value?.tasks.length) return null;
  const rows = [...value.tasks].sort((a, b) => (a.started_at < b.started_at ? -1 : 1)).slice(0, 10);
  return html`<h2>Running now, the longest first</h2>
    <${Table}
      label="Running now" rows=${rows} id=${(/** @type {any} */ row) => row.id} isLive href=${(/** @type {any} */ row) => href(path("tasks", row.id))}
      columns=${[
        { title: "Id", kind: "wide", phone: "first", show: (/** @type {any} */ row) => `…${row.id.slice(-8)}` },
        { title: "Since", kind: "right", width: 90, show: (/** @type {any} */ row) => html`<${Running} since=${row.started_at} />` },
        { title: "Worker", width: 260, phone: "hidden", show: (/** @type {any} */ row) => row.worker ?? "" },
      ]}
    />`;
}

/** The form: the payload by the type's schema, the options by that of a submission. @param {{ type: any, draft?: string }} props */
function Submit({ type, draft }) {
  const { queues } = useContext(SessionContext);
  const begin = () => (queues && !queues.includes(type.queue) ? { queue: queues[0] } : {}); // a key may be bound to other queues
  const [payload, setPayload] = useState(() => read(draft) ?? started(type.schema) ?? {});
  const [options, setOptions] = useState(/** @type {any} */ (begin));
  const [sent, setSent] = useState(/** @type {string[]} */ ([]));
  const [wantsOptions, setWantsOptions] = useState(false);
  const [round, setRound] = useState(0);
  const { state, submit, clear: forget } = useSubmit(
    () => post("/tasks", { ...options, type: type.name, payload }),
    (receipt) => setSent([receipt.id, ...sent].slice(0, SENT)),
  );
  const isOpen = wantsOptions || (state.faults ?? []).some(({ pointer }) => pointer && !pointer.startsWith("/payload"));

  const clear = () => {
    setPayload(started(type.schema) ?? {});
    setOptions(begin());
    setRound(round + 1);
    forget();
  };
  return html`<h2 id="submit">Submit one</h2>
    <form class="submit" key=${round} onSubmit=${submit} aria-labelledby="submit" novalidate>
      <div class="columns">
        <div><${SchemaForm} schema=${type.schema} value=${payload} onChange=${setPayload} faults=${state.faults} pointer="/payload" /></div>
        <div><${JsonBeside} schema=${type.schema} value=${payload} onChange=${setPayload} label="The payload as JSON" /></div>
      </div>
      <details open=${isOpen} onToggle=${(/** @type {any} */ event) => setWantsOptions(event.target.open)}>
        <summary>Options: queue, delay, tags, attempts …</summary>
        ${isOpen && html`<${Options} value=${options} onChange=${setOptions} faults=${state.faults} />`}
      </details>
      ${state.problem && html`<p class="banner critical" role="alert">${state.problem}</p>`}
      <div class="buttons">
        <button class="primary" disabled=${state.isBusy}>Submit 1 ${type.name}</button>
        <button type="button" onClick=${clear}>Clear</button>
      </div>
    </form>
    ${sent.length > 0 && html`<h3>Submitted here</h3><ul class="sent">${sent.map((/** @type {string} */ id) => html`<li key=${id}><${Sent} id=${id} /></li>`)}</ul>`}`;
}

/** @param {string | undefined} draft of the address */
function read(draft) {
  try {
    return draft ? parseExact(draft) : undefined;
  } catch {
    return undefined;
  }
}

/** @param {{ value: any, onChange: (value: any) => void, faults: any[] | null }} props */
function Options({ value, onChange, faults }) {
  const document = useData("/openapi.json");
  return html`<${Loaded} of=${document}>
    ${(/** @type {any} */ { components }) => html`<${SchemaForm}
      schema=${{ ...components.schemas.TaskSpec, $defs: components.schemas }} value=${value} onChange=${onChange} faults=${faults} hide=${HIDDEN}
    />`}
  <//>`;
}

/** A task that was submitted here, as it is now. @param {{ id: string }} props */
function Sent({ id }) {
  const [everyMs, setEvery] = useState(1000);
  const { value, problem } = useData(`/${path("tasks", id)}`, {}, { everyMs });
  if (value?.ended_at && everyMs) setEvery(0);
  return html`<a href=${href(path("tasks", id))}><code>${id}</code></a>
    ${value ? html` <${Status} status=${value.status} /> ${value.ended_at ? html`<${Ago} at=${value.ended_at} />` : ""}` : problem ? html` <span class="muted">${problem.message}</span>` : ""}`;
}
