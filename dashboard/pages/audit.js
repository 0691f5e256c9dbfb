// @ts-check
/** The audit: who did what, to how many, from where and when. */
import { Head, NextPage, useRights } from "../parts/operate.js";
import { html } from "../parts/preact.js";
import { go, href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Table } from "../parts/table.js";
import { Ago, figure } from "../parts/time.js";

const EVERY_MS = 5000;
const FILTERS = ["what", "key", "about", "project", "since", "until"];

/** @param {{ query: Record<string, string> }} props */
export default function Audit({ query }) {
  const rights = useRights();
  const wanted = Object.fromEntries(["cursor", ...FILTERS].map((name) => [name, query[name]]));
  const audit = useData(rights.admin ? "/audit" : null, { ...wanted, limit: 100 }, { everyMs: query.cursor ? 0 : EVERY_MS });
  const whats = useData(rights.admin ? "/openapi.json" : null).value?.components.schemas.What?.enum ?? [];
  if (!rights.admin) return html`<${Head} title="Audit" /><${Empty} title="Only keys with the scope admin see the audit" />`;
  const isFiltered = FILTERS.some((name) => query[name]);
  const empty = isFiltered ? html`<${Empty} title="Nothing of this kind was done"><a href="#/audit">Everything</a><//>` : html`<${Empty} title="Nothing was done yet" />`;
  const pick = (/** @type {any} */ event) => go(href("audit", { ...query, cursor: "", what: event.target.value }));
  return html`<${Head} title="Audit" />
    <div class="filters">
      <label>What <select value=${query.what ?? ""} onChange=${pick}><option value="">everything</option>${whats.map((/** @type {string} */ what) => html`<option value=${what}>${what}</option>`)}</select></label>
      ${FILTERS.filter((name) => name !== "what" && query[name]).map((name) => html`<a class="button" href=${href("audit", { ...query, cursor: "", [name]: "" })}>${name}: ${query[name]} ✕</a>`)}
    </div>
    <${Loaded} of=${audit}>
      ${(/** @type {any} */ page) => html`<${Table}
          label="Audit" rows=${page.entries} id=${(/** @type {any} */ row) => `${row.at} ${row.what} ${row.about}`} of=${JSON.stringify(wanted)} columns=${columns(query)} empty=${empty}
        />
        <${NextPage} path="audit" query=${query} cursor=${page.next_cursor} />`}
    <//>`;
}

/** @param {Record<string, string>} query @returns {import("../parts/table.js").Column<any>[]} */
function columns(query) {
  return [
    { title: "When", width: 110, show: (row) => html`<${Ago} at=${row.at} />` },
    { title: "Who", width: 170, phone: "first", show: (row) => (row.by.key ? html`<a href=${href("audit", { ...query, cursor: "", key: row.by.key })} title=${row.by.key}>${row.by.name}</a>` : row.by.name) },
    { title: "What", width: 190, show: (row) => html`<a href=${href("audit", { ...query, cursor: "", what: row.what })}>${row.what}</a>` },
    { title: "How many", kind: "right", width: 88, show: (row) => figure(row.count ?? 1) },
    { title: "About", kind: "wide", show: (row) => html`${aboutLink(row)}${row.comment && html` <span class="muted">${row.comment}</span>`}` },
    { title: "Project", width: 110, phone: "hidden", show: (row) => row.by.project ?? html`<span class="muted">–</span>` },
    { title: "From", width: 130, phone: "hidden", show: (row) => html`<span class="muted">${row.by.address}</span>` },
  ];
}

/** @type {Record<string, string>} */
const PLACES = { task: "tasks", workflow: "workflows", schedule: "schedules", webhook: "webhooks", queue: "queues" };

/** What an entry is about, as a link if it has a page. @param {any} row */
function aboutLink({ what, about, last }) {
  const place = PLACES[what.split(".")[0]];
  const to = place ? href(path(place, about)) : what.startsWith("operation.") ? href("audit", { about }) : "";
  const name = to ? html`<a href=${to}>${about}</a>` : about;
  return last ? html`${name} … ${last}` : name;
}
