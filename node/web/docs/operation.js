// One operation of the document as an article.

import { copyButton, el } from "/static/dom.js";
import { LANGUAGES, examplesOf } from "./examples.js";
import { fieldView, schemaView, typeOf } from "./schema.js";

/** Where an operation is on the page. */
export const anchorOf = (method, path) =>
  `${method}${path}`.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-+|-+$/g, "");

const UNSTRUCTURED = { "text/event-stream": "server-sent events", "text/plain": "text" };
const PLACES = { path: "in the path", query: "in the query", header: "as a header" };

/**
 * @param {{document: Object, method: string, path: string, operation: Object, origin: string,
 *   model: string, aliases: string[]}} what aliases: other paths that answer the same.
 */
export function operationView(what) {
  const { document, method, path, operation, aliases } = what;
  const id = anchorOf(method, path);
  const parameters = operation.parameters ?? [];
  return el(
    "article",
    { class: "panel operation", id, "aria-labelledby": `${id}-title` },
    el(
      "header",
      {},
      el("h3", { id: `${id}-title` }, operation.summary ?? path, el("a", { class: "anchor", href: `#${id}`, "aria-label": `Link to ${operation.summary ?? path}` }, "#")),
      el("span", { class: `method ${method}` }, method.toUpperCase()),
      el("code", { class: "path" }, path),
      carriage(path),
      aliases.length ? el("span", { class: "small muted" }, "also at ", aliases.map((each) => el("code", { class: "path" }, each)), ", over HTTP") : null,
    ),
    operation.description ? el("p", {}, operation.description) : null,
    payment(document, operation),
    examples(what),
    parameters.length
      ? [
          el("h4", {}, "Parameters"),
          el("ul", { class: "schema" }, parameters.map((parameter) => parameterView(document, parameter))),
        ]
      : null,
    content(document, "Request", operation.requestBody?.content),
    Object.entries(operation.responses ?? {})
      .filter(([status]) => status !== "default")
      .map(([status, response]) => content(document, `Answer ${status}`, response.content)),
    el("p", { class: "small muted" }, "Errors: ", el("a", { href: "#errors" }, "the one body and its codes"), "."),
  );
}

function carriage(path) {
  const nostr = path.startsWith("/v1/") && !path.endsWith("/stream");
  return el("span", { class: "badge" }, nostr ? "HTTP and Nostr" : "HTTP only");
}

function payment(document, operation) {
  const names = [...new Set((operation.security ?? []).flatMap(Object.keys))];
  if (names.length === 0) return el("p", {}, el("span", { class: "badge good" }, "Free"), " Neither key nor token is needed.");
  const schemes = document.components?.securitySchemes ?? {};
  const said = names.map((name) => {
    const { type, name: header = "", scheme = "" } = schemes[name] ?? {};
    return type === "apiKey" ? `${header}: <token>` : `Authorization: ${scheme.replace(/^./, (letter) => letter.toUpperCase())} <key>`;
  });
  return el("p", {}, said.map((text, at) => [at ? " or " : "", el("code", {}, text)]));
}

function parameterView(document, parameter) {
  const { name, in: place, required, schema = {}, description } = parameter;
  const field = { ...schema, description: description ?? schema.description };
  const item = fieldView(document, name, schema.$ref ? schema : field, Boolean(required));
  item.querySelector(".type").append(`, ${PLACES[place] ?? place}`);
  return item;
}

function content(document, title, media) {
  const kinds = Object.entries(media ?? {});
  if (kinds.length === 0) return null;
  return [
    el("h4", {}, title),
    kinds.map(([kind, { schema = {} }]) => {
      const fields = /json|multipart|urlencoded/.test(kind);
      const what = fields ? typeOf(document, schema) : (UNSTRUCTURED[kind] ?? "bytes");
      const said = el("p", { class: "small muted" }, el("code", {}, kind), " ", what);
      return el("div", {}, said, fields ? schemaView(document, schema) : null);
    }),
  ];
}

function examples(what) {
  const found = examplesOf(what);
  return Object.entries(found).map(([language, text]) =>
    el(
      "div",
      { class: "example", dataset: { language, only: Object.keys(found).length === 1 ? "yes" : "no" } },
      el("div", { class: "row" }, el("span", {}, LANGUAGES[language]), copyButton(text, "Copy", `the example in ${LANGUAGES[language]}`)),
      el("pre", { tabindex: "0", role: "region", "aria-label": `${what.operation.summary ?? what.path}, ${LANGUAGES[language]}` }, el("code", {}, text)),
    ),
  );
}
