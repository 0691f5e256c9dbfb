// @ts-check
/** One endpoint: its deliveries, what it answered, what is sent again. */
import { get, patch, post, remove } from "../parts/api.js";
import { Dialog } from "../parts/dialog.js";
import { Json } from "../parts/json.js";
import { Button, Command, Facts, Head, NextPage, act, listed } from "../parts/operate.js";
import { html, useState } from "../parts/preact.js";
import { go, href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Ago, duration, figure } from "../parts/time.js";
import { Answer, Success, stateOf } from "./webhooks.js";

const EVERY_MS = 2000;
const STATUSES = ["pending", "delivered", "dead"];

/** @param {{ params: { id: string }, query: Record<string, string> }} props */
export default function Webhook({ params: { id }, query }) {
  const at = path("webhooks", id);
  const webhook = useData(`/${at}`, {}, { everyMs: 5 * EVERY_MS });
  const deliveries = useData(`/${at}/deliveries`, { status: query.status, cursor: query.cursor, limit: 50 }, { everyMs: EVERY_MS });
  const missing = html`<${Head} title="Endpoint" above=${[["Webhooks", "#/webhooks"]]} /><${Empty} title="There is no such endpoint"><a href="#/webhooks">All endpoints</a><//>`;
  return html`<${Loaded} of=${webhook} missing=${missing}>
    ${(/** @type {any} */ it) => {
      const state = stateOf(deliveries.value?.deliveries ?? []);
      return html`<${Head} title=${it.description || it.url} above=${[["Webhooks", "#/webhooks"]]}><${Actions} of=${it} reload=${() => Promise.all([webhook.reload(), deliveries.reload()])} /><//>
        ${!it.enabled && html`<p class="banner critical">It is off${it.disabled_reason ? `: ${it.disabled_reason}` : ""}. Nothing is sent until it is switched on.</p>`}
        <${Facts}
          of=${[
            ["URL", html`<code>${it.url}</code>`],
            ["Sends", listed(it.events, 6)],
            ["Types", it.types && listed(it.types)],
            ["Queues", it.queues && listed(it.queues)],
            ["Tags", it.tags && listed(it.tags)],
            ["Statuses", it.statuses && listed(it.statuses)],
            ["Project", it.project],
            ["Last 50", html`<${Success} of=${state} />`],
            ["Last answer", html`<${Answer} of=${it.last_failure ?? state.last} />`],
            ["Next try", state.next && html`<${Ago} at=${state.next} />`],
            ["Changed", html`<${Ago} at=${it.updated_at} />`],
          ]}
        />
        <div class="filters" role="group" aria-label="Status">
          ${["", ...STATUSES].map((status) => html`<a class="button" aria-current=${(query.status ?? "") === status ? "true" : undefined} href=${href(at, { status })}>${{ "": "All", pending: "To send", delivered: "Delivered", dead: "Given up" }[status]}</a>`)}
        </div>
        <${Loaded} of=${deliveries}>
          ${(/** @type {any} */ page) => html`<${Table}
              label="Deliveries" rows=${page.deliveries} id=${(/** @type {any} */ row) => row.id} of=${`${query.status} ${query.cursor}`} columns=${deliveryColumns(deliveries.reload)}
              empty=${html`<${Empty} title="No delivery">A test message shows whether the endpoint answers.<//>`}
            />
            <${NextPage} path=${at} query=${query} cursor=${page.next_cursor} />`}
        <//>`;
    }}
  <//>`;
}

/** @param {{ of: any, reload: () => any }} props */
function Actions({ of, reload }) {
  const at = `/${path("webhooks", of.id)}`;
  const [secret, setSecret] = useState(/** @type {any} */ (null));
  const test = () => act({ title: "Send a test message?", text: html`It sends 1 message to <code>${of.url}</code>.`, action: "Send 1 message", run: () => post(`${at}/test`), done: "Sent a test message", reload });
  const turn = () => act({ title: of.enabled ? "Switch the endpoint off?" : "Switch the endpoint on?", text: of.enabled ? "Nothing is sent to it until it is switched on." : "Events are sent to it from now on.", action: of.enabled ? "Switch off" : "Switch on", run: () => patch(at, { enabled: !of.enabled }), done: of.enabled ? "Switched off" : "Switched on", reload });
  const rotate = () => act({ title: "Make a new secret?", text: "For a day, messages are signed with both secrets, so that the receiver can change.", action: "Make 1 new secret", run: () => post(`${at}/secret`, {}), done: "", reload }).then((answer) => answer && setSecret(answer));
  const show = () => act({ title: "Show the secret?", text: "The audit notes that you have read it.", action: "Show the secret", run: () => get(`${at}/secret`), done: "" }).then((answer) => answer && setSecret(answer));
  const drop = () => act({ title: "Remove 1 endpoint?", text: "Its deliveries go with it, also those that are still to be sent.", action: "Remove 1 endpoint", isDangerous: true, run: () => remove(at), done: "Removed the endpoint" }).then((answer) => answer && go("#/webhooks"));
  return html`<${Button} onClick=${test}>Test…<//><${Button} onClick=${turn}>${of.enabled ? "Switch off…" : "Switch on…"}<//>
    <${Button} onClick=${show}>Secret…<//><${Button} onClick=${rotate}>New secret…<//><${Button} onClick=${drop}>Remove…<//>
    ${
      secret &&
      html`<${Dialog} title="The secret" onClose=${() => setSecret(null)}>
        <${Command}>${secret.secret}<//>
        ${secret.previous_secret && html`<p>The one before signs too, until <${Ago} at=${secret.previous_until} />.</p>`}
        <div class="buttons"><button type="button" class="primary" onClick=${() => setSecret(null)}>Done</button></div>
      <//>`
    }`;
}

/** @type {Record<string, [string, string]>} */
const WORDS = { pending: ["queued", "○ to send"], delivered: ["done", "✓ delivered"], dead: ["failed", "✕ given up"] };

/** @param {() => any} reload @param {{ withEndpoint?: boolean }} [how] @returns {import("../parts/table.js").Column<any>[]} */
export function deliveryColumns(reload, { withEndpoint = false } = {}) {
  const last = (/** @type {any} */ row) => row.attempts?.at(-1);
  return [
    { title: "Status", width: 110, show: (row) => html`<span class=${`status ${WORDS[row.status]?.[0] ?? ""}`}>${WORDS[row.status]?.[1] ?? row.status}</span>` },
    { title: "Event", width: 190, phone: "first", show: (row) => row.event.replace(/^taskpool\./, "") },
    ...(withEndpoint ? [{ title: "Endpoint", width: 220, phone: /** @type {const} */ ("hidden"), show: (/** @type {any} */ row) => html`<a class="cut" href=${href(path("webhooks", row.webhook))} title=${row.url}>${row.url ?? row.webhook}</a>` }] : []),
    { title: "Last answer", kind: "wide", show: (row) => html`<${Answer} of=${last(row)} />${last(row)?.error && html` <span class="muted">${last(row).error}</span>`}` },
    { title: "Tries", kind: "right", width: 70, phone: "hidden", show: (row) => figure(row.attempts?.length ?? 0) },
    { title: "Next try", kind: "right", width: 100, phone: "hidden", show: (row) => (row.next_at ? html`<${Ago} at=${row.next_at} />` : html`<span class="muted">–</span>`) },
    { title: "Task", kind: "id", width: 100, phone: "hidden", show: (row) => (row.task ? html`<a href=${href(path("tasks", row.task))}>…${row.task.slice(-8)}</a>` : "") },
    { title: "Made", kind: "right", width: 100, show: (row) => html`<${Ago} at=${row.created_at} />` },
    { title: "Action", width: 150, show: (row) => html`<${DeliveryActions} of=${row} reload=${reload} />` },
  ];
}

/** @param {{ of: any, reload: () => any }} props */
function DeliveryActions({ of, reload }) {
  const [isOpen, open] = useState(false);
  const at = `/webhooks/deliveries/${encodeURIComponent(of.id)}`;
  const replay = () => act({ title: "Send 1 delivery again?", text: "The receiver gets the same message with the same id, now, with all its tries.", action: "Send 1 again", run: () => post(`${at}/replay`), done: "Sending it again", reload });
  return html`<span class="buttons">
    ${of.status !== "pending" && html`<${Button} isSmall of=${of.id} onClick=${replay}>Again…<//>`}
    <${Button} isSmall of=${of.id} onClick=${() => open(true)}>Show<//>
    ${isOpen && html`<${Delivery} at=${at} onClose=${() => open(false)} />`}
  </span>`;
}

/** What was sent, and each answer. @param {{ at: string, onClose: () => void }} props */
function Delivery({ at, onClose }) {
  const delivery = useData(at);
  return html`<${Dialog} title="Delivery" onClose=${onClose} isWide>
    <${Loaded} of=${delivery}>
      ${(/** @type {any} */ it) => html`<p class="muted"><code>${it.id}</code> to <code>${it.url ?? it.webhook}</code></p>
        <${Table}
          label="Tries" rows=${it.attempts ?? []} id=${(/** @type {any} */ row) => row.at} isLive
          columns=${[
            { title: "When", width: 110, phone: "first", show: (/** @type {any} */ row) => html`<${Ago} at=${row.at} />` },
            { title: "Took", kind: "right", width: 80, show: (/** @type {any} */ row) => duration(row.duration_ms) },
            { title: "Answer", kind: "wide", show: (/** @type {any} */ row) => html`${row.outcome}${row.status_code ? `, ${row.status_code}` : ""}${row.error ? `: ${row.error}` : ""}` },
          ]}
          empty=${html`<${Empty} title="It wasn't tried yet" />`}
        />
        <h3>What is sent</h3>
        <${Json} value=${it.body} label="The message" />`}
    <//>
    <div class="buttons"><button type="button" class="primary" onClick=${onClose}>Close</button></div>
  <//>`;
}
