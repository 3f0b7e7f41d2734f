// The withdrawal that is under way, kept by the browser from before it is first asked for until its
// token was kept: asked for again under the same key the node gives the same token.

const KEY = "nodestr.withdrawal";
let inMemory = null;

/** @returns {{amount_sat: number, mint: string, idempotency_key: string, made_at: number}|null} */
export function pending() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return kept ?? inMemory;
  } catch {
    return inMemory;
  }
}

/** Makes the key of a new withdrawal and keeps it. */
export function remember(amountSat, mint) {
  const random = crypto.getRandomValues(new Uint8Array(16));
  const key = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  inMemory = {
    amount_sat: amountSat, mint, idempotency_key: key, made_at: Math.floor(Date.now() / 1_000),
  };
  try {
    localStorage.setItem(KEY, JSON.stringify(inMemory));
  } catch {
    // the browser keeps nothing: it is known as long as the page is open
  }
  return inMemory;
}

/** It is over: refused, or its token was kept. */
export function forget() {
  inMemory = null;
  try {
    localStorage.removeItem(KEY);
  } catch {
    // nothing was kept
  }
}
