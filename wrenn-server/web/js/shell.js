// The frame around every page: navigation, teams, and who is logged in.

import * as api from "./api.js";
import { select } from "./dialogs.js";
import { h } from "./dom.js";
import { icon, mark } from "./icons.js";
import * as session from "./session.js";

const PAGES = [
  ["sandboxes", "Sandboxes", "box"],
  ["snapshots", "Snapshots", "camera"],
  ["keys", "API keys", "key"],
  ["team", "Team", "users"],
];

/** The team that is worked in: the chosen one while the user is in it, or the first. */
export function currentTeam(me) {
  return me.teams.find((team) => team.id === session.team()) ?? me.teams[0];
}

export function mayAdminister(team) {
  return team.role === "admin" || team.role === "owner";
}

async function logOut() {
  try {
    await api.post("/v1/auth/logout");
  } catch {
    // Whoever cannot reach the server is logged out here all the same.
  }
  session.forget("");
}

function teamChoice(me, team) {
  if (me.teams.length < 2) return h("p", { class: "team-name", title: team.name }, team.name);
  const choice = select(
    me.teams.map(({ id, name }) => [id, name]),
    team.id,
  );
  choice.setAttribute("aria-label", "Team");
  choice.addEventListener("change", () => {
    session.chooseTeam(choice.value);
    // Nothing of the other team is to stay: neither on the page nor in what it asks for.
    location.hash = "#/sandboxes";
    location.reload();
  });
  return choice;
}

/** Makes the frame; `show` marks the page that one is on. */
export function frame(me) {
  const team = currentTeam(me);
  const pages = [...PAGES];
  if (team && mayAdminister(team)) pages.push(["activity", "Activity", "activity"]);
  if (me.operator) pages.push(["hosts", "Hosts", "server"]);
  const links = new Map();
  for (const [id, label, name] of pages) {
    links.set(id, h("a", { href: `#/${id}`, class: "nav-link" }, icon(name), h("span", {}, label)));
  }
  const account = h(
    "a",
    { href: "#/account", class: "nav-link" },
    icon("user"),
    h("span", { class: "clip" }, me.name || me.email),
  );
  links.set("account", account);
  const main = h("main", { id: "main", tabIndex: -1 });
  const element = h(
    "div",
    { class: "frame" },
    h(
      "a",
      {
        href: "#main",
        class: "skip",
        onclick: (event) => {
          event.preventDefault();
          main.focus();
        },
      },
      "Skip to the content",
    ),
    h(
      "header",
      { class: "side" },
      h("a", { href: "#/sandboxes", class: "brand", "aria-label": "Wrenn: sandboxes" }, mark(), h("span", {}, "Wrenn")),
      team ? h("div", { class: "side-team" }, teamChoice(me, team)) : null,
      h(
        "nav",
        { "aria-label": "Pages" },
        pages.map(([id]) => links.get(id)),
      ),
      h(
        "div",
        { class: "side-end" },
        h(
          "a",
          { href: "/docs/", class: "nav-link", target: "_blank", rel: "noopener" },
          icon("book"),
          h("span", {}, "API reference"),
        ),
        account,
        h("button", { type: "button", class: "nav-link", onclick: logOut }, icon("logout"), h("span", {}, "Log out")),
      ),
    ),
    main,
  );
  const show = (page) => {
    for (const [id, link] of links) {
      if (id === page) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    // On a narrow screen they are more than it shows.
    links.get(page)?.scrollIntoView({ block: "nearest", inline: "center" });
  };
  return { element, main, show };
}

/** The head of a page: its title, what there is to say, and what can be done. */
export function pageHead(title, text, ...actions) {
  return h(
    "div",
    { class: "page-head" },
    h("div", {}, h("h1", { tabIndex: -1 }, title), text ? h("p", { class: "quiet" }, text) : null),
    h("div", { class: "actions" }, actions),
  );
}
