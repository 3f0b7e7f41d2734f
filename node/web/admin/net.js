// Calls of the admin interface: an ended session asks for the password and goes on, and a node that
// does not answer is told and waited for.

import { ApiError, call, follow } from "/static/api.js";

export { ApiError };

const BASE = "/admin/api";
const PROBE_MS = 2_000;
const RECONNECT_MS = 2_000;

/** What the frame does about it; set once by app.js. */
const frame = {
  signIn: async () => {},
  connection: () => {},
};
let lost = false;

/**
 * @param {function(): Promise<void>} signIn asks for the password until it is right.
 * @param {function(boolean): void} connection told when the node stops or starts to answer.
 */
export function connect(signIn, connection) {
  Object.assign(frame, { signIn, connection });
}

/**
 * One call below /admin/api; see `call`. Refused for want of a session it is made again after
 * signing in: the node did nothing then.
 */
export async function ask(path, options = {}) {
  for (;;) {
    try {
      const answer = await call(BASE + path, options);
      found();
      return answer;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (isGone(error)) lose();
      else found();
      if (error.status !== 401 || path === "/login") throw error;
      await frame.signIn();
    }
  }
}

/** `ask` with a body. */
export const send = (method, path, body, options = {}) => ask(path, { ...options, method, body });

/** Whether the session holds: true or false; throws ApiError when nobody answers. */
export async function hasSession() {
  try {
    await call(`${BASE}/session`);
    return true;
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return false;
    throw error;
  }
}

/**
 * Follows server-sent events until the signal ends it, through ended sessions and restarts.
 *
 * @param {function("open"|"waiting"): void} state
 */
export function stream(path, handlers, state, signal) {
  let stop = () => {};
  let timer = 0;
  const start = () => {
    if (signal.aborted) return;
    stop = follow(BASE + path, handlers, (now) => {
      if (signal.aborted) return;
      state(now === "open" ? "open" : "waiting");
      if (now === "closed") again();
      else if (now === "waiting" && !lost) check();
    });
  };
  const check = () => ask("/session", { signal }).catch(() => {});
  const again = () => {
    stop();
    timer = setTimeout(() => check().then(start), RECONNECT_MS);
  };
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    stop();
  });
  start();
}

/** No answer of the node itself: none at all, or one of a proxy before it. */
function isGone(error) {
  return error.status === 0 || (error.status >= 502 && error.code === "");
}

function lose() {
  if (lost) return;
  lost = true;
  frame.connection(false);
  setTimeout(probe, PROBE_MS);
}

function found() {
  if (!lost) return;
  lost = false;
  frame.connection(true);
}

async function probe() {
  if (!lost) return;
  try {
    await hasSession();
    found();
  } catch (error) {
    if (!isGone(error)) found();
    else setTimeout(probe, PROBE_MS);
  }
}
