// @ts-check
/** Webhooks: how deliveries to each endpoint go, and those that were given up. */
import { get, post } from "../parts/api.js";
import { Dialog } from "../parts/dialog.js";
import { SchemaForm } from "../parts/form.js";
import { Button, Command, Head, NextPage, listed, useRights } from "../parts/operate.js";
import { html, useState } from "../parts/preact.js";
import { href, path } from "../parts/router.js";
import { Empty, Loaded, useAnswer, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Ago, figure } from "../parts/time.js";
import { useSubmit } from "../parts/submit.js";
import { deliveryColumns } from "./webhook.js";

const EVERY_MS = 5000;
const LOOKED_AT = 50; // deliveries of each endpoint
const MOST_ENDPOINTS = 50;

/** @param {{ query: Record<string, string> }} props */
export default function Webhooks({ query }) {
  const rights = useRights();
  const webhooks = useData(rights.admin ? "/webhooks" : null, {}, { everyMs: 2 * EVERY_MS });
  const ids = (webhooks.value?.webhooks ?? []).slice(0, MOST_ENDPOINTS).map((/** @type {any} */ each) => each.id);
  const states = useAnswer(ids.join(" "), (signal) => readStates(ids, signal), { everyMs: 3 * EVERY_MS }).value ?? {};
  const dead = useData(rights.admin ? "/webhooks/dead" : null, { limit: 20, cursor: query.cursor }, { everyMs: EVERY_MS });
  const [isNew, setNew] = useState(false);
  if (!rights.admin) return html`<${Head} title="Webhooks" /><${Empty} title="Only keys with the scope admin see webhooks" />`;
  return html`<${Head} title="Webhooks"><${Button} onClick=${() => setNew(true)}>New endpoint…<//><//>
    <${Loaded} of=${webhooks}>
      ${(/** @type {any} */ page) => html`<${Table}
        label="Endpoints" rows=${page.webhooks} id=${(/** @type {any} */ row) => row.id} isLive href=${(/** @type {any} */ row) => href(path("webhooks", row.id))}
        columns=${columns(states)} empty=${html`<${Empty} title="No endpoint yet">Callbacks of single tasks need none. <button type="button" class="small" onClick=${() => setNew(true)}>New endpoint</button><//>`}
      />`}
    <//>
    <h2 id="dead">Given up</h2>
    <${Loaded} of=${dead}>
      ${(/** @type {any} */ page) => html`<${Table}
          label="Deliveries that were given up" rows=${page.deliveries} id=${(/** @type {any} */ row) => row.id} isLive
          columns=${deliveryColumns(dead.reload, { withEndpoint: true })} empty=${html`<${Empty} title="No delivery was given up" />`}
        />
        <${NextPage} path="webhooks" query=${query} cursor=${page.next_cursor} />`}
    <//>
    ${isNew && html`<${NewEndpoint} onClose=${() => setNew(false)} reload=${webhooks.reload} />`}`;
}

/**
 * How the last deliveries of each endpoint went.
 * @param {string[]} ids @param {AbortSignal} signal
 */
async function readStates(ids, signal) {
  const pages = await Promise.all(ids.map((id) => get(`/${path("webhooks", id)}/deliveries`, { limit: LOOKED_AT }, signal).catch(() => ({ deliveries: [] }))));
  return Object.fromEntries(ids.map((id, at) => [id, stateOf(pages[at].deliveries)]));
}

/** @param {any[]} deliveries the newest first */
export function stateOf(deliveries) {
  const count = (/** @type {string} */ status) => deliveries.filter((each) => each.status === status).length;
  const attempts = deliveries.flatMap((each) => each.attempts ?? []).sort((a, b) => (a.at < b.at ? 1 : -1));
  const next = deliveries.filter((each) => each.status === "pending" && each.next_at).map((each) => each.next_at).sort()[0];
  return { all: deliveries.length, delivered: count("delivered"), pending: count("pending"), dead: count("dead"), last: attempts[0], next };
}

/** @param {Record<string, ReturnType<typeof stateOf>>} states @returns {import("../parts/table.js").Column<any>[]} */
function columns(states) {
  return [
    { title: "Endpoint", kind: "wide", phone: "first", show: (row) => html`${row.url}${row.description && html` <span class="muted">${row.description}</span>`}` },
    { title: "Sends", width: 170, phone: "hidden", show: (row) => html`<span class="cut" title=${row.events.join(", ")}>${listed(row.events, 2)}</span>` },
    { title: "State", width: 150, show: (row) => (row.enabled ? html`<span class="muted">on</span>` : html`<span class="word critical" title=${row.disabled_reason ?? ""}>✕ off${row.disabled_reason ? `: ${row.disabled_reason}` : ""}</span>`) },
    { title: "Last 50", width: 190, show: (row) => html`<${Success} of=${states[row.id]} />` },
    { title: "Last answer", width: 190, show: (row) => html`<${Answer} of=${row.last_failure ?? states[row.id]?.last} />` },
    { title: "Next try", kind: "right", width: 100, phone: "hidden", show: (row) => (states[row.id]?.next ? html`<${Ago} at=${states[row.id].next} />` : html`<span class="muted">–</span>`) },
  ];
}

/** @param {{ of: ReturnType<typeof stateOf> | undefined }} props */
export function Success({ of }) {
  if (!of) return html`<span class="muted">…</span>`;
  if (!of.all) return html`<span class="muted">nothing sent yet</span>`;
  const bad = [of.dead && html`<span class="failed">✕ ${figure(of.dead)} given up</span>`, of.pending && html`<span class="queued">${figure(of.pending)} to send</span>`].filter(Boolean);
  return html`<span class="words">${of.delivered > 0 && html`<span class="done">✓ ${figure(of.delivered)}</span>`}${bad}</span>`;
}

/** What the endpoint said last. @param {{ of: any }} props */
export function Answer({ of }) {
  if (!of) return html`<span class="muted">–</span>`;
  const isGood = of.outcome === "delivered";
  return html`<span class=${isGood ? "done" : "failed"} title=${of.error ?? ""}>${isGood ? "✓" : "✕"} ${of.status_code ?? of.error ?? of.outcome}</span> <span class="muted"><${Ago} at=${of.at} /></span>`;
}

/** @param {{ onClose: () => void, reload: () => any }} props */
function NewEndpoint({ onClose, reload }) {
  const document = useData("/openapi.json");
  const [value, setValue] = useState(/** @type {any} */ ({}));
  const { state, submit } = useSubmit(() => post("/webhooks", value), reload);
  return html`<${Dialog} title="New endpoint" onClose=${onClose} isWide>
    ${
      state.answer
        ? html`<p>Made. Its secret signs each message; the receiver checks the signature with it. You can read it again on the endpoint's page.</p><${Command}>${state.answer.secret}<//>
            <div class="buttons"><button type="button" class="primary" onClick=${onClose}>Done</button></div>`
        : html`<${Loaded} of=${document}>
            ${(/** @type {any} */ { components }) => html`<form onSubmit=${submit} novalidate>
              <${SchemaForm} schema=${{ ...components.schemas.NewWebhook, $defs: components.schemas }} value=${value} onChange=${setValue} faults=${state.faults} />
              ${state.problem && html`<p class="banner critical" role="alert">${state.problem}</p>`}
              <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${state.isBusy}>Make 1 endpoint</button></div>
            </form>`}
          <//>`
    }
  <//>`;
}
