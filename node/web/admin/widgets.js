// Small parts that all views use: amounts, times, marks of a state, tables, problems in words.

import { copyButton, el, replace, svg } from "/static/dom.js";
import { ago, count, dateTime, msat as msatText } from "/static/format.js";

export const NONE = "–";

const wholeSat = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const thousandths = new Intl.NumberFormat("en", { minimumFractionDigits: 3 });

/**
 * An amount in sat; its title has every msat.
 *
 * @param {number} msat
 * @param {{exact?: boolean, aligned?: boolean, sign?: boolean, unit?: boolean}} [options] exact:
 *   with its thousandths, if there are any; aligned: with them in any case; by default those of
 *   1,000 sat and more have none.
 */
export function amount(msat, { exact = false, aligned = false, sign = false, unit = true } = {}) {
  if (typeof msat !== "number") return NONE;
  const many = Math.abs(msat) >= 1_000_000 && !exact;
  const whole = !aligned && (msat % 1_000 === 0 || many);
  const shown = whole ? wholeSat.format(Math.trunc(msat / 1_000)) : thousandths.format(msat / 1_000);
  const plus = sign && msat > 0 ? "+" : "";
  return el("data", { value: msat, title: msatText(msat), class: "nowrap" },
    plus + shown.replace("-", "−"), unit ? el("span", { class: "unit" }, " sat") : null);
}

/** A moment in the reader's time; its ISO form for machines and on hovering. */
export function time(unix, { relative = false, seconds = false } = {}) {
  if (typeof unix !== "number" || !(Math.abs(unix) < 8.64e12)) return NONE;
  const iso = new Date(1_000 * unix).toISOString();
  let shown = relative ? ago(unix) : dateTime(unix);
  if (seconds) shown = clock.format(new Date(1_000 * unix));
  return el("time", { datetime: iso, title: iso, class: "nowrap" }, shown);
}

const clock = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit", minute: "2-digit", second: "2-digit",
});

/** A state as a mark with words: its kind is told by shape as well as by colour. */
export function state(kind, text) {
  return el("span", { class: `state ${kind}` }, mark(kind), el("span", {}, text));
}

const SHAPES = {
  good: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm3.7 5.1-4.3 5.2-3-2.6.9-1.1 1.9 1.7 3.4-4.1Z",
  warn: "M8 1 15.5 14.5H.5Zm-.8 5v4.2h1.6V6Zm0 5.4V13h1.6v-1.6Z",
  bad: "M5 1h6l4 4v6l-4 4H5l-4-4V5Zm.6 3.4L4.4 5.6 6.8 8l-2.4 2.4 1.2 1.2L8 9.2l2.4 2.4 1.2-1.2L9.2 8l2.4-2.4-1.2-1.2L8 6.8Z",
  idle: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.8a5.2 5.2 0 1 1 0 10.4A5.2 5.2 0 0 1 8 2.800Z",
};

/** The shape of a state: a disc, a triangle, an octagon or a ring. */
export function mark(kind) {
  return svg("svg", { class: `mark ${kind}`, viewBox: "0 0 16 16", "aria-hidden": "true" },
    svg("path", { d: SHAPES[kind], "fill-rule": "evenodd" }));
}

export const badge = (text, kind = "") => el("span", { class: `badge ${kind}` }, text);

export function panel(title, ...content) {
  return el("section", { class: "panel" }, title ? el("h2", {}, title) : null, content);
}

/** A list of names and values. */
export function facts(...pairs) {
  return el("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) =>
    [el("dt", {}, name), el("dd", {}, value)]));
}

/** Figures side by side: [name, value, small print]. */
export function stats(...figures) {
  return el("dl", { class: "stats" }, figures.map(([name, value, small]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value, small ? el("small", {}, small) : null))));
}

/** What went wrong, in a sentence. */
export function errorText(error) {
  const wait = error.retryAfterS ? ` Try again in ${count(error.retryAfterS)} s.` : "";
  const text = String(error.message || error);
  const [first] = text.split(" ", 1); // may be the name of a setting
  const sentence = /^[a-z]+$/.test(first) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return (/[.!?…]$/.test(sentence) ? sentence : `${sentence}.`) + wait;
}

/** The same as a note, with the id under which the node's log has it. */
export function problem(error) {
  return el("div", { class: "note bad" }, el("p", {}, errorText(error)), requestLine(error));
}

/** Only that id, where the sentence stands at a field. */
export function requestLine({ requestId: id }) {
  if (!id) return null;
  return el("p", { class: "small row" }, "Request ", el("code", { class: "break" }, id),
    copyButton(id, "Copy", "the request id"));
}

/** The same where nobody asked: told at once. */
export function problemAlert(error) {
  return el("div", { role: "alert" }, problem(error));
}

export const empty = (text) => el("p", { class: "empty" }, text);

/**
 * A table that becomes a list of cards on a phone and stays a table for screen readers.
 *
 * @param {string} caption
 * @param {Array<{label: string, num?: boolean, head?: boolean, cell: function(Object):
 *   (Node|string|number|null)}>} columns
 * @param {{empty?: string, captionHidden?: boolean}} [options]
 * @returns {{element: HTMLElement, show: function(Array<Object>): void,
 *   prepend: function(Object, number): void, append: function(Array<Object>): void}}
 */
export function table(caption, columns, options = {}) {
  const body = el("tbody", { role: "rowgroup" });
  const none = empty(options.empty ?? "Nothing yet.");
  const head = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, columns.map((column) =>
    el("th", { role: "columnheader", scope: "col", class: column.num ? "num" : "" }, column.label
      || el("span", { class: "visually-hidden" }, "Actions")))));
  const whole = el("table", { class: "cards", role: "table" },
    el("caption", { class: options.captionHidden ? "visually-hidden" : "" }, caption), head, body);
  const element = el("div", { class: "scroll" }, whole, none);
  scrollable(element, caption);
  const row = (item) => el("tr", { role: "row" }, columns.map((column) => {
    const role = column.head ? "rowheader" : "cell";
    const attributes = { role, class: column.num ? "num" : "", dataset: { label: column.label } };
    if (column.head) attributes.scope = "row";
    return el(column.head ? "th" : "td", attributes, column.cell(item) ?? NONE);
  }));
  const settle = () => {
    none.hidden = body.childElementCount > 0;
    whole.hidden = !none.hidden;
  };
  settle();
  return {
    element,
    show(items) {
      keepFocus(body, () => replace(body, items.map(row)));
      settle();
    },
    append(items) {
      body.append(...items.map(row));
      settle();
    },
    prepend(item, most) {
      body.prepend(row(item));
      while (body.childElementCount > most) body.lastElementChild.remove();
      settle();
    },
  };
}

/**
 * Draws something anew; what had the focus in it has it again, by its words. If it is gone, the
 * heading of the view has it.
 */
export function keepFocus(holder, draw) {
  const held = holder.contains(document.activeElement) ? document.activeElement : null;
  draw();
  if (held === null || held.isConnected) return;
  const same = [...holder.querySelectorAll(held.tagName)]
    .find((node) => node.textContent === held.textContent);
  (same ?? document.querySelector("main h1"))?.focus({ preventScroll: true });
}

/** What is wider than its place can be scrolled by keyboard, and has a name. */
function scrollable(element, name) {
  new ResizeObserver(() => {
    const wider = element.scrollWidth > element.clientWidth;
    const attributes = { tabindex: "0", role: "region", "aria-label": name };
    for (const [attribute, value] of Object.entries(attributes)) {
      if (wider) element.setAttribute(attribute, value);
      else element.removeAttribute(attribute);
    }
  }).observe(element);
}

/**
 * A table that is read page by page.
 *
 * @param {function(string|null): Promise<[Array<Object>, string|null]>} read gives the rows after a
 *   cursor and the next cursor.
 */
export async function pagedTable(caption, columns, read, options = {}) {
  const rows = table(caption, columns, options);
  const said = el("div");
  const more = el("button", { type: "button", hidden: true }, "Show more");
  let cursor = null;
  const next = async () => {
    const [items, after] = await read(cursor);
    rows.append(items);
    cursor = after;
    more.hidden = !after;
  };
  more.addEventListener("click", async () => {
    more.disabled = true;
    replace(said);
    try {
      await next();
    } catch (error) {
      replace(said, problemAlert(error));
    }
    more.disabled = false;
  });
  await next();
  return el("div", {}, rows.element, said, el("p", { class: "more" }, more));
}
