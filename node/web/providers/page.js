// The page at /providers: the market out of /v1/providers, /v1/market/{model} and the stream of changes.

import { ApiError, call, follow } from "/static/api.js";
import { announcer, byId, debounce, el, keepFocus, replace } from "/static/dom.js";
import { clip, count, duration } from "/static/format.js";
import { showBook } from "./book.js";
import { showDetail } from "./detail.js";
import { Store } from "./store.js";
import { table } from "./table.js";
import { keyOf, median } from "./values.js";

const ROWS = 50;
const POPULAR = 8;
const OPTIONS = 500;
const TYPING_MS = 400;
const GATHER_MS = 600;
const FRESH_MS = 3_000;
const MOST_RETRY_S = 120;

const store = new Store();
const fresh = new Set();
const say = announcer(byId("news"));
const address = new URLSearchParams(location.search);
let place = 0; // of the first row shown
let known = null; // how many nodes the directory has in all
let version = null; // of the directory, when the stream began
let noDirectory = false;
let model = address.get("model") ?? "";
let bookAsked = null;
let retry = 0;

// --- the list

async function reload({ stay = false } = {}) {
  clearTimeout(retry);
  try {
    await store.reload();
  } catch (error) {
    if (error.name === "AbortError") return; // a newer question is on its way
    failed(error);
    return;
  }
  if (!stay) place = 0;
  replace(byId("trouble"));
  render();
  chooseModel();
}

function failed(error) {
  const pause = error.retryAfterS ? Math.min(error.retryAfterS, MOST_RETRY_S) : null;
  const again = pause ? ` It is asked again in ${count(pause)} seconds.` : "";
  replace(
    byId("trouble"),
    el(
      "div",
      { class: "note bad" },
      el("p", {}, `The list could not be loaded: ${error.message}.${again}`),
      el("button", { type: "button", onclick: () => reload() }, "Try again"),
    ),
  );
  if (pause) retry = setTimeout(reload, 1_000 * pause);
  render();
}

function render() {
  const shown = store.shown();
  place = Math.min(place, Math.max(0, Math.floor((shown.length - 1) / ROWS) * ROWS));
  const rows = shown.slice(place, place + ROWS);
  const nodes = byId("nodes");
  const shows = rows.length ? () => table(rows, store, { sort, open }, fresh) : () => el("p", { class: "empty" }, emptiness());
  keepFocus(nodes, () => replace(nodes, shows()));
  const next = place + ROWS < shown.length || !store.complete;
  byId("pager").hidden = rows.length === 0 && store.complete;
  byId("previous").disabled = place === 0;
  byId("next").disabled = !next;
  byId("where").textContent = whereabouts(rows.length, shown.length);
  summarize();
}

function emptiness() {
  if (noDirectory) return "This node keeps no directory of the others.";
  if (!store.complete && store.cursor === null) return "Nothing could be loaded.";
  const { text, ...others } = store.filters;
  if (text && !store.complete) return "None of the nodes loaded so far; the next page may have one.";
  if (text || Object.values(others).some(Boolean)) return "No node fits.";
  return "No other node is known yet. The relays are being followed: whoever announces itself appears here.";
}

function whereabouts(rows, shown) {
  if (!rows) return "";
  const of = store.complete ? count(shown) : `${count(shown)} loaded`;
  const order = store.orderIsWhole ? "" : "; sorted among these";
  return `${count(place + 1)} to ${count(place + rows)} of ${of}${order}`;
}

function summarize() {
  const items = [...store.items.values()];
  byId("stats").hidden = items.length === 0 && !known;
  const plus = store.complete ? "" : "+";
  const online = items.filter((item) => item.verified && item.status === "online");
  const models = new Set(items.flatMap((item) => item.models ?? []));
  const latencies = online.map((item) => item.usual_latency_ms ?? item.latency_ms).filter(Number.isFinite);
  const middle = median(latencies);
  byId("stat-nodes").textContent = count(store.isAll ? items.length : (known ?? items.length));
  byId("stat-online").textContent = count(online.length) + plus;
  byId("stat-models").textContent = count(models.size) + plus;
  byId("stat-latency").textContent = duration(middle === null ? null : middle / 1_000);
  offerModels(items);
}

async function sort(by) {
  if (store.sort === by) store.reversed = !store.reversed;
  else [store.sort, store.reversed] = [by, false];
  if (store.complete) {
    place = 0;
    render();
  } else await reload();
}

byId("previous").addEventListener("click", () => {
  place = Math.max(0, place - ROWS);
  render();
});
byId("next").addEventListener("click", async () => {
  if (place + ROWS >= store.shown().length) {
    byId("next").disabled = true;
    try {
      await store.more();
    } catch (error) {
      failed(error);
      return;
    }
  }
  if (place + ROWS < store.shown().length) place += ROWS;
  render();
});

const filters = byId("filters");
const filter = () => {
  const chosen = new FormData(filters);
  const before = JSON.stringify({ ...store.filters, text: "" });
  for (const name of ["text", "model", "mint", "transport", "status"]) store.filters[name] = String(chosen.get(name) ?? "").trim();
  store.filters.verified = chosen.has("verified");
  if (JSON.stringify({ ...store.filters, text: "" }) !== before) reload();
  else {
    place = 0;
    render();
  }
};
filters.addEventListener("input", debounce(filter, TYPING_MS));
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  filter();
});

// --- the models

function offerModels(items) {
  const sellers = new Map();
  const mints = new Set();
  for (const item of items) {
    const weight = item.verified && item.status === "online" ? 1_000 : 1;
    for (const id of Object.keys(item.pricing ?? {})) sellers.set(id, (sellers.get(id) ?? 0) + weight);
    for (const url of item.mint_urls ?? []) mints.add(url);
  }
  const ordered = [...sellers].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1)).map(([id]) => id);
  replace(byId("models"), ordered.slice(0, OPTIONS).map((id) => el("option", { value: id })));
  replace(byId("mints"), [...mints].slice(0, OPTIONS).map((url) => el("option", { value: url })));
  byId("book-panel").hidden = ordered.length === 0 && !model;
  const chips = byId("popular");
  const popular = ordered.slice(0, POPULAR);
  if (chips.dataset.shown === JSON.stringify([popular, model])) return; // the focus stays where it is
  chips.dataset.shown = JSON.stringify([popular, model]);
  const chip = (id) => {
    const attributes = { type: "button", "aria-pressed": String(id === model), dataset: { key: id }, onclick: () => choose(id) };
    return el("li", {}, el("button", attributes, clip(id, 60)));
  };
  keepFocus(chips, () => replace(chips, popular.map(chip)));
}

/** Without a choice the model that most sell is shown. */
function chooseModel() {
  if (bookAsked !== null) return;
  const first = model || byId("models").querySelector("option")?.value;
  if (first) choose(first, Boolean(model));
}

async function choose(id, keep = true) {
  model = id;
  byId("book-model").value = id;
  if (keep) history.replaceState(null, "", `?${new URLSearchParams({ model: id })}`);
  offerModels([...store.items.values()]);
  await loadBook();
}

async function loadBook() {
  bookAsked?.abort();
  const asked = (bookAsked = new AbortController());
  const shown = byId("book");
  const unfolded = shown.querySelector("details")?.open;
  try {
    await showBook(shown, model, open, asked.signal);
    if (unfolded && shown.querySelector("details")) shown.querySelector("details").open = true;
  } catch (error) {
    if (error.name === "AbortError") return;
    replace(shown, el("p", { class: "note bad", role: "alert" }, `The prices could not be loaded: ${error.message}.`));
    if (!(error instanceof ApiError)) throw error; // ours: it belongs on the console
  }
}

byId("book-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = byId("book-model").value.trim();
  if (wanted) choose(wanted);
});

// --- one node

const dialog = byId("detail");
let opener = null;

function open(item) {
  opener = document.activeElement;
  showDetail(dialog, store.items.get(keyOf(item)) ?? item);
}

dialog.addEventListener("close", () => {
  // the table may have been made anew meanwhile
  if (opener && !opener.isConnected) document.querySelector(`main [data-key="${CSS.escape(opener.dataset.key ?? "")}"]`)?.focus();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // beside it
});

// --- changes

const renderSoon = debounce(() => {
  render();
  chooseModel();
}, GATHER_MS);
const bookSoon = debounce(loadBook, 2 * GATHER_MS);
const live = byId("live");

function changed(before, item, showed, what) {
  if (showed) {
    const key = keyOf(item);
    fresh.add(key);
    setTimeout(() => fresh.delete(key), FRESH_MS);
    say(`${clip(item.name, 60) || "A node"} ${what}`);
    renderSoon();
  }
  if (model && [before, item].some((either) => either?.models?.includes(model))) bookSoon();
}

follow(
  "/v1/providers/stream",
  {
    ready: ({ providers, etag }) => {
      // connected again: what happened meanwhile is not told
      const missed = version !== null && version !== etag;
      [known, version] = [providers, etag];
      if (missed) reload({ stay: true });
      else summarize();
    },
    provider: (item) => {
      const before = store.items.get(keyOf(item));
      changed(before, item, store.put(item), before ? "has changed" : "has appeared");
    },
    removed: (gone) => {
      const before = store.items.get(keyOf(gone));
      if (before) changed(before, before, store.remove(gone), "is gone");
    },
  },
  async (state) => {
    live.classList.toggle("on", state === "open");
    live.textContent = { open: "Live", waiting: "Connecting again…", closed: "Not live" }[state];
    if (state !== "closed") return;
    try {
      await call("/v1/providers/stream", { method: "HEAD" });
    } catch (error) {
      noDirectory = error.status === 404;
      if (error.status === 429) live.textContent = "Not live: too many of these pages are open";
      render();
    }
  },
);

reload();
