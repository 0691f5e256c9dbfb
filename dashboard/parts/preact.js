// @ts-check
/** Preact and htm for all other modules: the only one, besides plot.js, that imports vendored code. */
import { h } from "../vendor/preact.js";
import htm from "../vendor/htm.js";
import { ExactNumber } from "./exact.js";
import { isVisible, visible, visibleParts } from "./visible.js";

export { Component, Fragment, createContext, render } from "../vendor/preact.js";
export { useCallback, useContext, useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "../vendor/hooks.js";

/** Markup: html`<p>${text}</p>`. Text is always text, never HTML, and characters that a browser would hide have names. */
export const html = htm.bind(element);

const SAID = ["title", "aria-label", "placeholder"];
const WITHOUT_MARKUP = new Set(["option", "title", "text"]); // of HTML and of SVG

/** @param {any} type @param {any} props @param {...any} children */
function element(type, props, ...children) {
  if (typeof type !== "string") return h(type, props, ...children);
  const hidden = SAID.filter((name) => typeof props?.[name] === "string" && !isVisible(props[name]));
  const all = hidden.length ? { ...props, ...Object.fromEntries(hidden.map((name) => [name, visible(props[name])])) } : props;
  return h(type, all, ...children.map((child) => shown(child, WITHOUT_MARKUP.has(type))));
}

/** @param {any} child @param {boolean} isText @returns {any} */
function shown(child, isText) {
  if (Array.isArray(child)) return child.map((each) => shown(each, isText));
  if (child instanceof ExactNumber) return child.source;
  if (typeof child !== "string" || isVisible(child)) return child;
  if (isText) return visible(child);
  return visibleParts(child).map((part) => (typeof part === "string" ? part : h("span", { class: "hidden-char" }, part.hidden)));
}
