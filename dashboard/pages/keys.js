// @ts-check
/** API keys: what each allows, when it was last used; make, rotate, revoke. */
import { post, remove } from "../parts/api.js";
import { Dialog, open } from "../parts/dialog.js";
import { SchemaForm } from "../parts/form.js";
import { Button, Command, Head, act, listed, useRights } from "../parts/operate.js";
import { html, useState } from "../parts/preact.js";
import { href } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { useSubmit } from "../parts/submit.js";
import { Table } from "../parts/table.js";
import { Ago, figure } from "../parts/time.js";

const EVERY_MS = 10000;

export default function Keys() {
  const rights = useRights();
  const keys = useData(rights.admin ? "/keys" : null, {}, { everyMs: EVERY_MS });
  const [isNew, setNew] = useState(false);
  if (!rights.admin) return html`<${Head} title="Keys" /><${Empty} title="Only keys with the scope admin see the keys" />`;
  const empty = html`<${Empty} title="No key yet: every caller may do everything">The first key must have the scope admin. From then on, each request needs one.<//>`;
  return html`<${Head} title="Keys"><${Button} onClick=${() => setNew(true)}>New key…<//><//>
    <${Loaded} of=${keys}>
      ${(/** @type {any} */ page) => html`<${Table} label="API keys" rows=${page.keys} id=${(/** @type {any} */ row) => row.id} isLive columns=${columns(keys.reload)} empty=${empty} />`}
    <//>
    ${isNew && keys.value && html`<${NewKey} onClose=${() => setNew(false)} onMade=${(/** @type {any} */ key) => (setNew(false), showSecret(key), keys.reload())} isFirst=${keys.value.keys.length === 0} />`}`;
}

/** The secret, until it was copied: the first key ends the session of the page, and must stay readable. @param {any} key */
function showSecret(key) {
  open(
    (close) => html`<${Dialog} title=${`The key ${key.name}`} onClose=${close} isFirm>
      <p>Copy it now: it isn't shown again.</p>
      <${Command}>${key.key}<//>
      ${key.old_secret_until && html`<p>The secret before is good until <${Ago} at=${key.old_secret_until} />.</p>`}
      <div class="buttons"><button type="button" class="primary" onClick=${close}>I have copied it</button></div>
    <//>`,
  );
}

/** @param {() => any} reload @returns {import("../parts/table.js").Column<any>[]} */
function columns(reload) {
  const rotate = (/** @type {any} */ row) =>
    act({ title: `Rotate the key ${row.name}?`, text: "It gets a new secret. The one before is good for 10 more minutes.", action: "Rotate 1 key", run: () => post(`/keys/${row.id}/rotate`, {}), done: "", reload }).then((answer) => answer && showSecret(answer));
  const revoke = (/** @type {any} */ row) =>
    act({ title: `Revoke the key ${row.name}?`, text: html`Programs that use it are refused within seconds. ${row.last_used_at ? html`It was last used <${Ago} at=${row.last_used_at} />.` : "It was never used."}`, action: "Revoke 1 key", isDangerous: true, run: () => remove(`/keys/${row.id}`), done: `Revoked ${row.name}`, reload });
  return [
    { title: "Name", kind: "wide", phone: "first", show: (row) => row.name },
    { title: "Id", kind: "id", width: 130, phone: "hidden", show: (row) => row.id },
    { title: "Scopes", width: 260, show: (row) => html`<span class="cut" title=${row.scopes.join(", ")}>${row.scopes.join(", ")}</span>` },
    { title: "Only", width: 170, phone: "hidden", show: bounds },
    { title: "Last used", kind: "right", width: 100, show: (row) => (row.last_used_at ? html`<${Ago} at=${row.last_used_at} />` : html`<span class="muted">never</span>`) },
    { title: "Expires", kind: "right", width: 110, phone: "hidden", show: (row) => (row.expires_at ? html`<${Ago} at=${row.expires_at} />` : html`<span class="muted">never</span>`) },
    { title: "Made", kind: "right", width: 110, phone: "hidden", show: (row) => html`<${Ago} at=${row.created_at} />` },
    {
      title: "Action",
      width: 250,
      show: (row) => html`<span class="buttons">
        <${Button} isSmall of=${row.name} onClick=${() => rotate(row)}>Rotate…<//>
        <${Button} isSmall of=${row.name} onClick=${() => revoke(row)}>Revoke…<//>
        <a href=${href("audit", { key: row.id })}>Audit</a>
      </span>`,
    },
  ];
}

/** What a key is bound to. @param {any} row */
function bounds(row) {
  const texts = [
    row.project && `project ${row.project}`,
    row.types && `types ${listed(row.types, 2)}`,
    row.queues && `queues ${listed(row.queues, 2)}`,
    row.rate_limit && `${figure(row.rate_limit)} requests a minute`,
  ].filter(Boolean);
  return texts.length ? html`<span class="cut" title=${texts.join(", ")}>${texts.join(", ")}</span>` : html`<span class="muted">–</span>`;
}

/** @param {{ onClose: () => void, onMade: (key: any) => void, isFirst: boolean }} props */
function NewKey({ onClose, onMade, isFirst }) {
  const document = useData("/openapi.json");
  const [value, setValue] = useState(/** @type {any} */ (isFirst ? { scopes: ["admin"] } : {}));
  const { state, submit } = useSubmit(() => post("/keys", value), onMade);
  return html`<${Dialog} title="New key" onClose=${onClose} isWide>
    <${Loaded} of=${document}>
      ${(/** @type {any} */ { components }) => html`<form onSubmit=${submit} novalidate>
        <${SchemaForm} schema=${{ ...components.schemas.KeySpec, $defs: components.schemas }} value=${value} onChange=${setValue} faults=${state.faults} />
        ${state.problem && html`<p class="banner critical" role="alert">${state.problem}</p>`}
        <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${state.isBusy}>Make 1 key</button></div>
      </form>`}
    <//>
  <//>`;
}
