// Amounts, times and keys as people read them. Amounts come in msat, times in unix seconds.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
const rough = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

const NONE = "–";

/** 1,234 */
export const count = (n) => (isNumber(n) ? whole.format(n) : NONE);

/** 1.23K: for axes. */
export const compact = (n) => (isNumber(n) ? short.format(n) : NONE);

/** "1,234 sat" of msat; below one sat with its thousandths. */
export const sat = (msat) => (isNumber(msat) ? `${exact.format(msat / 1_000)} sat` : NONE);

/** The same without the unit. */
export const satNumber = (msat) => (isNumber(msat) ? exact.format(msat / 1_000) : NONE);

/** "1,234 msat" */
export const msat = (n) => (isNumber(n) ? `${whole.format(n)} msat` : NONE);

/** "12.5 %" of a share from 0 to 1. */
export const percent = (share) => (isNumber(share) ? `${rough.format(100 * share)} %` : NONE);

/** "120 ms", "2.5 s", "3 min", "4 h", "5 d" of seconds. */
export function duration(s) {
  if (!isNumber(s)) return NONE;
  if (s < 1) return `${whole.format(1_000 * s)} ms`;
  if (s < 90) return `${rough.format(s)} s`;
  if (s < 5_400) return `${whole.format(s / 60)} min`;
  if (s < 129_600) return `${rough.format(s / 3_600)} h`;
  return `${rough.format(s / 86_400)} d`;
}

/** "3 minutes ago" */
export function ago(unix, nowS = Date.now() / 1_000) {
  if (!isNumber(unix) || unix <= 0) return NONE;
  const past = unix - nowS;
  const size = Math.abs(past);
  for (const [unit, s] of [["day", 86_400], ["hour", 3_600], ["minute", 60]]) {
    if (size >= s) return relative.format(Math.round(past / s), unit);
  }
  return relative.format(Math.round(past), "second");
}

/** "22 Nov 2026, 16:20" in the reader's time. */
export const dateTime = (unix) =>
  isNumber(unix) && Math.abs(unix) < 8.64e12 ? moment.format(new Date(unix * 1_000)) : NONE;

/** "npub1abcdef…wxyz" */
export const shortKey = (key) => {
  const text = String(key ?? "");
  return text.length > 20 ? `${text.slice(0, 12)}…${text.slice(-4)}` : text;
};

/** What is longer loses its end: names from outside have no bound. */
export const clip = (text, chars) => {
  const letters = Array.from(String(text ?? ""));
  return letters.length > chars ? `${letters.slice(0, chars - 1).join("")}…` : letters.join("");
};

/** "1 node", "2 nodes" */
export const plural = (n, one, many = `${one}s`) => `${whole.format(n)} ${n === 1 ? one : many}`;

function isNumber(n) {
  return typeof n === "number" && Number.isFinite(n);
}
