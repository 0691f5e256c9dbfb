// @ts-check
/** One workflow: its graph as it is now, how far it is, what failed. */
import { post, remove } from "../parts/api.js";
import { Graph, MOST_BOXES, boxesOf, countsOf, countsText, nameOf, worstOf } from "../parts/graph.js";
import { Button, Facts, Head, act, listed, useRights } from "../parts/operate.js";
import { html, useMemo, useState } from "../parts/preact.js";
import { go, href, path } from "../parts/router.js";
import { Empty, Loaded, useData } from "../parts/state.js";
import { Status } from "../parts/status.js";
import { Table } from "../parts/table.js";
import { Ago, duration, figure, many } from "../parts/time.js";
import { Progress } from "./workflows.js";

const EVERY_MS = 1000;
const [LARGE, LARGE_MS] = [500, 5000]; // nodes: the answer has all of them
const ENDED_MS = 10000; // it may be retried
const ENDED = ["done", "failed", "stopped"];

/** @param {{ params: { id: string }, query: Record<string, string> }} props */
export default function Workflow({ params: { id }, query }) {
  const [everyMs, setEvery] = useState(EVERY_MS);
  const workflow = useData(`/${path("workflows", id)}`, {}, { everyMs });
  const { status, nodes = [] } = workflow.value ?? {};
  const wantedMs = ENDED.includes(status) ? ENDED_MS : nodes.length > LARGE ? LARGE_MS : EVERY_MS;
  if (status && everyMs !== wantedMs) setEvery(wantedMs);
  const missing = html`<${Head} title="Workflow" above=${[["Workflows", "#/workflows"]]} /><${Empty} title="There is no such workflow">It was removed, or it has expired. <a href="#/workflows">All workflows</a><//>`;
  return html`<${Loaded} of=${workflow} missing=${missing}>
    ${(/** @type {any} */ it) => html`<${Head} title=${it.name} above=${[["Workflows", "#/workflows"]]}><${Actions} of=${it} reload=${workflow.reload} /><//>
      <${Facts}
        of=${[
          ["Status", html`<${Status} status=${it.status} />`],
          ["Progress", html`<${Progress} of=${it} />`],
          ["Tasks", countsText(it.counts)],
          ["Made", html`<${Ago} at=${it.created_at} />`],
          ["Took", it.ended_at && duration(Date.parse(it.ended_at) - Date.parse(it.created_at))],
          ["Project", it.project],
          ["Id", html`<code>${it.id}</code>`],
        ]}
      />
      ${it.counts.failed > 0 && html`<${Failed} id=${it.id} count=${it.counts.failed} />`}
      <${Nodes} of=${it} query=${query} />`}
  <//>`;
}

/** @param {{ of: any, reload: () => any }} props */
function Actions({ of, reload }) {
  const rights = useRights();
  const at = `/${path("workflows", of.id)}`;
  const open = of.total - of.ended;
  const bad = of.total - (of.counts.done ?? 0);
  const stop = () =>
    act({ title: `Stop the workflow ${of.name}?`, text: `${many(open, "task")} ${open === 1 ? "hasn't" : "haven't"} ended: those that wait are canceled, those that run are stopped.`, action: `Stop ${many(open, "task")}`, isDangerous: true, run: () => post(`${at}/stop`, {}), done: `Stopping ${of.name}`, reload });
  const retry = () =>
    act({ title: `Retry the workflow ${of.name}?`, text: `What failed runs again, and what comes after it: about ${many(bad, "task")}. Tasks that are done stay done.`, action: "Retry what failed", run: () => post(`${at}/retry`, {}), done: `Retrying ${of.name}`, reload });
  const drop = () =>
    act({ title: `Remove the workflow ${of.name}?`, text: `Its ${many(of.total, "task")} go with it, with their results and logs.`, action: `Remove ${many(of.total, "task")}`, isDangerous: true, typed: of.total > 1000 ? String(of.total) : undefined, run: () => remove(at), done: `Removed ${of.name}` }).then((answer) => answer && go("#/workflows"));
  const hasEnded = ENDED.includes(of.status);
  return html`${!hasEnded && rights.stop && html`<${Button} onClick=${stop}>Stop…<//>`}
    ${hasEnded && rights.start && bad > 0 && html`<${Button} onClick=${retry}>Retry…<//>`}
    ${hasEnded && rights.stop && html`<${Button} onClick=${drop}>Remove…<//>`}`;
}

/** @param {{ id: string, count: number }} props */
function Failed({ id, count }) {
  const { value } = useData("/tasks", { workflow: id, status: "failed", limit: 5 }, { everyMs: 5000 });
  if (!value?.tasks.length) return null;
  return html`<h2 class="failed">${many(count, "task")} failed</h2>
    <${Table}
      label="Failed tasks" rows=${value.tasks} id=${(/** @type {any} */ row) => row.id} isLive href=${(/** @type {any} */ row) => href(path("tasks", row.id))}
      columns=${[
        { title: "Node", width: 140, phone: "first", show: (/** @type {any} */ row) => row.node ?? "" },
        { title: "Type", width: 140, phone: "hidden", show: (/** @type {any} */ row) => row.type },
        { title: "Error", kind: "wide", show: (/** @type {any} */ row) => row.error ?? "" },
        { title: "When", kind: "right", width: 110, show: (/** @type {any} */ row) => html`<${Ago} at=${row.ended_at} />` },
      ]}
    />
    ${count > value.tasks.length && html`<p><a href=${href("tasks", { workflow: id, status: "failed" })}>All ${figure(count)}</a></p>`}`;
}

/** The graph, and the same as a list. @param {{ of: any, query: Record<string, string> }} props */
function Nodes({ of, query }) {
  const nodes = of.nodes ?? [];
  const boxes = useMemo(() => boxesOf(nodes), [of.seq, nodes.length]);
  const isList = (query.as ?? (matchMedia("(max-width: 760px)").matches ? "list" : "graph")) === "list"; // a graph is too wide for a phone
  const link = (/** @type {any} */ node) => (node.size === undefined && node.id ? href(path("tasks", node.id)) : href("tasks", { workflow: of.id, node: node.name }));
  const hrefOf = (/** @type {any} */ box) => (box.nodes.length === 1 ? link(box.nodes[0]) : href(path("workflows", of.id), { as: "list", rank: box.nodes[0].rank ?? 0 }));
  const rank = query.rank === undefined ? null : Number(query.rank);
  const wanted = [...nodes].filter((node) => rank === null || (node.rank ?? 0) === rank).sort((a, b) => (a.rank ?? 0) - (b.rank ?? 0));
  return html`<div class="head">
      <h2>${many(nodes.length, "node")}</h2>
      <div class="buttons" role="group" aria-label="Show as">
        <a class="button" aria-current=${isList ? undefined : "true"} href=${href(path("workflows", of.id), { as: "graph" })}>Graph</a>
        <a class="button" aria-current=${isList ? "true" : undefined} href=${href(path("workflows", of.id), { as: "list" })}>List</a>
        ${rank !== null && html`<a class="button" href=${href(path("workflows", of.id), { as: "list" })}>column ${rank + 1} ✕</a>`}
      </div>
    </div>
    ${!isList && boxes.length < nodes.length && html`<p class="muted">${figure(nodes.length)} nodes in ${figure(boxes.length)} boxes, as more than ${MOST_BOXES} can't be read. A box opens as a list.</p>`}
    ${isList ? html`<${List} nodes=${wanted} link=${link} />` : html`<${Graph} boxes=${boxes} hrefOf=${hrefOf} label=${`Graph of ${of.name}: ${boxes.map((/** @type {any} */ box) => `${nameOf(box)} ${box.status}`).slice(0, 20).join(", ")}`} />`}`;
}

/** @param {{ nodes: any[], link: (node: any) => string }} props */
function List({ nodes, link }) {
  return html`<${Table}
      label="Nodes" rows=${nodes} id=${(/** @type {any} */ row) => row.name} isLive href=${link}
      columns=${[
        { title: "Column", kind: "right", width: 84, phone: "hidden", show: (/** @type {any} */ row) => figure((row.rank ?? 0) + 1) },
        { title: "Status", width: 130, show: (/** @type {any} */ row) => html`<${Status} status=${worstOf(countsOf(row))} />` },
        { title: "Node", kind: "wide", phone: "first", show: (/** @type {any} */ row) => row.name },
        { title: "Tasks", width: 260, show: (/** @type {any} */ row) => (row.size === undefined ? "1 task" : html`<span class="cut">${figure(row.size)} tasks: ${countsText(countsOf(row))}</span>`) },
        { title: "After", width: 240, phone: "hidden", show: (/** @type {any} */ row) => html`<span class="cut muted">${listed((row.after ?? []).map((/** @type {any} */ edge) => (edge.on === "success" ? edge.name : `${edge.name} (${edge.on})`)), 8)}</span>` },
      ]}
    />`;
}
