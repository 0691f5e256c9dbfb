// @ts-check
/** Tracebacks: the user's frames stand out, those of libraries are folded. */
import { html, useState } from "./preact.js";
import { Text } from "./text.js";
import { folded, innermost, parseTraceback } from "./traceback.js";

const SHOWN = 20; // lines of a traceback

/** The user's innermost frame, and the whole traceback. @param {{ text: string }} props */
export function Failure({ text }) {
  const parts = parseTraceback(text);
  const frame = innermost(parts);
  return html`${frame && html`<${FrameView} frame=${frame} isFirst />`}<${Traceback} parts=${parts} />`;
}

/** @param {{ frame: import("./traceback.js").Frame, isFirst?: boolean }} props */
export function FrameView({ frame, isFirst = false }) {
  const place = `${frame.file}:${frame.line}`;
  return html`<div class=${`stack-frame ${frame.isUser ? "is-user" : ""} ${isFirst ? "is-first" : ""}`}>
    <div class="stack-place"><span class="mono path" title=${place}><${Text} text=${place} /></span> in <span class="mono"><${Text} text=${frame.name} /></span></div>
    ${frame.code && html`<pre><code><${Text} text=${frame.code} /></code></pre>`}
  </div>`;
}

/** Frames of libraries are folded. @param {{ parts: ReturnType<typeof parseTraceback>, title?: string }} props */
export function Traceback({ parts, title = "Traceback" }) {
  const [isWhole, setWhole] = useState(false);
  const groups = folded(parts);
  const lines = groups.map((group) => ("text" in group ? group.text.split("\n").length : 1 + ("code" in group && group.code ? 1 : 0)));
  let count = 0;
  const fitting = groups.findIndex((_, at) => (count += lines[at]) > SHOWN);
  const shown = isWhole || fitting < 0 ? groups : groups.slice(-Math.max(3, Math.floor(SHOWN / 2))); // the end says what happened
  const isCut = shown.length < groups.length;
  return html`<details class="traceback" open>
    <summary>${title}</summary>
    ${isCut && html`<button type="button" class="small" onClick=${() => setWhole(true)}>All ${groups.length} parts</button>`}
    ${shown.map((group, at) => {
      if (group.kind === "text") return html`<pre key=${at}><${Text} text=${group.text} /></pre>`;
      if (group.kind === "frame") return html`<${FrameView} key=${at} frame=${group} />`;
      const { frames } = group;
      return html`<details key=${at} class="folded">
        <summary>${frames.length === 1 ? "1 frame of a library" : `${frames.length} frames of libraries`}</summary>
        ${frames.map((frame, index) => html`<${FrameView} key=${index} frame=${frame} />`)}
      </details>`;
    })}
  </details>`;
}
