// Models that upstreams list: leaving one out of what is sold, and selling it again.

import { el } from "/static/dom.js";
import { confirm } from "./dialog.js";
import { panel, table } from "./widgets.js";

/** Changes the patterns of what an upstream's list is sold without. */
function exclude(view, upstream, patterns) {
  return view.send("PATCH", "/settings", { upstreams: { [upstream]: { exclude: patterns } } });
}

/**
 * Asks, and sells the model no longer.
 *
 * @returns {Promise<Object|undefined>} the node's answer; undefined when it was called off.
 */
export async function leaveOut(model, upstreams, view) {
  const listed = model.backends.filter(({ upstream }) => upstreams[upstream]?.discover.value);
  const agreed = await confirm(`Stop selling ${model.id}?`, [
    el("p", {}, "Requests that run are finished. It can be sold again at any time."),
  ], "Stop selling");
  if (!agreed) return undefined;
  const outcome = { applied: [], needs_restart: [] };
  for (const { upstream, upstream_id: id } of listed) {
    const answer = await exclude(view, upstream, [...upstreams[upstream].exclude.value, literal(id)]);
    outcome.applied.push(...answer.applied);
    outcome.needs_restart.push(...answer.needs_restart);
  }
  return outcome;
}

/** A pattern that matches nothing but this id. */
const literal = (id) => id.replace(/[*?[]/g, "[$&]");

/** What is left out of the lists; null when nothing is. `sell(answer)` is given the node's answer. */
export function leftOut(upstreams, view, sell) {
  const rows = Object.entries(upstreams).flatMap(([upstream, { discover, exclude: patterns }]) =>
    (discover.value ? patterns.value.map((pattern) => ({ upstream, pattern, all: patterns.value })) : []));
  if (!rows.length) return null;
  const list = table("Patterns of models that are not sold though an upstream lists them", [
    { label: "Pattern", head: true, cell: ({ pattern }) => el("span", { class: "mono break" }, pattern) },
    { label: "Upstream", cell: ({ upstream }) => upstream },
    { label: "", cell: ({ upstream, pattern, all }) => el("button", {
      type: "button",
      class: "small",
      onclick: () => sell(() => exclude(view, upstream, all.filter((one) => one !== pattern))),
    }, "Sell again", el("span", { class: "visually-hidden" }, ` ${pattern}`)) },
  ]);
  list.show(rows);
  return panel("Left out of the upstreams' lists", list.element);
}
