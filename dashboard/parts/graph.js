// @ts-check
/**
 * The graph of a workflow: drawn in columns by rank, and as a list. The server says the rank of each node. Of a large
 * graph, nodes that stand at the same place become one box with counts; a box can be opened in the list.
 */

import { html, useMemo } from "./preact.js";
import { STATUSES, StatusIcon } from "./status.js";
import { figure } from "./time.js";

export const MOST_BOXES = 200;
const [WIDE, HIGH, GAP, ACROSS] = [176, 44, 16, 64];
const WORST = ["failed", "stopped", "stopping", "waiting_confirmation", "in_progress", "throttled", "queued", "scheduled", "waiting", "canceled", "removed", "done"];

/**
 * @typedef {{name: string, id?: string, status?: string, size?: number, counts?: Record<string, number>,
 *   after?: {name: string, on: string}[], rank?: number, added_by?: string}} Node
 * @typedef {{key: string, number: number, name: string, nodes: Node[], rank: number, size: number, counts: Record<string, number>,
 *   status: string, edges: Map<string, string>}} Box `edges`: the boxes before it, and on which outcome it waits for each.
 * @typedef {{x: number, y: number}} Point
 */

/** How many tasks of a node have which status. @param {Node} node @returns {Record<string, number>} */
export function countsOf(node) {
  if (node.size === undefined) return { [node.status ?? "removed"]: 1 };
  const ended = Object.values(node.counts ?? {}).reduce((sum, count) => sum + count, 0);
  const open = node.size - ended;
  return open > 0 ? { ...node.counts, [ended ? "in_progress" : "waiting"]: open } : { ...node.counts };
}

/** The status that matters most among some counts. @param {Record<string, number>} counts */
export function worstOf(counts) {
  return WORST.find((status) => counts[status]) ?? Object.keys(counts)[0] ?? "done";
}

/**
 * The boxes of a graph, at most about `most`: each node; or the nodes with the same rank behind the same boxes as one; or
 * those of the same rank; or those of neighbouring ranks.
 * @param {Node[]} nodes @returns {Box[]}
 */
export function boxesOf(nodes, most = MOST_BOXES) {
  const ranks = new Set(nodes.map((node) => node.rank ?? 0)).size;
  const band = Math.max(1, Math.ceil(ranks / most));
  const keys = [
    (/** @type {Node} */ node) => node.name,
    (/** @type {Node} */ node, /** @type {string[]} */ before) => `${node.rank ?? 0} ${JSON.stringify(before)}`,
    (/** @type {Node} */ node) => `${node.rank ?? 0}`,
    (/** @type {Node} */ node) => `${Math.floor((node.rank ?? 0) / band)}`,
  ];
  for (const keyOf of keys) {
    const boxes = grouped(nodes, keyOf, keyOf === keys[3] ? band : 1);
    if (boxes.length <= most || keyOf === keys[3]) return boxes;
  }
  return [];
}

/** @param {Node[]} nodes @param {(node: Node, before: string[]) => string} keyOf @param {number} band @returns {Box[]} */
function grouped(nodes, keyOf, band) {
  /** @type {Map<string, Box>} */
  const boxes = new Map();
  /** @type {Map<string, Box>} */
  const boxOf = new Map();
  const names = new Map(nodes.filter((node) => node.id).map((node) => [node.id, node.name]));
  for (const node of [...nodes].sort((a, b) => (a.rank ?? 0) - (b.rank ?? 0))) {
    const adder = names.get(node.added_by);
    const edges = [...(node.after ?? []), ...(adder ? [{ name: adder, on: "added" }] : [])];
    // By number: a key that had the keys before it inside would double in length from rank to rank.
    const before = edges.map((edge) => `${edge.on} ${boxOf.get(edge.name)?.number ?? ""}`).sort();
    const key = keyOf(node, before);
    let box = boxes.get(key);
    if (!box) {
      box = { key, number: boxes.size, name: node.name, nodes: [], rank: Math.floor((node.rank ?? 0) / band), size: 0, counts: {}, status: "", edges: new Map() };
      boxes.set(key, box);
    }
    box.nodes.push(node);
    box.size += node.size ?? 1;
    for (const [status, count] of Object.entries(countsOf(node))) box.counts[status] = (box.counts[status] ?? 0) + count;
    for (const edge of edges) {
      const parent = boxOf.get(edge.name);
      if (parent && parent !== box) box.edges.set(parent.key, edge.on);
    }
    boxOf.set(node.name, box);
  }
  for (const box of boxes.values()) box.status = worstOf(box.counts);
  return [...boxes.values()];
}

/**
 * Where each box stands: columns by rank; in a column in the order of the boxes before it, so that few lines cross.
 * @param {Box[]} boxes
 */
export function placesOf(boxes) {
  /** @type {Map<number, Box[]>} */
  const columns = new Map();
  for (const box of boxes) columns.set(box.rank, [...(columns.get(box.rank) ?? []), box]);
  const tallest = Math.max(1, ...[...columns.values()].map((column) => column.length));
  /** @type {Map<string, Point>} */
  const places = new Map();
  [...columns.keys()].sort((a, b) => a - b).forEach((rank, number) => {
    const column = /** @type {Box[]} */ (columns.get(rank));
    const wish = new Map(column.map((box) => {
      const above = [...box.edges.keys()].map((key) => places.get(key)?.y ?? 0);
      return [box, above.length ? above.reduce((sum, y) => sum + y, 0) / above.length : 0];
    }));
    column.sort((a, b) => (wish.get(a) ?? 0) - (wish.get(b) ?? 0));
    const top = ((tallest - column.length) * (HIGH + GAP)) / 2;
    column.forEach((box, at) => places.set(box.key, { x: number * (WIDE + ACROSS), y: top + at * (HIGH + GAP) }));
  });
  return { places, width: columns.size * (WIDE + ACROSS) - ACROSS, height: tallest * (HIGH + GAP) - GAP };
}

/** @param {string} status */
const wordOf = (status) => STATUSES[status]?.word ?? status;

/** How many tasks are how far, in words: `3 failed, 97 done`. @param {Record<string, number>} counts */
export function countsText(counts) {
  return WORST.filter((status) => counts[status])
    .map((status) => `${figure(counts[status])} ${wordOf(status)}`)
    .join(", ");
}

/**
 * The drawing. Each box leads to its task, or to the tasks that it stands for.
 * @param {{ boxes: Box[], hrefOf: (box: Box) => string, label: string }} props
 */
export function Graph({ boxes, hrefOf, label }) {
  const { places, width, height } = useMemo(() => placesOf(boxes), [boxes]);
  const edge = 6; // so that the outlines of the outer boxes are whole
  return html`<div class="graph" tabindex="0" role="region" aria-label=${label}>
    <svg width=${width + 2 * edge} height=${height + 2 * edge} viewBox=${`${-edge} ${-edge} ${width + 2 * edge} ${height + 2 * edge}`}>
      ${boxes.flatMap((box) => [...box.edges].map(([key, on]) => html`<${Edge} key=${`${key} ${box.key}`} from=${places.get(key)} to=${places.get(box.key)} on=${on} />`))}
      ${boxes.map((box) => html`<${BoxOf} key=${box.key} box=${box} at=${places.get(box.key)} href=${hrefOf(box)} />`)}
    </svg>
  </div>`;
}

/** @param {{ from?: Point, to?: Point, on: string }} props */
function Edge({ from, to, on }) {
  if (!from || !to) return null;
  const [x1, y1, x2, y2] = [from.x + WIDE, from.y + HIGH / 2, to.x, to.y + HIGH / 2];
  const bend = Math.max(20, (x2 - x1) / 2);
  return html`<path class=${`edge on-${on}`} d=${`M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`}><title>${`on ${on}`}</title></path>`;
}

/** @param {{ box: Box, at?: Point, href: string }} props */
function BoxOf({ box, at, href }) {
  if (!at) return null;
  const isOne = box.nodes.length === 1 && box.nodes[0].size === undefined;
  const text = isOne ? wordOf(box.status) : `${figure(box.size)}: ${countsText(box.counts)}`;
  const name = nameOf(box);
  return html`<a href=${href} class=${`box ${box.status}`}>
    <title>${`${name}: ${text}`}</title>
    ${!isOne && html`<rect class="behind" x=${at.x + 4} y=${at.y - 4} width=${WIDE} height=${HIGH} rx="6" />`}
    <rect x=${at.x} y=${at.y} width=${WIDE} height=${HIGH} rx="6" />
    <svg x=${at.x + 8} y=${at.y + 8} width="14" height="14" overflow="visible"><${StatusIcon} status=${box.status} /></svg>
    <svg x=${at.x + 28} y=${at.y} width=${WIDE - 34} height=${HIGH}>
      <text y="19" class="name">${cut(name, 20)}</text>
      <text y="35" class="under">${cut(text, 24)}</text>
    </svg>
  </a>`;
}

/** @param {Box} box */
export const nameOf = (box) => (box.nodes.length === 1 ? box.name : `${box.name} and ${figure(box.nodes.length - 1)} more`);

/** @param {string} text @param {number} most */
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
