// @ts-check
/** The search box: completion by words, their meaning and an example. Enter, or leaving a chosen word, changes the address. */
import { html, useEffect, useRef, useState } from "./preact.js";
import { go, href } from "./router.js";
import { complete, filterOf, format, parse } from "./search.js";
import { useData } from "./state.js";
import { STATUSES } from "./status.js";

/** The box as pages show it: a search leads to the page Tasks. The names of types and queues are read when it gets the
 * focus. @param {{ filter?: import("./search.js").Filter }} props */
export function TaskSearch({ filter = {} }) {
  const [isWanted, want] = useState(false);
  const types = useData(isWanted ? "/types" : null);
  const queues = useData(isWanted ? "/queues" : null);
  const names = (/** @type {any[] | undefined} */ list) => (list ?? []).map(({ name }) => name);
  const known = { types: names(types.value?.types), queues: names(queues.value?.queues), statuses: Object.keys(STATUSES) };
  const search = (/** @type {import("./search.js").Filter} */ wanted) => go(href("tasks", filterOf(wanted)));
  return html`<div onFocusIn=${() => want(true)}><${SearchBox} filter=${filter} known=${known} onSearch=${search} /></div>`;
}

/**
 * @param {{ filter: import("./search.js").Filter, known: Record<string, string[]>,
 *   onSearch: (filter: import("./search.js").Filter) => void }} props
 */
export function SearchBox({ filter, known, onSearch }) {
  const committed = format(filter);
  const [text, setText] = useState(committed);
  const [at, setAt] = useState(committed.length);
  const [isOpen, setOpen] = useState(false);
  const [active, setActive] = useState(-1);
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => setText(committed), [committed]); // Back, or a link, has changed it
  const { start, end, items } = isOpen ? complete(text, at, known) : { start: 0, end: 0, items: [] };
  const { faults } = parse(text);

  const commit = (/** @type {string} */ written) => {
    setOpen(false);
    setActive(-1);
    const { filter: wanted, faults: wrong } = parse(written);
    if (!wrong.length) onSearch(wanted);
  };
  const put = (/** @type {string} */ insert) => {
    const next = text.slice(0, start) + insert + text.slice(end).trimStart();
    const place = start + insert.length;
    setText(next);
    setAt(place);
    setActive(-1);
    field.current?.focus();
    requestAnimationFrame(() => field.current?.setSelectionRange(place, place));
    if (insert.endsWith(" ")) commit(next);
  };
  const keyed = (/** @type {KeyboardEvent} */ event) => {
    const { key } = event;
    if (key === "ArrowDown" || key === "ArrowUp") {
      const by = key === "ArrowDown" ? 1 : -1;
      if (!isOpen) setOpen(true);
      else if (items.length) setActive((active + by + items.length + (active < 0 && by < 0 ? 1 : 0)) % items.length);
    } else if (key === "Enter") {
      if (items[active]) put(items[active].insert);
      else commit(text);
    } else if (key === "Escape") {
      if (!isOpen || !items.length) field.current?.blur();
      setOpen(false);
      setActive(-1);
    } else return;
    event.preventDefault();
  };
  const moved = () => setAt(field.current?.selectionStart ?? text.length);
  const typed = (/** @type {any} */ event) => {
    setText(event.target.value);
    setAt(event.target.selectionStart ?? event.target.value.length);
    setOpen(true);
    setActive(-1);
  };
  return html`<form class="search" role="search" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), commit(text))}>
    <input ref=${field} type="text" data-search class="search-text" role="combobox" aria-label="Search tasks" placeholder="status:failed type:resize since:1h, an id, or text of the error"
      aria-expanded=${isOpen && items.length > 0 ? "true" : "false"} aria-controls="search-list" aria-autocomplete="list"
      aria-activedescendant=${items[active] ? `search-${active}` : undefined} aria-invalid=${!isOpen && faults.length ? "true" : undefined}
      aria-describedby="search-faults" autocomplete="off" autocapitalize="off" spellcheck=${false} value=${text}
      onInput=${typed} onKeyDown=${keyed} onKeyUp=${moved} onClick=${() => (moved(), setOpen(true))} onBlur=${() => setOpen(false)} />
    ${text && html`<button type="button" class="plain small search-clear" aria-label="Clear the search" onClick=${() => (setText(""), commit(""))}>✕</button>`}
    <button class="small search-go">Search</button>
    <ul id="search-list" class="completions" role="listbox" aria-label="What can be searched for" hidden=${!items.length}>
      ${items.map(
        (item, place) => html`<li id=${`search-${place}`} key=${item.insert} role="option" aria-selected=${place === active ? "true" : "false"}
          onMouseDown=${(/** @type {Event} */ event) => (event.preventDefault(), put(item.insert))}>
          <span class="mono">${item.label}</span> <span class="muted">${item.meaning}</span> <span class="mono muted example">${item.example}</span>
        </li>`,
      )}
    </ul>
    <p id="search-faults" class="fault" role="status">${!isOpen && faults.length > 0 && `${faults.join(". ")}.`}</p>
  </form>`;
}
