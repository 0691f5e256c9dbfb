// @ts-check
/**
 * Where the page is: a path and a query in the URL's fragment, like `#/tasks?status=failed`.
 * The names in the query are those of the API.
 */
import { useEffect, useState } from "./preact.js";

/**
 * @typedef {Record<string, string>} Query
 * @typedef {{ path: string, query: Query }} Place
 */

/** The place that a fragment names. @param {string} fragment @returns {Place} */
export function parse(fragment) {
  const text = fragment.replace(/^#?\/?/, "");
  const cut = text.indexOf("?");
  const [path, search] = cut < 0 ? [text, ""] : [text.slice(0, cut), text.slice(cut + 1)];
  return { path, query: Object.fromEntries(new URLSearchParams(search)) };
}

/** The fragment of a place, for links. Empty values are left out. @param {string} path @param {Record<string, any>} [query] */
export function href(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return `#/${path}${search && `?${search}`}`;
}

/** A path of these parts, each of which may hold any character. @param {...string} parts */
export const path = (...parts) => parts.map(encodeURIComponent).join("/");

/** Go to a place. Back returns, unless it `replace`s the present one. @param {string} fragment @param {{ replace?: boolean }} [how] */
export function go(fragment, { replace = false } = {}) {
  if (replace) {
    history.replaceState(null, "", fragment);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = fragment;
  }
}

/** The present place; the component is rendered again when it changes. @returns {Place} */
export function usePlace() {
  const [fragment, set] = useState(location.hash);
  useEffect(() => {
    const changed = () => set(location.hash);
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return parse(fragment);
}

/**
 * The parameters of a path that fits a pattern such as `tasks/:id`; null if it doesn't fit.
 * @param {string} pattern @param {string} path @returns {Query | null}
 */
export function match(pattern, path) {
  const [wanted, given] = [pattern.split("/"), path.split("/")];
  if (wanted.length !== given.length) return null;
  /** @type {Query} */
  const params = {};
  for (const [index, part] of wanted.entries()) {
    if (part.startsWith(":")) params[part.slice(1)] = decode(given[index]);
    else if (part !== given[index]) return null;
  }
  return params;
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a `%` that was typed by hand
  }
}
