// @ts-check
/** Preact and htm for all other modules: the only one, besides plot.js, that imports vendored code. */
import { h } from "../vendor/preact.js";
import htm from "../vendor/htm.js";

export { Component, Fragment, createContext, render } from "../vendor/preact.js";
export { useCallback, useContext, useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "../vendor/hooks.js";

/** Markup: html`<p>${text}</p>`. Text is always text, never HTML. */
export const html = htm.bind(h);
