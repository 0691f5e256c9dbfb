// @ts-check
/** A task as a command or a program that submits it again. What the task contains is always quoted. */

import { ExactNumber, writeJson } from "../../parts/exact.js";

const OPTIONS = ["queue", "timeout_s", "max_attempts", "backoff_s", "backoff_max_s", "on_lost_lease", "result_ttl_s", "failure_ttl_s", "tags"];
const DEFAULTS = { max_attempts: 1, on_lost_lease: "continue", queue: "default" };

/**
 * A submission of the same task: its type, payload and options, without what belongs to one task only (its unique key,
 * parents, times).
 * @param {any} record with numbers as `parseExact` reads them
 * @returns {Record<string, any>}
 */
export function submissionOf(record) {
  const same = /** @type {Record<string, any>} */ ({ type: record.type, payload: record.payload });
  for (const name of OPTIONS) {
    const value = record[name];
    if (value === undefined || value === null || plain(value) === DEFAULTS[/** @type {keyof typeof DEFAULTS} */ (name)]) continue;
    if (!(Array.isArray(value) && !value.length)) same[name] = value;
  }
  return same;
}

/** @param {any} value */
const plain = (value) => (value instanceof ExactNumber ? Number(value.source) : value);

/** @param {any} record @param {string} base the API's address */
export function asCurl(record, base) {
  const lines = [
    `curl -X POST ${shell(`${base}/tasks`)}`,
    `-H "Authorization: Bearer $TASKPOOL_API_KEY"`,
    `-H 'Content-Type: application/json'`,
    `-d ${shell(writeJson(submissionOf(record)))}`,
  ];
  return `${lines.join(" \\\n  ")}\n`;
}

/** @param {any} record @param {string} base */
export function asPython(record, base) {
  const { type, payload, ...options } = submissionOf(record);
  const named = Object.entries(options).map(([name, value]) => `, ${name}=${python(value)}`);
  return `import os

from taskpool import Client

with Client(${python(base)}, os.environ.get("TASKPOOL_API_KEY")) as client:
    task = client.add_task(${python(type)}, ${python(payload, "    ")}${named.join("")})
    print(client.wait(task.id).status)
`;
}

/** @param {any} record */
export function asPytest(record) {
  const name = record.type.replace(/[^A-Za-z0-9]+/g, "_").replace(/^_+|_+$/g, "").toLowerCase() || "task";
  const expected =
    record.status === "done"
      ? `assert record.result == ${python(record.result ?? null, "        ")}`
      : `assert record.status == "done", record.error`;
  return `from taskpool.testing import InlinePool

TASKS = "your_module"  # the module that declares the type


def test_${name}() -> None:
    with InlinePool(TASKS) as pool:
        record = pool.run(${python(record.type)}, ${python(record.payload, "        ")})

        ${expected}
`;
}

/** @param {string} text */
export function shell(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/**
 * The Python literal of a JSON value.
 * @param {any} value
 * @param {string} [margin]
 * @returns {string}
 */
export function python(value, margin = "") {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (value instanceof ExactNumber) return Number.isFinite(Number(value.source)) || /^-?\d+$/.test(value.source) ? value.source : `float("${value.source}")`;
  if (typeof value === "string") return pythonText(value);
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${margin}    `;
  const isList = Array.isArray(value);
  const members = isList
    ? value.map((each) => python(each, inner))
    : Object.entries(value).map(([key, each]) => `${pythonText(key)}: ${python(each, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const short = `${open}${members.join(", ")}${close}`;
  if (short.length <= 80 && !short.includes("\n")) return short;
  return `${open}\n${inner}${members.join(`,\n${inner}`)},\n${margin}${close}`;
}

/** @param {string} text */
function pythonText(text) {
  return JSON.stringify(text).replace(/[\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g, (hidden) =>
    `\\u${hidden.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
