// @ts-check
/** JSON as it was written: numbers that JavaScript would change keep their text. */

/** A number as it was written: 12345678901234567890, 1.0, 1e400. */
export class ExactNumber {
  /** @param {string} source */
  constructor(source) {
    this.source = source;
  }
  toString() {
    return this.source;
  }
}

const TOKEN = /"(?:[^"\\]|\\[^])*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/**
 * Parse JSON; numbers whose text JavaScript would change, such as 1.0, become `ExactNumber`. Throws SyntaxError.
 * @param {string} text
 */
export const parseExact = (text) => parse(text, (source) => String(Number(source)) !== source);

/**
 * Parse JSON; numbers that would lose digits become `ExactNumber`. Throws SyntaxError.
 * @param {string} text
 */
export const parseJson = (text) => (/\d{16}|\d[eE][+-]?\d{3}/.test(text) ? parse(text, losesDigits) : JSON.parse(text));

/** @param {string} source */
function losesDigits(source) {
  const value = Number(source);
  const digits = source.replace(/[eE].*/, "").replace(/\D/g, "").replace(/^0+/, "");
  if (!Number.isFinite(value) || (value === 0 && digits !== "")) return true;
  return digits.length > 15 && String(value) !== source;
}

/** @param {string} text @param {(source: string) => boolean} isKept */
function parse(text, isKept) {
  JSON.parse(text); // what is replaced below could hide a fault
  const name = `exact ${crypto.getRandomValues(new Uint32Array(2)).join("")}`; // no key of the document
  const marked = text.replace(TOKEN, (token) => (token[0] === '"' || !isKept(token) ? token : `{"${name}":"${token}"}`));
  return JSON.parse(marked, (_, value) =>
    value !== null && typeof value === "object" && typeof value[name] === "string" ? new ExactNumber(value[name]) : value,
  );
}

/**
 * JSON of a value in which numbers may be `ExactNumber`. Members that are undefined are left out.
 * @param {any} value @param {number} [indent] spaces for each level; 0: all in one line
 */
export const writeJson = (value, indent = 0) => written(value, indent, "");

/** @param {any} value @param {number} indent @param {string} margin @returns {string} */
function written(value, indent, margin) {
  if (value instanceof ExactNumber) return value.source;
  if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
  const inner = margin + " ".repeat(indent);
  const isList = Array.isArray(value);
  const members = isList
    ? value.map((each) => written(each, indent, inner))
    : Object.entries(value)
        .filter(([, each]) => each !== undefined)
        .map(([key, each]) => `${JSON.stringify(key)}:${indent ? " " : ""}${written(each, indent, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  if (!members.length) return open + close;
  if (!indent) return open + members.join(",") + close;
  return `${open}\n${inner}${members.join(`,\n${inner}`)}\n${margin}${close}`;
}
