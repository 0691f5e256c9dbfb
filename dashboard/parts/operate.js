// @ts-check
/** What the pages for operators share: their heads, facts, actions that ask first, and pages of a listing. */
import { confirm, toast } from "./dialog.js";
import { html, useContext } from "./preact.js";
import { href } from "./router.js";
import { SessionContext, useMay } from "./session.js";
import { figure } from "./time.js";

/**
 * What the caller may do; what isn't allowed isn't shown. A key of a project can't change what all projects share, and one
 * that is bound to types or queues can't stop what isn't in them.
 * @returns {{read: boolean, readAll: boolean, start: boolean, startAll: boolean, stop: boolean, stopAll: boolean, admin: boolean, ofAll: boolean,
 *   pause: (queue: string) => boolean, may: ReturnType<typeof useMay>}}
 */
export function useRights() {
  const { project, types, queues } = useContext(SessionContext);
  const may = useMay();
  const [read, start, stop] = ["tasks:read", "tasks:write", "tasks:stop"].map((scope) => may(scope));
  const isOfAll = !project;
  const stopAll = stop && isOfAll && !types && !queues;
  const pause = (/** @type {string} */ queue) => stopAll || (stop && isOfAll && !types && may("tasks:stop", { queue }));
  return { read, readAll: read && isOfAll, start, startAll: start && isOfAll, stop, stopAll, admin: may("admin"), ofAll: isOfAll, pause, may };
}

/** The head of a page: where it is, its name, what can be done. @param {{ title: any, above?: [string, string][], children?: any }} props */
export const Head = ({ title, above = [], children }) => html`<header class="head">
  ${above.length > 0 && html`<nav class="crumbs" aria-label="Above">${above.map(([name, link]) => html`<a href=${link}>${name}</a><span aria-hidden="true"> › </span>`)}</nav>`}
  <h1>${title}</h1>
  ${children && html`<div class="buttons">${children}</div>`}
</header>`;

/** Facts by name; those without a value are left out. @param {{ of: [string, any][] }} props */
export const Facts = ({ of }) => html`<dl class="tiles">
  ${of
    .filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false)
    .map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
</dl>`;

/**
 * Ask, do it, say that it was done, and read anew.
 * @param {import("./dialog.js").Question & { done: string, reload?: () => any }} question
 */
export async function act({ done, reload, ...question }) {
  const answer = await confirm(question);
  if (answer === undefined) return undefined;
  if (done) toast(done);
  await reload?.();
  return answer;
}

/** A button of a row or a head. `of`: what it is about, for those who don't see the row. @param {{ children: any, onClick: () => any, of?: string, isSmall?: boolean }} props */
export const Button = ({ children, onClick, of, isSmall = false }) =>
  html`<button type="button" class=${isSmall ? "small" : ""} aria-label=${of && `${children} ${of}`} onClick=${onClick}>${children}</button>`;

/** The link to the next page of a listing, if there is one. @param {{ path: string, query: Record<string, string>, cursor?: string }} props */
export const NextPage = ({ path, query, cursor }) =>
  cursor || query.cursor
    ? html`<p class="pages">
        ${query.cursor && html`<a href=${href(path, { ...query, cursor: undefined })}>First page</a>`}
        ${cursor && html`<a href=${href(path, { ...query, cursor })}>Next page</a>`}
      </p>`
    : null;

/** A bar, and which shares of it have which colour. @param {{ shares: [kind: string, share: number][] }} props */
export const Bar = ({ shares }) => html`<span class="track" aria-hidden="true">${shares.map(([kind, share]) => share > 0 && html`<span key=${kind} class=${kind} style=${{ width: `${100 * share}%` }}></span>`)}</span>`;

/** A text to copy: a command, or a secret that is shown now. @param {{ children: string }} props */
export const Command = ({ children }) => {
  const copied = () => toast("Copied");
  const refused = () => toast("The browser doesn't allow to copy: select the text", { isProblem: true });
  const copy = () => (navigator.clipboard ? navigator.clipboard.writeText(children).then(copied, refused) : refused());
  return html`<p class="command"><code>${children}</code> <button type="button" class="small" onClick=${copy}>Copy</button></p>`;
};

/** `3.2/s`; `0.4/min` if it is less than one in ten seconds. @param {number | null | undefined} perS */
export function rate(perS) {
  if (perS === null || perS === undefined) return "–";
  if (perS === 0) return "0/s";
  return perS >= 0.1 ? `${figure(perS >= 10 ? Math.round(perS) : Number(perS.toFixed(1)))}/s` : `${figure(Number((perS * 60).toFixed(1)))}/min`;
}

/** Names, the first ones. @param {readonly string[]} names */
export const listed = (names, most = 4) => (names.length > most ? `${names.slice(0, most).join(", ")} and ${names.length - most} more` : names.join(", "));
