// Requests to the API, and its errors.

import * as session from "./session.js";

/** What the server refused with, or that it could not be reached (`code` is `unreachable` then). */
export class ApiError extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

function unreachable() {
  return new ApiError(0, "unreachable", "The server cannot be reached.");
}

/** Makes a sentence of the API's messages, which begin with a small letter and have no full stop. */
function sentence(text) {
  const end = /[.!?…]$/.test(text) ? "" : ".";
  return text.charAt(0).toUpperCase() + text.slice(1) + end;
}

export function errorOf(status, text, retryAfter = null) {
  try {
    const { code, message } = JSON.parse(text).error;
    return new ApiError(status, String(code), sentence(String(message)), Number(retryAfter) || null);
  } catch {
    return new ApiError(status, "unknown", `The server answered with status ${status}.`);
  }
}

async function send(path, { method, headers, body, signal }) {
  try {
    return await fetch(path, { method, headers, body, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
}

async function checked(response) {
  if (response.ok) return response;
  throw errorOf(response.status, await response.text(), response.headers.get("retry-after"));
}

async function token(refused) {
  try {
    return await session.accessToken(refused);
  } catch (error) {
    if (error instanceof TypeError) throw unreachable();
    throw error;
  }
}

function headersFor(access, extra) {
  const headers = { authorization: `Bearer ${access}`, ...extra };
  const team = session.team();
  if (team) headers["x-team-id"] = team;
  return headers;
}

/** Sends a request as the user; a token that is no longer good is renewed once. */
export async function request(method, path, { body, headers = {}, signal } = {}) {
  let access = await token();
  for (let attempt = 0; ; attempt += 1) {
    if (!access) throw new ApiError(401, "unauthenticated", "You are logged out.");
    const response = await send(path, { method, headers: headersFor(access, headers), body, signal });
    if (response.status !== 401 || attempt > 0) return checked(response);
    const error = errorOf(401, await response.text());
    if (error.code !== "unauthenticated") throw error;
    access = await token(access);
  }
}

async function json(method, path, value, { headers = {}, signal } = {}) {
  const body = value === undefined ? undefined : JSON.stringify(value);
  const kind = value === undefined ? {} : { "content-type": "application/json" };
  const response = await request(method, path, { body, headers: { ...kind, ...headers }, signal });
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

export const get = (path, options) => json("GET", path, undefined, options);
export const post = (path, value, options) => json("POST", path, value, options);
export const put = (path, value, options) => json("PUT", path, value, options);
export const patch = (path, value, options) => json("PATCH", path, value, options);
export const remove = (path, options) => json("DELETE", path, undefined, options);

/** Sends a request that needs nobody to be logged in. */
export async function publicPost(path, value) {
  const headers = { "content-type": "application/json" };
  const response = await checked(await send(path, { method: "POST", headers, body: JSON.stringify(value) }));
  return response.json();
}

/** Sends a file. Unlike `fetch`, this tells how far it got. */
export async function upload(path, file, { onProgress, signal }) {
  const access = await token();
  if (!access) throw new ApiError(401, "unauthenticated", "You are logged out.");
  return new Promise((resolve, reject) => {
    const transfer = new XMLHttpRequest();
    const headers = headersFor(access, { "content-type": "application/octet-stream" });
    transfer.open("PUT", path);
    for (const [name, value] of Object.entries(headers)) transfer.setRequestHeader(name, value);
    transfer.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable && event.total > 0) onProgress(event.loaded / event.total);
    });
    transfer.addEventListener("load", () => {
      if (transfer.status < 300) resolve();
      else reject(errorOf(transfer.status, transfer.responseText));
    });
    transfer.addEventListener("error", () => reject(unreachable()));
    transfer.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal?.addEventListener("abort", () => transfer.abort());
    transfer.send(file);
  });
}

/** Opens a WebSocket. Pages cannot set its headers, so what else is in them is offered as subprotocols. */
export async function socket(path) {
  const access = await token();
  if (!access) throw new ApiError(401, "unauthenticated", "You are logged out.");
  const protocols = ["wrenn", `wrenn.token.${access}`];
  const team = session.team();
  if (team) protocols.push(`wrenn.team.${team}`);
  const url = new URL(path, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const opened = new WebSocket(url, protocols);
  opened.binaryType = "arraybuffer";
  return opened;
}

/** A key that makes a request that is sent twice count once. */
export function idempotencyKey() {
  // Not `randomUUID`, which browsers keep from pages that came over plain HTTP.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const sandboxPath = (id, rest = "") => `/v1/sandboxes/${encodeURIComponent(id)}${rest}`;
