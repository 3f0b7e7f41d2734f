// The page at /docs: the node's own /openapi.json, readable.

import { get } from "/static/api.js";
import { byId, debounce, el, replace } from "/static/dom.js";
import { count, plural } from "/static/format.js";
import { LANGUAGES } from "./examples.js";
import { anchorOf, operationView } from "./operation.js";
import { schemaView } from "./schema.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const GROUPS = {
  inference: "Inference",
  catalogue: "Catalogue",
  wallet: "Accounts",
  lightning: "Lightning",
  discovery: "Market",
  operations: "Operations",
};
const TYPING_MS = 150;
const PLACEHOLDER_MODEL = "model-id";

async function show() {
  let document;
  try {
    document = await get("/openapi.json");
  } catch (error) {
    replace(byId("intro"), el("p", { class: "note bad", role: "alert" }, `The document could not be loaded: ${error.message}.`));
    return;
  }
  const models = await get("/v1/models").catch(() => ({ data: [] }));
  const model = models.data?.[0]?.id ?? PLACEHOLDER_MODEL;
  const groups = grouped(document);
  intro(document);
  replace(byId("operations"), languages(), groups.map(([name, list]) => groupView(document, name, list, model)));
  replace(byId("errors"), errors(document));
  contents(groups);
  choose("curl");
  window.document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

/** [[group, [{method, path, operation, aliases}]]], in the order of GROUPS, others after. */
function grouped(document) {
  const paths = document.paths ?? {};
  const same = (path, other) => path !== other && JSON.stringify(paths[path]) === JSON.stringify(paths[other]);
  const isAlias = (path) => `/v1${path}` in paths && same(path, `/v1${path}`);
  const groups = new Map(Object.keys(GROUPS).map((name) => [name, []]));
  for (const [path, item] of Object.entries(paths)) {
    if (isAlias(path)) continue;
    const bare = path.replace(/^\/v1/, "");
    const aliases = bare in paths && isAlias(bare) ? [bare] : [];
    for (const method of METHODS) {
      const operation = item[method];
      if (!operation) continue;
      const name = operation.tags?.[0] ?? "operations";
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push({ method, path, operation, aliases });
    }
  }
  return [...groups].filter(([, list]) => list.length);
}

function intro(document) {
  const { title, version, description = "" } = document.info ?? {};
  window.document.title = `API of ${title} · nodestr`;
  byId("title").textContent = `API of ${title}`;
  const schemes = Object.values(document.components?.securitySchemes ?? {});
  replace(
    byId("intro"),
    description.split(/\n\n+/).map((text, at) => el("p", { class: at ? null : "lead" }, inlineCode(text))),
    el(
      "dl",
      { class: "facts" },
      el("dt", {}, "Base URL"),
      el("dd", {}, el("code", {}, `${location.origin}/v1`)),
      el("dt", {}, "Version"),
      el("dd", {}, version),
      el("dt", {}, "As a document"),
      el("dd", {}, el("a", { href: "/openapi.json" }, "/openapi.json"), ` (OpenAPI ${document.openapi})`),
      schemes.map((scheme) => [
        el("dt", {}, scheme.type === "apiKey" ? scheme.name : "Authorization"),
        el("dd", {}, scheme.description ?? ""),
      ]),
    ),
  );
}

/** `text` between backticks as code. */
const inlineCode = (text) => text.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));

function languages() {
  return el(
    "fieldset",
    { class: "languages" },
    el("legend", {}, "Examples in"),
    Object.entries(LANGUAGES).map(([name, text]) =>
      el("label", { class: "check" }, el("input", { type: "radio", name: "language", value: name, checked: name === "curl", onchange: () => choose(name) }), text),
    ),
  );
}

/** Examples in this language; in curl where there is no other. */
function choose(language) {
  for (const example of window.document.querySelectorAll(".example")) {
    example.hidden = example.dataset.language !== language && example.dataset.only !== "yes";
  }
}

const titleOf = (group) => GROUPS[group] ?? group;

function groupView(document, name, list, model) {
  const id = `group-${anchorOf("", name)}`;
  return el(
    "section",
    { class: "group", "aria-labelledby": id },
    el("h2", { id }, titleOf(name)),
    list.map((each) => operationView({ document, origin: location.origin, model, ...each })),
  );
}

function errors(document) {
  const schema = document.components?.schemas?.Error;
  const known = document["x-errors"] ?? [];
  return el(
    "section",
    { class: "panel", "aria-labelledby": "errors-title" },
    el("h2", { id: "errors-title" }, "Errors"),
    el("p", {}, "Every error has one body. What can be asked again says so in ", el("code", {}, "retry-after"), " or ", el("code", {}, "x-should-retry"), "."),
    schema ? schemaView(document, schema) : null,
    known.length
      ? el(
          "div",
          { class: "scroll", tabindex: "0", role: "region", "aria-label": "Error codes" },
          el(
            "table",
            { id: "codes" },
            el("caption", {}, plural(known.length, "code")),
            el("thead", {}, el("tr", {}, ["Code", "Status", "Type", "Message"].map((text) => el("th", { scope: "col" }, text)))),
            el(
              "tbody",
              {},
              known.map(({ code, status, type, message }) =>
                el("tr", { id: `error-${anchorOf("", code)}` },
                  el("th", { scope: "row" }, el("code", {}, code)), el("td", {}, status), el("td", {}, type), el("td", {}, message))),
            ),
          ),
        )
      : null,
  );
}

// --- contents and search

function contents(groups) {
  const narrow = matchMedia("(max-width: 63.99rem)").matches;
  byId("contents").open = !narrow;
  replace(
    byId("contents-list"),
    groups.map(([name, list]) =>
      el(
        "section",
        { class: "group" },
        el("h2", {}, titleOf(name)),
        el("ul", {}, list.map(({ method, path, operation }) =>
          el("li", { dataset: { of: anchorOf(method, path) } },
            el("a", { href: `#${anchorOf(method, path)}` }, operation.summary ?? path, el("small", {}, `${method.toUpperCase()} ${path}`))))),
      ),
    ),
    el("ul", {}, el("li", {}, el("a", { href: "#errors" }, "Errors"))),
  );
}

const search = () => {
  const words = byId("search-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const article of window.document.querySelectorAll(".operation")) {
    const text = article.textContent.toLowerCase();
    const fits = words.every((word) => text.includes(word));
    article.hidden = !fits;
    found += fits;
    const entry = window.document.querySelector(`[data-of="${article.id}"]`);
    if (entry) entry.hidden = !fits;
  }
  for (const group of window.document.querySelectorAll(".group")) {
    group.hidden = group.querySelector("article:not([hidden]), li:not([hidden])") === null;
  }
  byId("found").textContent = words.length ? `${count(found)} found` : "";
};
byId("search-text").addEventListener("input", debounce(search, TYPING_MS));
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});

show();
