// @ts-check
/** The page's frame: the rail, the page that the fragment names, the login, the help. */
import { PAGES } from "./pages/index.js";
import { Dialog, toast } from "./parts/dialog.js";
import { areOff, shortcuts, switchOff, useKeys } from "./parts/keys.js";
import { Component, html, render, useEffect, useRef, useState } from "./parts/preact.js";
import { go, href, match, usePlace } from "./parts/router.js";
import { SessionContext, onOtherTab, readSession, signOut, useMay } from "./parts/session.js";
import { Loaded, Empty, useAnswer } from "./parts/state.js";
import Login from "./pages/login.js";

const THEME = "taskpool.theme";

function App() {
  const session = useAnswer("session", readSession);
  useEffect(() => {
    addEventListener("signed-out", session.reload);
    const forget = onOtherTab(session.reload);
    return () => {
      removeEventListener("signed-out", session.reload);
      forget();
    };
  }, []);
  const frame = (/** @type {import("./parts/session.js").Session} */ who) => {
    if (who.needs_key && who.name === null) return html`<${Login} onSignedIn=${session.reload} />`;
    const identity = JSON.stringify([who.key, who.name, who.scopes]); // what one has seen isn't shown to another
    return html`<${SessionContext.Provider} key=${identity} value=${who}><${Frame} session=${who} reload=${session.reload} /><//>`;
  };
  // An address from which wrong keys came isn't asked about its old cookie any more; a valid key is still accepted.
  const isBarred = session.value === undefined && session.problem?.status === 429;
  return html`${isBarred ? html`<${Login} onSignedIn=${session.reload} />` : html`<${Loaded} of=${session}>${frame}<//>`}
    <div id="toasts" role="status"></div>`;
}

/** @param {{ session: import("./parts/session.js").Session, reload: () => void }} props */
function Frame({ session, reload }) {
  const place = usePlace();
  const [isMenuOpen, openMenu] = useState(false);
  const [isHelpOpen, openHelp] = useState(false);
  const main = useRef(/** @type {HTMLElement | null} */ (null));
  const found = PAGES.map((page) => ({ page, params: match(page.path, place.path) })).find(({ params }) => params);
  const may = useMay();
  const rail = PAGES.filter((page) => page.inRail && (!page.scope || may(page.scope)) && !(page.ofAll && session.project));

  useEffect(() => {
    openMenu(false);
    document.title = `${found?.page.title ?? "Not found"} · Taskpool`;
    scrollTo(0, 0);
    if (document.activeElement !== document.body) main.current?.focus({ preventScroll: true });
  }, [place.path]);

  useKeys([
    { keys: "/", help: "search", run: () => /** @type {HTMLElement | null} */ (document.querySelector("input[data-search], input[type=search]"))?.focus() },
    ...rail.filter(({ key }) => key).map(({ key, path, title }) => ({ keys: `g ${key}`, help: title, run: () => go(href(path)) })),
    { keys: "?", help: "this help", run: () => openHelp(true) },
  ]);

  const leave = async () => {
    await signOut();
    reload();
  };
  return html`<a class="skip" href="#main" onClick=${(/** @type {Event} */ event) => (event.preventDefault(), main.current?.focus())}>Skip to the page</a>
    <div class="frame">
      <header class="bar">
        <button class="plain menu-button" aria-expanded=${isMenuOpen} aria-controls="rail" onClick=${() => openMenu(!isMenuOpen)}>☰<span class="only-read">Menu</span></button>
        <a class="brand" href=${href("")}>Taskpool</a>
      </header>
      <nav id="rail" class=${isMenuOpen ? "rail open" : "rail"} aria-label="Pages">
        <a class="brand" href=${href("")}>Taskpool</a>
        ${rail.map((page) => html`<a href=${href(page.path)} aria-current=${isWithin(place.path, page.path) ? "page" : undefined}>${page.title}</a>`)}
        <div class="foot">
          ${session.name !== null && html`<p class="small muted">${session.name}${session.project && html` · ${session.project}`}</p>`}
          ${session.read_only && html`<p><span class="badge">read-only</span></p>`}
          ${session.needs_key && html`<button class="small plain" onClick=${leave}>Sign out</button>`}
          <button class="small plain" onClick=${switchTheme}>Light or dark</button>
          <button class="small plain" onClick=${() => openHelp(true)}>Keyboard <kbd>?</kbd></button>
        </div>
      </nav>
      <main id="main" ref=${main} tabindex="-1">
        ${
          found
            ? html`<${Boundary} key=${found.page.path} place=${JSON.stringify(place)}><${Opened} page=${found.page} params=${found.params} query=${place.query} /><//>`
            : html`<h1>Not found</h1><${Empty} title="There is no such page"><a href=${href("")}>Go to Home</a><//>`
        }
      </main>
    </div>
    ${isHelpOpen && html`<${Help} onClose=${() => openHelp(false)} />`}`;
}

/** @param {string} path @param {string} page */
const isWithin = (path, page) => path === page || (page !== "" && path.startsWith(`${page}/`));

/** Loads a page's module and shows it. @param {{ page: import("./pages/index.js").PageEntry, params: any, query: any }} props */
function Opened({ page, params, query }) {
  const [Page, set] = useState(/** @type {any} */ (null));
  const [isMissing, miss] = useState(false);
  useEffect(() => {
    page.load().then(
      (module) => set(() => module.default),
      () => miss(true), // the connection is lost, or the server is of another release now
    );
  }, [page]);
  if (isMissing) return html`<${Empty} title="This page can't be loaded">The API can't be reached, or has another release now. <button onClick=${() => location.reload()}>Load it again</button><//>`;
  return Page && html`<${Page} params=${params} query=${query} />`;
}

/** Loads the modules of all pages, so that one that is opened later is of the same release. */
const loadAll = () => PAGES.forEach((page) => page.load().catch(() => {}));

/** Shows what went wrong in a page, instead of an empty one. The rail still works. */
class Boundary extends Component {
  /** @param {Error} error */
  componentDidCatch(error) {
    console.error(error);
    this.setState({ error });
  }
  /** @param {any} props @param {any} state Another place may have no fault. */
  static getDerivedStateFromProps({ place }, { seen }) {
    return place === seen ? null : { seen: place, error: null };
  }
  render(/** @type {any} */ { children }, /** @type {any} */ { error }) {
    if (!error) return children;
    return html`<${Empty} title="This page has a fault">${String(error)}<br /><button onClick=${() => location.reload()}>Load it again</button><//>`;
  }
}

/** @param {{ onClose: () => void }} props */
function Help({ onClose }) {
  const [off, set] = useState(areOff());
  const change = (/** @type {any} */ event) => {
    switchOff(event.target.checked);
    set(event.target.checked);
  };
  const keys = (/** @type {string} */ text) => text.split(" ").map((each) => html`<kbd>${each}</kbd> `);
  return html`<${Dialog} title="Keyboard" onClose=${onClose}>
    <table class="keys" aria-label="Shortcuts"><tbody>
      ${shortcuts().map((each) => html`<tr><td>${keys(each.keys)}</td><td>${each.help}</td></tr>`)}
      <tr><td><kbd>Esc</kbd></td><td>close</td></tr>
    </tbody></table>
    <label><input type="checkbox" checked=${off} onChange=${change} /> Switch shortcuts off</label>
    <div class="buttons"><button class="primary" autofocus onClick=${onClose}>Close</button></div>
  <//>`;
}

/** From what the system says to the other one, and back. */
function switchTheme() {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const { dataset } = document.documentElement;
  dataset.theme = (dataset.theme ?? (isDark ? "dark" : "light")) === "dark" ? "light" : "dark";
  localStorage.setItem(THEME, dataset.theme);
  dispatchEvent(new CustomEvent("theme"));
}

const theme = localStorage.getItem(THEME);
if (theme) document.documentElement.dataset.theme = theme;
addEventListener("unhandledrejection", ({ reason }) => toast(String(reason), { isProblem: true }));
addEventListener("load", loadAll);
render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
