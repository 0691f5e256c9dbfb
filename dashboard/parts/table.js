// @ts-check
/**
 * Tables whose rows stay where they are: values change in place, new rows wait behind "37 newer · show", and a row that
 * isn't in the latest answer any more is dimmed. Keys: `j k` move, Enter opens, `x` selects, Shift-`x` up to here.
 */
import { useKeys } from "./keys.js";
import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { figure, many } from "./time.js";

const MOST = 200; // rows at once: more of them would keep the browser busy

/**
 * @template Row
 * @typedef {object} Column
 * @property {string} title
 * @property {(row: Row) => any} show
 * @property {"right" | "wide" | "id"} [kind] right: figures; wide: takes the free width, and is cut at its end; id: in mono
 * @property {"first" | "hidden"} [phone] on a phone: in the first line, or not at all; else in the second line
 * @property {number} [width] in px
 */

/**
 * @param {object} props
 * @param {string} props.label what the table has, for screen readers
 * @param {Column<any>[]} props.columns
 * @param {any[]} props.rows the latest ones
 * @param {(row: any) => string} props.id
 * @param {(row: any) => string} [props.href] the page of a row; its first `wide` column, or the first one, is the link
 * @param {Set<string>} [props.selected] ids; with `onSelect`, rows have boxes
 * @param {(ids: Set<string>) => void} [props.onSelect]
 * @param {string} [props.of] when it changes, rows are shown anew: the filter
 * @param {boolean} [props.isLive] new rows appear at once: for tables that are sorted by name, and don't flicker
 * @param {number} [props.limit] rows at first; a button shows more
 * @param {any} [props.empty] shown without rows
 */
export function Table({ label, columns, rows, id, href, selected, onSelect, of = "", isLive = false, limit = MOST, empty }) {
  const { shown: all, newer, show, isGone } = useSteadyRows(rows, id, of, isLive);
  const [most, setMost] = useState(limit);
  const shown = all.slice(0, most);
  const body = useRef(/** @type {HTMLTableSectionElement | null} */ (null));
  useRowKeys(body, shown, id, selected, onSelect, show);
  if (!shown.length && !newer) return empty ?? null;

  const link = Math.max(0, columns.findIndex(({ kind }) => kind === "wide"));
  const toggle = (/** @type {string} */ each) => onSelect?.(toggled(selected, each));
  const areAll = shown.length > 0 && shown.every((row) => selected?.has(id(row)));
  const toggleAll = () => onSelect?.(new Set(areAll ? [] : shown.map(id)));

  return html`<div class="table">
    ${newer > 0 && html`<button class="newer" onClick=${show}>${many(newer, "newer one", "newer")} · show</button>`}
    <table aria-label=${label}>
      <thead><tr>
        ${onSelect && html`<th class="box"><input type="checkbox" aria-label="Select all shown" checked=${areAll} onChange=${toggleAll} /></th>`}
        ${columns.map((column) => html`<${Head} column=${column} />`)}
      </tr></thead>
      <tbody ref=${body}>
        ${shown.map(
          (row) => html`<${Line}
            key=${id(row)} id=${id(row)} row=${row} columns=${columns} link=${link} href=${href?.(row)} isGone=${isGone(row)}
            isSelected=${selected?.has(id(row)) ?? false} toggle=${onSelect && toggle}
          />`,
        )}
      </tbody>
    </table>
    ${all.length > most && html`<p><button type="button" onClick=${() => setMost(most + MOST)}>${figure(Math.min(MOST, all.length - most))} more of ${figure(all.length - most)}</button></p>`}
  </div>`;
}

/** @param {{ column: Column<any> }} props */
function Head({ column }) {
  const { title, width } = column;
  const ref = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => void (ref.current && width && (ref.current.style.width = `${width}px`)), [width]);
  return html`<th ref=${ref} scope="col" class=${classOf(column)}>${title}</th>`;
}

/** The class of a column's cells. @param {Column<any>} column */
const classOf = ({ kind, phone }) => [kind, phone && `phone-${phone}`].filter(Boolean).join(" ");

/**
 * @param {{ id: string, row: any, columns: Column<any>[], link: number, href?: string, isGone: boolean, isSelected: boolean,
 *   toggle?: (id: string) => void }} props
 */
function Line({ id, row, columns, link, href, isGone, isSelected, toggle }) {
  return html`<tr data-id=${id} class=${`${isGone ? "gone" : ""} ${isSelected ? "selected" : ""}`} tabindex="-1">
    ${
      toggle &&
      html`<td class="box">
        <input type="checkbox" aria-label=${`Select ${id}`} checked=${isSelected} onChange=${() => toggle(id)} />
      </td>`
    }
    ${columns.map((column, index) => {
      const value = column.show(row);
      const cell = index === link && href ? html`<a class="row-link" href=${href}>${value}</a>` : value;
      return html`<td class=${classOf(column)} data-title=${column.title} title=${typeof value === "string" ? value : undefined}>${cell}</td>`;
    })}
  </tr>`;
}

/**
 * The rows to show: those of the first answer, in its order, with the values of the latest one.
 * @param {any[]} rows @param {(row: any) => string} id @param {string} of @param {boolean} isLive
 */
function useSteadyRows(rows, id, of, isLive) {
  const [kept, keep] = useState({ of, order: /** @type {string[]} */ ([]), known: new Map() });
  const latest = useMemo(() => new Map(rows.map((row) => [id(row), row])), [rows]);
  let { order, known } = kept;
  if (isLive || kept.of !== of || !order.length) {
    order = [...latest.keys()];
    known = latest;
  }
  const ids = [...latest.keys()];
  const inOrder = new Set(order);
  const last = ids.findLastIndex((each) => inOrder.has(each));
  if (last >= 0) order = [...order, ...ids.slice(last + 1)]; // those at the end, such as of a further page, move no other row
  const next = new Map(order.map((each) => [each, latest.get(each) ?? known.get(each)]));
  useEffect(() => keep({ of, order, known: next }), [rows, of]);
  return {
    shown: [...next.values()],
    newer: [...latest.keys()].filter((each) => !next.has(each)).length,
    show: () => keep({ of, order: [...latest.keys()], known: latest }),
    isGone: (/** @type {any} */ row) => !latest.has(id(row)),
  };
}

/**
 * @param {{ current: HTMLElement | null }} body @param {any[]} shown @param {(row: any) => string} id
 * @param {Set<string> | undefined} selected @param {((ids: Set<string>) => void) | undefined} onSelect @param {() => void} show
 */
function useRowKeys(body, shown, id, selected, onSelect, show) {
  const last = useRef("");
  const current = () => /** @type {HTMLElement | null} */ (document.activeElement?.closest("tr[data-id]") ?? null);
  const move = (/** @type {number} */ by) => {
    const lines = /** @type {HTMLElement[]} */ ([...(body.current?.children ?? [])]);
    const at = lines.indexOf(/** @type {any} */ (current()));
    const line = lines[at < 0 ? (by > 0 ? 0 : lines.length - 1) : Math.min(lines.length - 1, Math.max(0, at + by))];
    line?.focus();
  };
  const select = (/** @type {boolean} */ upToHere) => {
    const here = current()?.dataset.id;
    if (!here || !onSelect) return;
    const ids = shown.map(id);
    const [from, to] = [ids.indexOf(last.current), ids.indexOf(here)].sort((a, b) => a - b);
    onSelect(upToHere && from >= 0 ? new Set([...(selected ?? []), ...ids.slice(from, to + 1)]) : toggled(selected, here));
    last.current = here;
  };
  useKeys([
    { keys: "j", help: "next row", run: () => move(1) },
    { keys: "k", help: "row before", run: () => move(-1) },
    { keys: "Enter", help: "open the row", run: () => /** @type {HTMLElement | null} */ (current()?.querySelector("a.row-link"))?.click() },
    { keys: "n", help: "show newer rows", run: show },
    ...(onSelect
      ? [
          { keys: "x", help: "select the row", run: () => select(false) },
          { keys: "X", help: "select all rows up to here", run: () => select(true) },
        ]
      : []),
  ]);
}

/** @param {Set<string> | undefined} ids @param {string} id */
function toggled(ids, id) {
  const next = new Set(ids);
  if (!next.delete(id)) next.add(id);
  return next;
}
