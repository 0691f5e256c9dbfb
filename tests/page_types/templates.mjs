// Rewrites modules in place: calls stand where html`...` was, so that TypeScript checks what components are given.
// Usage: node templates.mjs FILE...
import { readFileSync, writeFileSync } from "node:fs";
import htm from "htm";
import ts from "typescript";

const [MARK, SPREAD] = ["\u0001", "\u0002"];

/** An expression of a template, while htm reads it: in a text it leaves its mark, as `...${props}` a member. */
function placeOf(at) {
  return { [SPREAD + at]: true, toString: () => `${MARK}${at}${MARK}` };
}
const isPlace = (value) => typeof value === "object" && value !== null && String(value).startsWith(MARK);

/** The text from `start` to `end` of a file, in which each template is a call. */
function rewritten(file, node, start, end) {
  let text = "";
  let at = start;
  const visit = (each) => {
    if (ts.isTaggedTemplateExpression(each) && each.tag.getText(file) === "html") {
      const from = each.getStart(file);
      const lines = (part) => part.split("\n").length;
      const call = callOf(file, each.template);
      text += file.text.slice(at, from) + call + "\n".repeat(Math.max(0, lines(each.getText(file)) - lines(call)));
      at = each.end;
    } else ts.forEachChild(each, visit);
  };
  visit(node);
  return text + file.text.slice(at, end);
}

/** A template as a call. */
function callOf(file, template) {
  const isPlain = ts.isNoSubstitutionTemplateLiteral(template);
  const spans = isPlain ? [] : [...template.templateSpans];
  const statics = isPlain ? [template.text] : [template.head.text, ...spans.map((span) => span.literal.text)];
  const expressions = spans.map(({ expression }) => rewritten(file, expression, expression.pos, expression.end));
  const tree = htm.apply((type, props, ...children) => ({ type, props: props ?? {}, children }), [
    statics,
    ...spans.map((_, at) => placeOf(at)),
  ]);
  const of = (value) => {
    if (Array.isArray(value)) return `[${value.map(of).join(", ")}]`;
    if (isPlace(value)) return `(${expressions[Number(String(value).split(MARK)[1])]})`;
    if (typeof value === "string") {
      const parts = value.split(MARK).map((part, at) => (at % 2 ? `(${expressions[Number(part)]})` : JSON.stringify(part)));
      return parts.length > 1 ? `(${parts.join(" + ")})` : parts[0];
    }
    if (typeof value !== "object" || value === null) return String(value);
    const members = Object.entries(value.props).filter(([name]) => name !== "toString");
    const props = members.map(([name, each]) =>
      name.startsWith(SPREAD) ? `...(${expressions[Number(name.slice(1))]})` : `${JSON.stringify(name)}: ${of(each)}`,
    );
    const children = value.children.length === 1 ? of(value.children[0]) : `[${value.children.map(of).join(", ")}]`;
    if (value.children.length) props.push(`children: ${children}`);
    return `${isPlace(value.type) ? "component" : "element"}Of(${of(value.type)}, { ${props.join(", ")} })`;
  };
  return of(tree);
}

for (const path of process.argv.slice(2)) {
  const text = readFileSync(path, "utf8");
  const file = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true, ts.ScriptKind.JS);
  const calls = rewritten(file, file, 0, text.length);
  writeFileSync(path, calls === text ? text : `${calls}void html;\n`); // it isn't an import without a use
}
