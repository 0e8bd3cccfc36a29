// The beginning: who is here, and which page they want. A page's address is behind the `#`.

import * as api from "./api.js";
import { empty, failure } from "./dialogs.js";
import { fill, h } from "./dom.js";
import * as session from "./session.js";
import { currentTeam, frame } from "./shell.js";
import * as account from "./views/account.js";
import * as activity from "./views/activity.js";
import * as enter from "./views/enter.js";
import * as hosts from "./views/hosts.js";
import * as keys from "./views/keys.js";
import * as sandbox from "./views/sandbox.js";
import * as sandboxes from "./views/sandboxes.js";
import * as snapshots from "./views/snapshots.js";
import * as team from "./views/team.js";

// A view's `show(root, context)` fills the page; `context.signal` ends what it began.
const ROUTES = [
  [/^\/sandboxes$/, "sandboxes", sandboxes],
  [/^\/sandboxes\/([^/]+)(?:\/(terminal|files|overview))?$/, "sandboxes", sandbox],
  [/^\/snapshots$/, "snapshots", snapshots],
  [/^\/keys$/, "keys", keys],
  [/^\/team$/, "team", team],
  [/^\/activity$/, "activity", activity],
  [/^\/hosts$/, "hosts", hosts],
  [/^\/account$/, "account", account],
];

const app = document.getElementById("app");
let current = new AbortController();
let open = null;

function title(text) {
  document.title = text ? `${text} · Wrenn` : "Wrenn";
}

function leave() {
  current.abort();
  current = new AbortController();
}

function showEntrance(message) {
  leave();
  open = null;
  title("Log in");
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  enter.show(app, { message, entered: () => start() });
}

async function start() {
  leave();
  fill(app, h("div", { class: "loading", role: "status" }, "Loading…"));
  try {
    const me = await api.get("/v1/me");
    open = { me, ...frame(me) };
    fill(app, open.element);
    route();
  } catch (error) {
    if (error.status === 401) return;
    const again = h("button", { type: "button", class: "button primary", onclick: () => start() }, "Try again");
    fill(app, h("main", { class: "alone" }, empty("server", "The server cannot be reached", error.message, again)));
  }
}

function route() {
  if (!open) return;
  const path = decodeURI(location.hash.slice(1)) || "/sandboxes";
  leave();
  const { me, main } = open;
  const context = { me, team: currentTeam(me), signal: current.signal, title, reload: start };
  const found = ROUTES.find(([pattern]) => pattern.test(path));
  const root = fill(h("div", { class: "page" }));
  fill(main, root);
  open.show(found?.[1]);
  if (!found) {
    title("Not found");
    const back = h("a", { class: "button primary", href: "#/sandboxes" }, "To the sandboxes");
    fill(root, empty("search", "There is no such page", "The address may be mistyped.", back));
    return;
  }
  const [pattern, , view] = found;
  Promise.resolve(view.show(root, context, ...path.match(pattern).slice(1))).catch((error) => {
    if (error.name !== "AbortError" && !context.signal.aborted) fill(root, failure(error));
  });
  // Whoever hears the page learns that it is another one now.
  root.querySelector("h1")?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

addEventListener("hashchange", () => {
  if (location.hash !== "#main") route();
});
session.whenOver(showEntrance);
if (session.isOpen()) start();
else showEntrance("");
