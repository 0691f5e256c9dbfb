// @ts-check
/**
 * A form made from a JSON Schema, with the JSON beside it.
 *
 * The value is a tree of plain objects, arrays, strings, numbers, booleans and null; what isn't filled in is left
 * out, so that the server's defaults apply. The server alone decides what is valid: its faults carry a JSON Pointer, and
 * each is shown at the field of that pointer, or else at the nearest one around it.
 */

import { ExactNumber, parseExact, writeJson } from "./exact.js";
import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { marked } from "./text.js";

const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;
const MASK = "***";
const DEEPEST = 12;

let forms = 0;
const newId = () => `form${++forms}`;

/** The pointer of a member or an item (RFC 6901).
 * @param {string} pointer @param {string | number} key */
export function below(pointer, key) {
  return `${pointer}/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

/**
 * What a schema asks for, in the words of this form.
 * @typedef {{kind: "choice" | "choices" | "flag" | "number" | "text" | "list" | "group" | "map" | "json", schema: any,
 *   isNullable: boolean, isSecret: boolean, description: string, fallback: any, takesNumber: boolean}} Shape
 */

/** @param {any} schema @param {any} defs @returns {Shape} */
export function shapeOf(schema, defs, depthOfItems = 0) {
  const about = { description: "", fallback: undefined, isSecret: false, isNullable: false };
  let now = schema === true || schema === undefined ? {} : schema;
  for (let depth = 0; depth < DEEPEST; depth++) {
    about.description ||= now.description ?? "";
    if (about.fallback === undefined) about.fallback = now.default;
    about.isSecret ||= now.writeOnly === true;
    if (typeof now.$ref === "string") {
      now = own(defs, now.$ref.split("/").at(-1) ?? "") ?? {};
      continue;
    }
    const variants = now.anyOf ?? now.oneOf ?? (now.allOf?.length === 1 ? now.allOf : null);
    if (!variants || now.type || now.properties) break; // beside these, they are only further conditions
    const rest = variants.filter((/** @type {any} */ each) => each.type !== "null");
    about.isNullable ||= rest.length < variants.length;
    if (rest.length === 1) {
      now = rest[0];
      continue;
    }
    const types = new Set(rest.map((/** @type {any} */ each) => each.type));
    const isScalar = [...types].every((type) => ["string", "number", "integer"].includes(type));
    const takesNumber = isScalar && (types.has("number") || types.has("integer"));
    return { ...about, kind: isScalar ? "text" : "json", schema: now, takesNumber };
  }
  let type = now.type;
  if (Array.isArray(type)) {
    about.isNullable ||= type.includes("null");
    const rest = type.filter((each) => each !== "null");
    type = rest.length === 1 ? rest[0] : undefined;
  }
  /** @type {Shape["kind"]} */
  let kind = "json";
  if (now.enum || now.const !== undefined) kind = "choice";
  else if (type === "boolean") kind = "flag";
  else if (type === "integer" || type === "number") kind = "number";
  else if (type === "string") kind = "text";
  else if (type === "array" && now.items && !now.prefixItems) {
    const isDeep = depthOfItems >= DEEPEST; // a list of itself
    kind = !isDeep && shapeOf(now.items, defs, depthOfItems + 1).kind === "choice" ? "choices" : "list";
  }
  else if (now.properties && Object.keys(now.properties).length) kind = "group";
  else if (type === "object" && typeof now.additionalProperties === "object") kind = "map";
  return { ...about, kind, schema: now, takesNumber: kind === "number" };
}

/** The value with its secrets as `***`. @param {any} value @param {any} schema @param {any} defs @returns {any} */
export function masked(value, schema, defs, depth = 0) {
  const shape = shapeOf(schema, defs);
  if (value === undefined || value === null || depth > DEEPEST) return value;
  if (shape.isSecret) return MASK;
  return descend(value, shape, (each, itsSchema) => masked(each, itsSchema, defs, depth + 1));
}

/** `value`, in which each `***` in the place of a secret is what `before` has there.
 * @param {any} value @param {any} before @param {any} schema @param {any} defs @returns {any} */
export function unmasked(value, before, schema, defs, depth = 0) {
  const shape = shapeOf(schema, defs);
  if (value === undefined || value === null || depth > DEEPEST) return value;
  if (shape.isSecret) return value === MASK ? before : value;
  return descend(value, shape, (each, itsSchema, key) => unmasked(each, own(before, key), itsSchema, defs, depth + 1));
}

/** @param {any} value @param {Shape} shape @param {(value: any, schema: any, key: any) => any} change */
function descend(value, shape, change) {
  if (shape.kind === "list" && Array.isArray(value)) {
    return value.map((item, at) => change(item, shape.schema.items, at));
  }
  const isObject = typeof value === "object" && !Array.isArray(value) && !(value instanceof ExactNumber);
  if (!isObject || (shape.kind !== "group" && shape.kind !== "map")) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, each]) => [key, change(each, memberSchema(shape.schema, key), key)]),
  );
}

/** A member of an object, which may be called like one that all objects have. @param {any} value @param {string | number} key */
const own = (value, key) => (value !== null && value !== undefined && Object.hasOwn(value, key) ? value[key] : undefined);

/** @param {any} schema @param {string} key */
function memberSchema(schema, key) {
  return own(schema.properties, key) ?? (typeof schema.additionalProperties === "object" ? schema.additionalProperties : {});
}

/**
 * @typedef {{pointer?: string | null, detail: string}} Fault
 * @typedef {{id: string, defs: any, faults: Map<string, string[]>}} Context
 */

/**
 * The fields of a schema.
 * @param {{schema: any, value: any, onChange: (value: any) => void, faults?: Fault[] | null, pointer?: string,
 *   hide?: string[], name?: string}} props `pointer`: where the value is in what is sent. `hide`: members without a
 *   field.
 */
export function SchemaForm({ schema, value, onChange, faults, pointer = "", hide = [], name = "payload" }) {
  const [id] = useState(newId);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const shown = useMemo(() => placed(faults ?? [], pointer, schema, value, hide), [faults]);
  useEffect(() => {
    const first = /** @type {HTMLElement | null} */ (faults?.length ? box.current?.querySelector("[aria-invalid=true]") : null);
    first?.focus();
  }, [faults]);
  const defs = schema?.$defs ?? {};
  const shape = shapeOf(schema, defs);
  const context = { id, defs, faults: shown };
  const isEmpty = shape.kind === "group" && Object.keys(shape.schema.properties).every((key) => hide.includes(key));
  return html`<div class="form" ref=${box}>
    ${shape.kind === "group" && !isEmpty
      ? html`<${Members} shape=${shape} value=${value} onChange=${onChange} pointer=${pointer} context=${context} hide=${hide} depth=${0} />`
      : shape.schema.properties || shape.schema.additionalProperties === false
        ? html`<p class="muted">This takes no fields.</p>`
        : html`<${Field} name=${name} schema=${schema} value=${value} onChange=${onChange} pointer=${pointer} context=${context} isRequired=${true} depth=${0} />`}
    <${Faults} context=${context} pointer=${pointer} isWhole=${shape.kind === "group"} />
  </div>`;
}

/** The faults by the pointer of the field at which they are shown: their own, or that of the nearest one around it.
 * @param {Fault[]} faults @param {string} start @param {any} schema @param {any} value @param {string[]} hide */
function placed(faults, start, schema, value, hide) {
  const defs = schema?.$defs ?? {};
  /** @type {Map<string, string[]>} */
  const found = new Map();
  for (const { pointer, detail } of faults) {
    if (pointer == null || (pointer !== start && !pointer.startsWith(`${start}/`))) continue;
    let at = start;
    let [itsSchema, itsValue] = [schema, value];
    for (const token of pointer.slice(start.length).split("/").slice(1)) {
      const key = token.replaceAll("~1", "/").replaceAll("~0", "~");
      const shape = shapeOf(itsSchema, defs);
      const isField =
        shape.kind === "group"
          ? Object.hasOwn(shape.schema.properties, key) && !(at === start && hide.includes(key))
          : (shape.kind === "map" || shape.kind === "list") && itsValue != null && Object.hasOwn(itsValue, key);
      if (!isField) break;
      at = `${at}/${token}`;
      itsSchema = shape.kind === "list" ? shape.schema.items : memberSchema(shape.schema, key);
      itsValue = own(itsValue, key);
    }
    const rest = pointer.slice(at.length + 1);
    found.set(at, [...(found.get(at) ?? []), rest ? `${rest}: ${detail}` : detail]);
  }
  return found;
}

/** @param {{context: Context, pointer: string, isWhole?: boolean}} props */
function Faults({ context, pointer, isWhole = true }) {
  const details = isWhole ? context.faults.get(pointer) : undefined;
  return details
    ? html`<p class="fault" role=${isWhole ? "alert" : undefined} id=${faultId(context, pointer)}>${details.join("; ")}</p>`
    : null;
}

/** @param {Context} context @param {string} pointer */
function fieldId(context, pointer) {
  return `${context.id}${pointer}`.replaceAll(/[\s%]/g, (blank) => `%${blank.charCodeAt(0)}`);
}

/** @param {Context} context @param {string} pointer */
function faultId(context, pointer) {
  return `${fieldId(context, pointer)}-fault`;
}

/** @param {any} props */
function Members({ shape, value, onChange, pointer, context, hide = [], depth }) {
  const required = new Set(shape.schema.required ?? []);
  const known = Object.keys(shape.schema.properties).filter((key) => !hide.includes(key));
  const set = (/** @type {string} */ key, /** @type {any} */ next) => {
    const { [key]: _, ...rest } = isRecord(value) ? value : {};
    onChange(next === undefined ? rest : { ...rest, [key]: next });
  };
  return known.map(
    (key) => html`<${Field} key=${key} name=${key} schema=${shape.schema.properties[key]} value=${isRecord(value) ? own(value, key) : undefined}
      onChange=${(/** @type {any} */ next) => set(key, next)} pointer=${below(pointer, key)} context=${context}
      isRequired=${required.has(key)} depth=${depth} />`,
  );
}

/** @param {any} value */
function isRecord(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value) && !(value instanceof ExactNumber);
}

/** One value: its label, what to type, what it is for, and what is wrong with it.
 * @param {any} props @returns {any} */
function Field({ name, schema, value, onChange, pointer, context, isRequired, depth, onRemove }) {
  const shape = shapeOf(schema, context.defs);
  const kind = depth > DEEPEST ? "json" : shape.kind;
  const id = fieldId(context, pointer);
  const faults = context.faults.get(pointer);
  const hintId = `${id}-hint`;
  const hint = [shape.description, emptyMeans(shape, isRequired)].filter(Boolean).join(" ");
  const described = [hint && hintId, faults && faultId(context, pointer)].filter(Boolean).join(" ");
  const common = {
    id,
    "aria-describedby": described || undefined,
    "aria-invalid": faults ? "true" : undefined,
    "aria-required": isRequired ? "true" : undefined,
  };
  const below = html`${hint && html`<p class="hint" id=${hintId}>${marked(hint)}</p>`}
    ${faults && html`<p class="fault" id=${faultId(context, pointer)}>${faults.join("; ")}</p>`}`;
  const label = html`${name}${isRequired && !onRemove ? html` <span class="muted">required</span>` : null}`;
  const remove = onRemove
    ? html`<button type="button" class="small" onClick=${onRemove} aria-label=${`Remove ${name}`}>Remove</button>`
    : null;
  const Many = { group: Group, list: List, choices: Choices, map: Pairs }[/** @type {"group"} */ (kind)];
  if (Many) {
    return html`<fieldset class="field" aria-describedby=${described || undefined} aria-invalid=${faults && kind === "choices" ? "true" : undefined}>
      <legend>${label} ${remove}</legend>
      ${below}
      <${Many} ...${{ name, shape, value, onChange, pointer, context, isRequired, depth: depth + 1 }} />
    </fieldset>`;
  }
  return html`<div class="field">
    <label for=${id}>${label}</label>
    <div class="control">${control(kind, shape, value, onChange, common, isRequired)} ${remove}</div>
    ${below}
  </div>`;
}

/** @param {Shape} shape @param {boolean} isRequired */
function emptyMeans(shape, isRequired) {
  if (shape.isSecret) return "Secret: it is never shown again.";
  const isShownThere = shape.kind === "choice" || shape.kind === "flag";
  if (isRequired || isShownThere || shape.fallback === undefined || shape.fallback === null) return "";
  const text = writeJson(shape.fallback);
  return text.length < 60 && text !== "[]" && text !== "{}" && text !== '""' ? `Default: ${text}.` : "";
}

/** @param {any} value */
const shown = (value) => (typeof value === "string" ? value : writeJson(value));

/** @param {string} kind @param {Shape} shape @param {any} value @param {(value: any) => void} onChange
 * @param {any} common @param {boolean} isRequired */
function control(kind, shape, value, onChange, common, isRequired) {
  const { schema } = shape;
  if (kind === "choice" || kind === "flag") {
    const choices = kind === "flag" ? [true, false] : (schema.enum ?? [schema.const]);
    const options = shape.isNullable && !choices.includes(null) ? [...choices, null] : choices;
    const at = options.findIndex((/** @type {any} */ each) => writeJson(each) === writeJson(value) && value !== undefined);
    const pick = (/** @type {any} */ event) => {
      const chosen = options[Number(event.target.value)];
      onChange(event.target.value === "" ? undefined : chosen);
    };
    return html`<select ...${common} onChange=${pick} value=${at < 0 ? "" : String(at)}>
      <option value="">${isRequired ? "choose" : shape.fallback === undefined ? "default" : `default: ${shown(shape.fallback)}`}</option>
      ${options.map((/** @type {any} */ each, /** @type {number} */ number) => html`<option value=${String(number)}>${shown(each)}</option>`)}
    </select>`;
  }
  if (kind === "json") return html`<${JsonField} common=${common} value=${value} onChange=${onChange} />`;
  const text = value instanceof ExactNumber ? value.source : value == null ? "" : typeof value === "string" ? value : writeJson(value);
  const write = (/** @type {any} */ event) => {
    const typed = event.target.value;
    const isNumber = shape.takesNumber && NUMBER.test(typed.trim()); // as it was typed: 1.0 stays 1.0
    onChange(typed === "" ? undefined : isNumber ? new ExactNumber(typed.trim()) : typed);
  };
  const example = schema.examples?.[0];
  const shared = { ...common, value: text, onInput: write, spellcheck: false, autocomplete: "off" };
  if (shape.isSecret) return html`<input type="password" ...${shared} autocomplete="new-password" />`;
  if (kind === "number") return html`<input type="text" inputmode="decimal" class="short" ...${shared} />`;
  if (text.includes("\n") || text.length > 80) return html`<textarea rows="4" ...${shared}></textarea>`;
  return html`<input type="text" ...${shared} placeholder=${typeof example === "string" ? `such as ${example}` : undefined} />`;
}

/**
 * A text that stands for a value, as it was typed: it is written anew only when the value is changed elsewhere.
 * @param {any} value @param {string} written @returns {[string, (text: string, value: any) => void]}
 */
function useTyped(value, written) {
  const [typed, set] = useState(/** @type {{ text: string, value: any } | null} */ (null));
  return [typed && typed.value === value ? typed.text : written, (text, next) => set({ text, value: next })];
}

/** Any JSON value; what isn't JSON is a text. @param {any} props */
function JsonField({ common, value, onChange }) {
  const [text, type] = useTyped(value, value === undefined ? "" : typeof value === "string" ? value : writeJson(value));
  const write = (/** @type {any} */ event) => {
    const now = event.target.value;
    const next = now.trim() === "" ? undefined : readValue(now);
    type(now, next);
    onChange(next);
  };
  return html`<textarea rows="2" ...${common} value=${text} onInput=${write} spellcheck=${false} placeholder="JSON, or else a text"></textarea>`;
}

/** @param {string} text */
function readValue(text) {
  try {
    return parseExact(text);
  } catch {
    return text;
  }
}

/** @param {any} props */
function Group({ name, shape, value, onChange, pointer, context, isRequired, depth }) {
  if (!isRecord(value) && !isRequired) {
    return html`<button type="button" class="small" onClick=${() => onChange(blank(shape.schema, context.defs))}>Add ${name}</button>`;
  }
  return html`<${Members} shape=${shape} value=${value} onChange=${onChange} pointer=${pointer} context=${context} depth=${depth} />
    ${!isRequired && html`<button type="button" class="small" onClick=${() => onChange(undefined)}>Leave out ${name}</button>`}`;
}

/** @param {any} props */
function List({ name, shape, value, onChange, pointer, context, isRequired, depth }) {
  const items = Array.isArray(value) ? value : [];
  const change = (/** @type {number} */ at, /** @type {any} */ next) => onChange(items.map((each, place) => (place === at ? next : each)));
  const without = (/** @type {number} */ at) => items.filter((_, place) => place !== at);
  return html`${items.map(
      (item, at) => html`<${Field} key=${at} name=${`${name} ${at + 1}`} schema=${shape.schema.items} value=${item}
        onChange=${(/** @type {any} */ next) => change(at, next ?? blank(shape.schema.items, context.defs))} pointer=${below(pointer, at)}
        context=${context} isRequired=${true} depth=${depth} onRemove=${() => onChange(items.length > 1 || isRequired ? without(at) : undefined)} />`,
    )}
    <button type="button" class="small" onClick=${() => onChange([...items, blank(shape.schema.items, context.defs)])}>Add to ${name}</button>`;
}

/** Some of a few known values. @param {any} props */
function Choices({ shape, value, onChange, context, isRequired }) {
  const items = Array.isArray(value) ? value : [];
  const { schema } = shapeOf(shape.schema.items, context.defs);
  const are = items.map((item) => writeJson(item));
  const change = (/** @type {any} */ each, /** @type {boolean} */ isOn) => {
    const next = isOn ? [...items, each] : items.filter((_, at) => are[at] !== writeJson(each));
    onChange(next.length || isRequired ? next : undefined);
  };
  return html`<div class="choices">
    ${(schema.enum ?? [schema.const]).map(
      (/** @type {any} */ each) => html`<label><input type="checkbox" checked=${are.includes(writeJson(each))} onChange=${(/** @type {any} */ event) => change(each, event.target.checked)} /> ${shown(each)}</label>`,
    )}
  </div>`;
}

/** Members with names of one's own. @param {any} props */
function Pairs({ name, shape, value, onChange, pointer, context, isRequired, depth }) {
  const [key, setKey] = useState("");
  const entries = isRecord(value) ? Object.entries(value) : [];
  const { id } = context;
  const schema = shape.schema.additionalProperties;
  const set = (/** @type {[string, any][]} */ next) => onChange(next.length || isRequired ? Object.fromEntries(next) : undefined);
  const add = () => {
    if (!key) return;
    set([...entries.filter(([each]) => each !== key), [key, blank(schema, context.defs)]]);
    setKey("");
  };
  const typed = (/** @type {any} */ event) => setKey(event.target.value);
  const enter = (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && (event.preventDefault(), add());
  return html`${entries.map(
      ([each, item]) => html`<${Field} key=${each} name=${each} schema=${schema} value=${item} pointer=${below(pointer, each)}
        onChange=${(/** @type {any} */ next) => set(entries.map(([k, v]) => [k, k === each ? (next ?? blank(schema, context.defs)) : v]))}
        context=${context} isRequired=${true} depth=${depth} onRemove=${() => set(entries.filter(([k]) => k !== each))} />`,
    )}
    <div class="control">
      <input type="text" id=${`${id}${pointer}-name`} aria-label=${`New name in ${name}`} placeholder="name" value=${key} onInput=${typed} onKeyDown=${enter} />
      <button type="button" class="small" onClick=${add}>Add to ${name}</button>
    </div>`;
}

/** The value of a form in which nothing is filled in; undefined, if it needs something. @param {any} schema @returns {any} */
export function started(schema) {
  const value = blank(schema);
  return value !== null && typeof value === "object" ? value : undefined;
}

/** What a new value holds: of an object, the lists and objects that it must have, so that each may stay empty.
 * @param {any} schema @param {any} [defs] @returns {any} */
function blank(schema, defs = schema?.$defs ?? {}, depth = 0) {
  const { kind, schema: its } = shapeOf(schema, defs);
  if (kind === "list" || kind === "choices") return [];
  if (kind !== "group") return kind === "map" ? {} : kind === "text" || kind === "json" ? "" : null;
  const isHolder = (/** @type {string} */ key) => ["group", "map", "list", "choices"].includes(shapeOf(its.properties[key], defs).kind);
  const held = (its.required ?? []).filter((/** @type {string} */ key) => Object.hasOwn(its.properties, key) && isHolder(key));
  return Object.fromEntries(depth < DEEPEST ? held.map((/** @type {string} */ key) => [key, blank(its.properties[key], defs, depth + 1)]) : []);
}

/**
 * The value of a form as JSON, to read and to edit. Secrets are `***`; one that stays `***` stays as it is.
 * @param {{schema: any, value: any, onChange: (value: any) => void, label?: string}} props
 */
export function JsonBeside({ schema, value, onChange, label = "The same as JSON" }) {
  const [fault, setFault] = useState("");
  const [id] = useState(newId);
  const defs = schema?.$defs ?? {};
  const written = writeJson(masked(value ?? {}, schema, defs), 2);
  const [text, type] = useTyped(value, written);
  const isWrong = fault !== "" && text !== written;
  const write = (/** @type {any} */ event) => {
    try {
      const next = unmasked(parseExact(event.target.value), value, schema, defs);
      type(event.target.value, next);
      onChange(next);
      setFault("");
    } catch (error) {
      type(event.target.value, value);
      setFault(`Not JSON yet, so the value before counts: ${/** @type {Error} */ (error).message}`);
    }
  };
  return html`<div class="field">
    <label for=${id}>${label}</label>
    <textarea id=${id} class="mono" rows=${Math.min(24, Math.max(6, text.split("\n").length + 1))} spellcheck=${false} value=${text}
      onInput=${write} aria-invalid=${isWrong ? "true" : undefined} aria-describedby=${isWrong ? `${id}-fault` : undefined}></textarea>
    ${isWrong && html`<p class="fault" id=${`${id}-fault`} role="alert">${fault}</p>`}
  </div>`;
}
