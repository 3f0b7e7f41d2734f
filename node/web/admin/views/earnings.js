// Earnings: what was charged and how many requests there were, over time and by model.

import { el, replace } from "/static/dom.js";
import { count } from "/static/format.js";
import { choice } from "../form.js";
import { timePlot } from "../timeplot.js";
import { amount, panel, problem, stats, table, time } from "../widgets.js";

const HOUR_S = 3_600;
const DAY_S = 86_400;
const RANGES = [
  ["day", "24 hours", DAY_S, ["hour"]],
  ["week", "7 days", 7 * DAY_S, ["day", "hour"]],
  ["month", "30 days", 30 * DAY_S, ["day"]],
  ["quarter", "90 days", 90 * DAY_S, ["day"]],
  ["year", "1 year", 365 * DAY_S, ["day"]],
];
const DEFAULT_RANGE = "week";

export default {
  title: "Earnings",
  async render(body, view) {
    let range = RANGES.find(([name]) => name === (view.query.get("range") ?? DEFAULT_RANGE)) ?? RANGES[1];
    let bucket = range[3][0];
    const buckets = el("div");
    const content = el("div");
    const load = async () => {
      const to = Math.floor(Date.now() / 1_000);
      const answer = await view.get("/earnings", { from: to - range[2], to, bucket });
      replace(content, drawn(answer, to - range[2], to, bucket, view.signal));
    };
    const again = async () => {
      content.setAttribute("aria-busy", "true");
      try {
        await load();
        view.say(`Earnings of the last ${range[1]}, by ${bucket}`);
      } catch (error) {
        if (!view.signal.aborted) replace(content, problem(error));
      }
      content.removeAttribute("aria-busy");
    };
    const drawBuckets = () => replace(buckets, range[3].length < 2 ? null
      : choice("By", range[3].map((name) => [name, name]), bucket, (chosen) => {
        bucket = chosen;
        again();
      }));
    const ranges = choice("Range", RANGES.map(([name, label]) => [name, label]), range[0], (chosen) => {
      range = RANGES.find(([name]) => name === chosen);
      bucket = range[3][0];
      drawBuckets();
      again();
    });
    drawBuckets();
    await load();
    replace(body, el("div", { class: "bar" }, ranges, buckets), content);
  },
};

function drawn(answer, from, to, bucket, signal) {
  const points = filled(answer, from, to);
  const sum = (name) => points.reduce((total, point) => total + (point[name] ?? 0), 0);
  const rows = table("The same in numbers, newest first", [
    { label: bucket === "hour" ? "Hour" : "Day", head: true, cell: (point) => (bucket === "hour" ? time(point.at) : day(point.at)) },
    { label: "Charged", num: true, cell: (point) => amount(point.charged_msat) },
    { label: "Requests", num: true, cell: (point) => count(point.requests) },
    { label: "Tokens in", num: true, cell: (point) => count(point.prompt_tokens) },
    { label: "Tokens out", num: true, cell: (point) => count(point.completion_tokens) },
  ]);
  rows.show(points.filter((point) => point.requests || point.charged_msat).reverse());
  const models = table("By model in this range", [
    { label: "Model", head: true, cell: (item) => el("span", { class: "break" }, item.model) },
    { label: "Charged", num: true, cell: (item) => amount(item.charged_msat) },
    { label: "Requests", num: true, cell: (item) => count(item.requests) },
  ], { empty: "Nothing was sold in this range.", captionHidden: true });
  models.show([...answer.by_model].sort((a, b) => b.charged_msat - a.charged_msat));
  const named = { bucket, points, bucketS: answer.bucket_s, signal };
  return [
    stats(
      ["Charged", amount(sum("charged_msat"))],
      ["Requests", count(sum("requests"))],
      ["Tokens in", count(sum("prompt_tokens"))],
      ["Tokens out", count(sum("completion_tokens"))]),
    panel(null,
      timePlot({ ...named, title: "Charged, in sat", series: "series-1", unit: "sat", value: (point) => point.charged_msat / 1_000 }),
      timePlot({ ...named, title: "Requests", series: "series-2", unit: "requests", value: (point) => point.requests }),
      el("details", {}, el("summary", {}, "Show the numbers"), rows.element),
      bucket === "day" ? el("p", { class: "small muted" }, "Days are those of UTC.") : null),
    panel("By model", models.element),
  ];
}

const dayFormat = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeZone: "UTC" });

function day(unix) {
  const date = new Date(1_000 * unix);
  return el("time", { datetime: date.toISOString().slice(0, 10), class: "nowrap" }, dayFormat.format(date));
}

/** A point for each bucket of the range; those without a request are not in the answer. */
function filled(answer, from, to) {
  const size = answer.bucket_s || HOUR_S;
  const known = new Map(answer.points.map((point) => [point.at, point]));
  const offset = answer.points.length ? answer.points[0].at % size : 0;
  const first = from - (((from - offset) % size) + size) % size;
  const points = [];
  for (let at = first; at <= to; at += size) {
    points.push(known.get(at) ?? {
      at, charged_msat: 0, requests: 0, prompt_tokens: 0, completion_tokens: 0,
    });
  }
  return points;
}
