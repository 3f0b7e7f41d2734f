// The node's own interface: JSON with a deadline, its one error body, and server-sent events.

export const DEADLINE_MS = 15_000;

/** What the node refused, in its own words; status 0 when there was no answer. */
export class ApiError extends Error {
  constructor(status, error = {}, retryAfterS = null) {
    super(error.message || (status ? `The node answered ${status}` : "The node does not answer"));
    this.name = "ApiError";
    this.status = status;
    this.code = error.code ?? "";
    this.param = error.param ?? null;
    this.requestId = error.requestId ?? "";
    this.retryAfterS = retryAfterS;
  }
}

/**
 * One call. Gives the JSON object of the answer; null when it has none.
 *
 * @param {string} path such as "/v1/info".
 * @param {{method?: string, query?: Object, body?: Object, signal?: AbortSignal,
 *   deadlineMs?: number, headers?: Object}} [options] query values that are null, undefined or
 *   empty are left out; a body is sent as JSON.
 * @throws {ApiError} and DOMException "AbortError" when `signal` ended it.
 */
export async function call(path, options = {}) {
  const { method = "GET", query = {}, body, signal, deadlineMs = DEADLINE_MS, headers = {} } = options;
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  const ends = [AbortSignal.timeout(deadlineMs), ...(signal ? [signal] : [])];
  const request = { method, headers: { accept: "application/json", ...headers } };
  if (body !== undefined) {
    request.body = JSON.stringify(body);
    request.headers["content-type"] = "application/json";
  }
  let answer, text;
  try {
    answer = await fetch(url, { ...request, signal: AbortSignal.any(ends), cache: "no-cache" });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    const slow = error.name === "TimeoutError";
    throw new ApiError(0, { message: slow ? "The node took too long to answer" : "" });
  }
  let document = null;
  try {
    document = text ? JSON.parse(text) : null;
  } catch {
    if (answer.ok) throw new ApiError(answer.status, { message: "The answer is not JSON" });
  }
  if (!answer.ok) {
    const requestId = document?.request_id ?? "";
    throw new ApiError(answer.status, { ...document?.error, requestId }, after(answer));
  }
  return document;
}

/** `call` with GET. */
export const get = (path, query = {}, options = {}) => call(path, { ...options, query });

function after(answer) {
  const seconds = Number(answer.headers.get("retry-after"));
  return Number.isFinite(seconds) && seconds > 0 ? seconds : null;
}

/**
 * Follows server-sent events as long as the page is seen.
 *
 * @param {string} path
 * @param {Object<string, function(Object): void>} handlers by the event's name ("message" for those
 *   without), given the JSON of its data.
 * @param {function("open"|"waiting"|"closed"): void} [state] closed: the node refuses; it is not
 *   tried again.
 * @returns {function(): void} ends it.
 */
export function follow(path, handlers, state = () => {}) {
  let source = null;
  const stop = () => {
    source?.close();
    source = null;
  };
  const start = () => {
    if (source !== null) return;
    source = new EventSource(path);
    source.onopen = () => state("open");
    source.onerror = () => state(source?.readyState === EventSource.CLOSED ? "closed" : "waiting");
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        let document;
        try {
          document = JSON.parse(event.data);
        } catch {
          return; // not ours
        }
        handle(document);
      });
    }
  };
  const seen = () => (window.document.hidden ? stop() : start());
  window.document.addEventListener("visibilitychange", seen);
  addEventListener("pagehide", stop);
  addEventListener("pageshow", seen);
  seen();
  return () => {
    window.document.removeEventListener("visibilitychange", seen);
    removeEventListener("pagehide", stop);
    removeEventListener("pageshow", seen);
    stop();
  };
}
