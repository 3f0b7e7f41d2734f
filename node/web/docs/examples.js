// How each operation is asked for: with curl, and with OpenAI's SDK where that has a method for it.

import { exampleOf } from "./schema.js";

export const LANGUAGES = { curl: "curl", python: "Python (openai)", javascript: "JavaScript (openai)" };

const TOKEN = "cashuB…";
const KEY = "sk-…";
const HINTS = {
  messages: [{ role: "user", content: "Hello" }],
  prompt: "Once upon a time",
  input: "Hello",
  query: "Who sells bread?",
  documents: ["The baker", "The smith"],
  voice: "alloy",
  file: "@recording.mp3",
  max_tokens: 200,
  cashu_token: TOKEN,
  initial_balance_token: TOKEN,
  amount: 21,
  amount_sats: 1_000,
  purpose: "create",
  count: 1,
  child_key: KEY,
};
const IN_PATH = { name: "npub1…", secret: "{invoice_id}", request_id: "{x-request-id}" };
const METHODS = {
  "/v1/chat/completions": "chat.completions.create",
  "/v1/completions": "completions.create",
  "/v1/responses": "responses.create",
  "/v1/embeddings": "embeddings.create",
  "/v1/moderations": "moderations.create",
  "/v1/images/generations": "images.generate",
  "/v1/audio/transcriptions": "audio.transcriptions.create",
  "/v1/audio/translations": "audio.translations.create",
  "/v1/audio/speech": "audio.speech.create",
};

/**
 * The examples of one operation by language; "curl" is always there.
 *
 * @param {{document: Object, method: string, path: string, operation: Object, origin: string,
 *   model: string}} what model: one that is for sale.
 */
export function examplesOf(what) {
  const found = { curl: curl(what) };
  const called = METHODS[what.path];
  if (called && what.method === "post") {
    const fields = bodyOf(what);
    found.python = python(what.origin, called, fields);
    found.javascript = javascript(what.origin, called, fields);
  }
  return found;
}

function bodyOf({ document, operation, model }) {
  const [[type, media]] = Object.entries(operation.requestBody?.content ?? { "": {} });
  if (!type) return null;
  return exampleOf(document, media.schema ?? {}, { ...HINTS, model });
}

function curl(what) {
  const { document, method, path, operation, origin, model } = what;
  const filled = path.replaceAll(/\{(\w+)\}/g, (_, name) => IN_PATH[name] ?? model);
  const query = (operation.parameters ?? [])
    .filter((parameter) => parameter.in === "query" && parameter.required)
    .map(({ name, schema }) => `${name}=${encodeURI(String(exampleOf(document, schema ?? {}, HINTS, name)))}`);
  const url = origin + filled + (query.length ? `?${query.join("&")}` : "");
  const lines = [`curl ${quoteIfNeeded(url)}`];
  if (method !== "get" && !(method === "post" && operation.requestBody)) lines.push(`-X ${method.toUpperCase()}`);
  const paid = (operation.security ?? []).flatMap(Object.keys);
  if (paid.includes("key")) lines.push(`-H 'Authorization: Bearer ${KEY}'`);
  else if (paid.includes("token")) lines.push(`-H 'X-Cashu: ${TOKEN}'`);
  const [type] = Object.keys(operation.requestBody?.content ?? {});
  const body = bodyOf(what);
  if (type?.startsWith("multipart/")) {
    for (const [name, value] of Object.entries(body)) lines.push(`-F ${quote(`${name}=${value}`)}`);
  } else if (type) {
    lines.push("-H 'Content-Type: application/json'");
    lines.push(`-d ${quote(JSON.stringify(body))}`);
  }
  const [made] = Object.keys(operation.responses?.["200"]?.content ?? {});
  if (made?.startsWith("audio/")) lines.push("-o speech.mp3");
  if (made === "text/event-stream") lines.push("-N");
  return lines.join(" \\\n  ");
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const quoteIfNeeded = (text) => (/^[\w:/.%-]+$/.test(text) ? text : quote(text));

function python(origin, called, fields) {
  const said = Object.entries(fields ?? {}).map(([name, value]) => `    ${name}=${pythonValue(value)},`);
  const spoken = called.startsWith("audio.speech");
  const last = spoken ? 'answer.write_to_file("speech.mp3")' : "print(answer)";
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key="${KEY}")  # or a Cashu token`,
    `answer = client.${called}(`,
    ...said,
    ")",
    last,
  ].join("\n");
}

function pythonValue(value) {
  if (typeof value === "string" && value.startsWith("@")) return `open(${JSON.stringify(value.slice(1))}, "rb")`;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${pythonValue(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

function javascript(origin, called, fields) {
  const file = Object.values(fields ?? {}).some((value) => String(value).startsWith("@"));
  const said = Object.entries(fields ?? {}).map(([name, value]) => `  ${name}: ${javascriptValue(value)},`);
  return [
    ...(file ? ['import fs from "node:fs";'] : []),
    'import OpenAI from "openai";',
    "",
    `const client = new OpenAI({ baseURL: "${origin}/v1", apiKey: "${KEY}" }); // or a Cashu token`,
    `const answer = await client.${called}({`,
    ...said,
    "});",
    "console.log(answer);",
  ].join("\n");
}

function javascriptValue(value) {
  if (typeof value === "string" && value.startsWith("@")) return `fs.createReadStream(${JSON.stringify(value.slice(1))})`;
  return JSON.stringify(value);
}
