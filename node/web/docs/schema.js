// JSON schemas as lists of fields, and as examples. References are followed; circles end.

import { el } from "/static/dom.js";

const DEEPEST = 12;
const MOST_VALUES = 60;

/**
 * What a reference stands for.
 *
 * @param {Object} document the OpenAPI document.
 * @param {Object} schema
 * @returns {{schema: Object, names: string[]}} names: the references that led there; a circle of
 *   nothing but references gives {}.
 */
export function resolve(document, schema) {
  const names = [];
  let found = schema;
  while (typeof found?.$ref === "string") {
    if (names.includes(found.$ref)) return { schema: {}, names };
    names.push(found.$ref);
    found = found.$ref
      .replace(/^#\//, "")
      .split("/")
      .reduce((node, part) => node?.[decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~")], document);
  }
  return { schema: typeof found === "object" && found !== null ? found : {}, names };
}

/** A schema as nested lists; null when it says nothing about its fields. */
export function schemaView(document, schema, above = []) {
  const { schema: found, names } = resolve(document, schema);
  if (names.some((name) => above.includes(name))) return circle(names.at(-1));
  if (above.length > DEEPEST) return el("p", { class: "muted" }, "…");
  const inside = [...above, ...names, ...(names.length ? [] : [""])];
  const choices = found.oneOf ?? found.anyOf;
  if (choices) {
    return el("ul", { class: "schema" }, choices.map((choice, at) =>
      el("li", {}, el("span", { class: "type" }, `${at ? "or " : ""}${typeOf(document, choice)}`), schemaView(document, choice, inside))));
  }
  if (found.allOf) return el("div", {}, found.allOf.map((part) => schemaView(document, part, inside)));
  if (found.items) return schemaView(document, found.items, inside);
  const fields = Object.entries(found.properties ?? {});
  if (fields.length === 0) return null;
  const required = new Set(found.required ?? []);
  return el("ul", { class: "schema" }, fields.map(([name, field]) => fieldView(document, name, field, required.has(name), inside)));
}

/** One field: name, type, what is allowed, and the fields below it. */
export function fieldView(document, name, field, required, above = []) {
  const { schema } = resolve(document, field);
  return el(
    "li",
    {},
    el("code", {}, name),
    " ",
    el("span", { class: "type" }, typeOf(document, field)),
    required ? [" ", el("span", { class: "badge accent" }, "required")] : null,
    schema.description ? el("span", { class: "about" }, schema.description) : null,
    values(schema),
    schemaView(document, field, above),
  );
}

function circle(name) {
  return el("p", { class: "muted small" }, `the same again: ${name.split("/").at(-1)}`);
}

function values(schema) {
  const list = schema.enum ?? (schema.const === undefined ? [] : [schema.const]);
  if (list.length === 0) return null;
  const shown = list.slice(0, MOST_VALUES).map((value) => [el("code", {}, JSON.stringify(value)), " "]);
  const listed = el("span", { class: "values" }, shown, list.length > MOST_VALUES ? "…" : null);
  if (list.length <= 8) return el("div", {}, listed);
  return el("details", {}, el("summary", { class: "small" }, `${list.length} values`), listed);
}

/** "integer, at least 1", "list of object", "text or null". */
export function typeOf(document, schema, deep = 0) {
  const { schema: found } = resolve(document, schema);
  if (deep > DEEPEST) return "…";
  const choices = found.oneOf ?? found.anyOf;
  if (choices) return choices.map((choice) => typeOf(document, choice, deep + 1)).join(" or ");
  if (found.allOf) return "object";
  const types = [found.type ?? (found.properties ? "object" : found.enum || found.const !== undefined ? typeOfValues(found) : "any")].flat();
  const text = types
    .map((type) => (type === "array" ? `list${found.items ? ` of ${typeOf(document, found.items, deep + 1)}` : ""}` : type))
    .join(" or ");
  return [text, ...limits(found)].join(", ");
}

const typeOfValues = (schema) => [...new Set((schema.enum ?? [schema.const]).map((value) => (value === null ? "null" : typeof value)))].join(" or ");

function limits(schema) {
  const { minimum, maximum, minLength, maxLength, format } = schema;
  const said = [];
  if (minimum !== undefined && maximum !== undefined) said.push(`${minimum} to ${maximum}`);
  else if (minimum !== undefined) said.push(`at least ${minimum}`);
  else if (maximum !== undefined) said.push(`at most ${maximum}`);
  if (minLength !== undefined && maxLength !== undefined) said.push(`${minLength} to ${maxLength} characters`);
  else if (maxLength !== undefined) said.push(`at most ${maxLength} characters`);
  else if (minLength > 1) said.push(`at least ${minLength} characters`);
  if (format) said.push(format);
  return said;
}

/**
 * A value that fits.
 *
 * @param {Object<string, unknown>} hints by the field's name: better than what could be made up.
 */
export function exampleOf(document, schema, hints, name = "", above = []) {
  const { schema: found, names } = resolve(document, schema);
  if (names.some((each) => above.includes(each)) || above.length > DEEPEST) return null;
  const inside = [...above, ...names, ...(names.length ? [] : [""])];
  const given = found.examples?.[0] ?? found.example ?? found.default ?? found.const;
  if (given !== undefined) return given;
  if (name in hints) return hints[name];
  if (found.enum) return found.enum[0];
  const part = (found.oneOf ?? found.anyOf ?? [])[0];
  if (part) return exampleOf(document, part, hints, name, inside);
  if (found.allOf) return Object.assign({}, ...found.allOf.map((each) => exampleOf(document, each, hints, name, inside)));
  const type = [found.type].flat()[0] ?? (found.properties ? "object" : "string");
  if (type === "object") {
    const fields = Object.entries(found.properties ?? {});
    const required = new Set(found.required ?? []);
    const kept = fields.filter(([field]) => (required.size ? required.has(field) : field in hints));
    return Object.fromEntries(kept.map(([field, of]) => [field, exampleOf(document, of, hints, field, inside)]));
  }
  if (type === "array") return found.items ? [exampleOf(document, found.items, hints, name, inside)] : [];
  if (type === "integer" || type === "number") return found.minimum ?? 1;
  if (type === "boolean") return true;
  return type === "null" ? null : "…";
}
