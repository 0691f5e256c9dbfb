// @ts-check
/** Tasks: the search, the list, and what can be done with many of them. The address is the filter. */
import { useKeys } from "../parts/keys.js";
import { Operations } from "../parts/operations.js";
import { html, useEffect, useState } from "../parts/preact.js";
import { href } from "../parts/router.js";
import { filterOf, format } from "../parts/search.js";
import { useMay } from "../parts/session.js";
import { Empty, Loaded, sentence, useData } from "../parts/state.js";
import { STATUSES, StatusIcon } from "../parts/status.js";
import { Table } from "../parts/table.js";
import { Count, exact } from "../parts/time.js";
import { ACTIONS, ActionBar, BulkDialog, actOnEach } from "./tasks/bulk.js";
import { COLUMNS, PAGE, hrefOf, useTasks } from "./tasks/list.js";
import { TaskSearch } from "../parts/search_box.js";

const SHORTCUTS = ["failed", "in_progress", "queued", "scheduled", "waiting_confirmation", "done"];
const COUNTED = ["queued", "in_progress", "scheduled", "waiting", "done", "failed", "canceled"];
const EVERY_MS = 5000;

/** @param {{ query: Record<string, string> }} props */
export default function Tasks({ query }) {
  const filter = filterOf(query);
  const may = useMay();
  const tasks = useTasks(filter);
  const queues = useData("/queues", {}, { everyMs: EVERY_MS });
  const [selected, setSelected] = useState(/** @type {Set<string>} */ (new Set()));
  const [areAll, setAll] = useState(false);
  const [bulk, setBulk] = useState(/** @type {import("./tasks/bulk.js").Action | null} */ (null));
  const [started, setStarted] = useState(0);
  const clear = () => {
    setSelected(new Set());
    setAll(false);
  };
  useEffect(clear, [tasks.of]);

  const queueNames = (queues.value?.queues ?? []).map((/** @type {any} */ queue) => queue.name);
  const act = async (/** @type {import("./tasks/bulk.js").Action} */ action) => {
    if (areAll) setBulk(action);
    else if (await actOnEach(action, [...selected])) {
      clear();
      tasks.first.reload();
    }
  };
  const byKey = (/** @type {string} */ name) => {
    const action = ACTIONS.find((each) => each.action === name);
    const focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest("tr[data-id]"))?.dataset.id;
    if (!action || !may(action.scope)) return;
    if (areAll || selected.size) act(action);
    else if (focused) actOnEach(action, [focused]).then((isDone) => void (isDone && tasks.first.reload()));
  };
  useKeys([
    { keys: "r", help: "retry the selected tasks", run: () => byKey("retry") },
    { keys: "s", help: "stop the selected tasks", run: () => byKey("stop") },
  ]);
  const { first, rows, hasMore, loadMore, isLoadingMore, looked, problem } = tasks;
  const mayAct = may("tasks:write") || may("tasks:stop");
  return html`<div class="head"><h1>Tasks</h1></div>
    <${TaskSearch} filter=${filter} />
    <${StatusTabs} filter=${filter} queues=${queues.value?.next_cursor ? undefined : queues.value?.queues} />
    <${Operations} may=${may} started=${started} onChange=${first.reload} />
    <${Loaded} of=${first}>
      ${() => html`<${Table} label="Tasks" columns=${COLUMNS} rows=${rows} id=${(/** @type {any} */ task) => task.id} href=${hrefOf} of=${tasks.of} limit=${Infinity}
          selected=${selected} onSelect=${mayAct ? (/** @type {Set<string>} */ ids) => (setSelected(ids), setAll(false)) : undefined}
          empty=${html`<${Nothing} filter=${filter} hasMore=${hasMore} />`} />
        ${problem && html`<p class="banner warning" role="alert">${sentence(problem.message)}</p>`}
        ${
          hasMore &&
          html`<div class="more">
            <button onClick=${loadMore} disabled=${isLoadingMore}>${rows.length < PAGE || rows.length % PAGE ? "Look further" : `${PAGE} more`}</button>
            ${looked > 0 && first.value.complete === false && html`<span class="muted">Looked at ${exact(looked)} tasks so far.</span>`}
          </div>`
        }`}
    <//>
    ${
      (selected.size > 0 || areAll) &&
      html`<${ActionBar} selected=${selected} areAll=${areAll} total=${hasMore ? null : rows.length} may=${may}
        onSelectAll=${() => setAll(true)} onClear=${clear} onAct=${act} />`
    }
    ${
      bulk &&
      html`<${BulkDialog} action=${bulk} filter=${filter} queues=${queueNames} onClose=${() => setBulk(null)}
        onStarted=${() => {
          setBulk(null);
          clear();
          setStarted(started + 1);
        }} />`
    }`;
}

/** Links to the usual statuses, with how many there are if that is known. @param {{ filter: Record<string, string>, queues?: any[] }} props */
function StatusTabs({ filter, queues }) {
  const { status, ...rest } = filter;
  const areCounted = queues && Object.keys(rest).every((name) => name === "queue");
  const counted = areCounted ? queues.filter(({ name }) => !rest.queue || name === rest.queue) : [];
  const countOf = (/** @type {string[]} */ names) =>
    areCounted && names.every((name) => COUNTED.includes(name)) ? counted.reduce((sum, queue) => sum + names.reduce((of, name) => of + (queue[name] ?? 0), 0), 0) : null;
  /** @type {Array<[string, string, number | null]>} */
  const tabs = [["", "All", countOf(COUNTED)], ...SHORTCUTS.map((each) => /** @type {[string, string, number | null]} */ ([each, STATUSES[each].word, countOf([each])]))];
  if (status && !SHORTCUTS.includes(status)) tabs.push([status, STATUSES[status]?.word ?? status, null]);
  return html`<nav class="tabs" aria-label="Statuses">
    ${tabs.map(
      ([each, word, count]) => html`<a key=${each} href=${href("tasks", { ...rest, status: each })} aria-current=${(status ?? "") === each ? "page" : undefined}>
        ${each && html`<${StatusIcon} status=${each} /> `}${word}${count !== null && html` <span class="muted"><${Count} value=${count} /></span>`}
      </a>`,
    )}
  </nav>`;
}

/** @param {{ filter: Record<string, string>, hasMore: boolean }} props */
function Nothing({ filter, hasMore }) {
  const names = Object.keys(filter);
  if (!names.length) return html`<${Empty} title="No task has been submitted yet">Submit one: <code>taskpool submit echo message=hello</code><//>`;
  const without = (/** @type {string} */ name) => href("tasks", { ...filter, [name]: "" });
  return html`<${Empty} title=${hasMore ? "No task that was looked at matches" : "No task matches"}>
    <span class="mono">${format(filter)}</span><br />
    ${filter.since && html`<a href=${href("tasks", { ...filter, since: "24h" })}>Last 24 h</a> · `}
    ${names.map((name) => html`<a key=${name} href=${without(name)}>Any ${name.replaceAll("_", " ")}</a> · `)}<a href=${href("tasks")}>All tasks</a>
  <//>`;
}
