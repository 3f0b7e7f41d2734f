// The nodes that were loaded, page by page, and what is asked of them.

import { get } from "/static/api.js";
import { keyOf } from "./values.js";

const LIMIT = 100; // items of one request
const BY_SERVER = { status: "rank", latency: "latency", uptime: "uptime" };
const STATUS_RANK = { online: 0, unknown: 1, offline: 2 };
const LAST = Number.MAX_VALUE;

const COMPARED = {
  status: (item) => (item.verified ? 0 : 10) + (STATUS_RANK[item.status] ?? 3),
  name: (item) => String(item.name ?? "").toLowerCase(),
  latency: (item) => item.latency_ms ?? LAST,
  uptime: (item) => (typeof item.uptime === "number" ? -item.uptime : LAST),
  models: (item) => -(item.models?.length ?? 0),
};

export class Store {
  constructor() {
    this.filters = { text: "", model: "", mint: "", transport: "", status: "", verified: false };
    this.sort = "status";
    this.reversed = false;
    this.complete = false; // all that fit the filters are here
    this.items = new Map();
    this.cursor = null;
    this.loading = null;
  }

  /** Begins anew, with these filters. Raises ApiError. */
  async reload() {
    this.loading?.abort();
    const page = await this.#ask("");
    this.items = new Map();
    this.#take(page);
  }

  /** The next page, if there is one. Raises ApiError. */
  async more() {
    if (!this.complete && this.cursor) this.#take(await this.#ask(this.cursor));
  }

  /** Takes a change from the stream; whether it shows. */
  put(item) {
    const key = keyOf(item);
    if (this.#fits(item)) this.items.set(key, item);
    else if (!this.items.delete(key)) return false;
    return true;
  }

  /** The same for what is gone. */
  remove(gone) {
    return this.items.delete(keyOf(gone));
  }

  /** Whether the order of the whole list is known, not only of what was loaded. */
  get orderIsWhole() {
    return this.complete || (this.sort in BY_SERVER && !this.reversed);
  }

  /** Whether what is here is the whole market. */
  get isAll() {
    const { model, mint, transport, status, verified } = this.filters;
    return this.complete && !(model || mint || transport || status || verified);
  }

  /** Those to show, in order. */
  shown() {
    const compared = COMPARED[this.sort];
    const text = this.filters.text.trim().toLowerCase();
    const found = [...this.items.values()].filter((item) => !text || mentions(item, text));
    const turn = this.reversed ? -1 : 1;
    const keyed = found.map((item) => [compared(item), keyOf(item), item]);
    keyed.sort(([a, keyA], [b, keyB]) => {
      if (a !== b) return (a < b ? -1 : 1) * (a === LAST || b === LAST ? 1 : turn);
      return keyA < keyB ? -1 : 1;
    });
    return keyed.map(([, , item]) => item);
  }

  async #ask(cursor) {
    const { model, mint, transport, status, verified } = this.filters;
    const loading = (this.loading = new AbortController());
    const query = { model, mint, transport, status, limit: LIMIT, cursor };
    query.sort = BY_SERVER[this.sort] ?? "rank";
    if (verified) query.verified = "true";
    return get("/v1/providers", query, { signal: loading.signal });
  }

  #take(page) {
    for (const item of page.providers ?? []) this.items.set(keyOf(item), item);
    this.cursor = page.next_cursor;
    this.complete = !page.next_cursor;
  }

  #fits(item) {
    const { model, mint, transport, status, verified } = this.filters;
    return (
      (!model || (item.models ?? []).includes(model)) &&
      (!mint || (item.mint_urls ?? []).some((url) => bare(url) === bare(mint))) &&
      (!transport || (item.transports ?? []).includes(transport)) &&
      (!status || item.status === status) &&
      (!verified || item.verified)
    );
  }
}

const bare = (url) => url.trim().toLowerCase().replace(/\/+$/, "");

function mentions(item, text) {
  const said = [item.name, item.npub, item.pubkey, item.description, ...(item.endpoint_urls ?? []), ...(item.models ?? [])];
  return said.some((part) => part && String(part).toLowerCase().includes(text));
}
