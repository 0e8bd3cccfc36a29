// What was done in the team.

import * as api from "../api.js";
import { button, busy, empty, failure } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { moment } from "../format.js";
import { pageHead } from "../shell.js";

const PAGE = 50;

export async function show(root, { signal, title, team }) {
  title("Activity");
  const body = h("tbody");
  const place = h("div", {}, h("p", { class: "loading" }, "Loading…"));
  const more = button("Show more", { hidden: true });
  more.addEventListener("click", () => busy(more, load));
  let last = null;
  let people = new Map();

  const who = (actor) => {
    const [kind, id] = actor.split(":");
    return kind === "user" ? (people.get(id) ?? "a former member") : `key ${id?.slice(0, 8)}`;
  };

  function row(entry) {
    const detail = Object.entries(entry.detail ?? {})
      .map(([key, value]) => `${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`)
      .join(", ");
    return h(
      "tr",
      {},
      h("td", { class: "cell-name" }, h("code", {}, entry.action)),
      h("td", { "data-label": "What" }, h("code", { class: "clip subject", title: entry.subject }, entry.subject)),
      h("td", { "data-label": "Detail" }, detail ? h("span", { class: "clip quiet", title: detail }, detail) : null),
      h("td", { "data-label": "Who" }, h("span", { class: "clip" }, who(entry.actor))),
      h("td", { "data-label": "When" }, moment(entry.at)),
    );
  }

  async function load() {
    try {
      const query = new URLSearchParams({ limit: String(PAGE), ...(last ? { before: String(last) } : {}) });
      const { entries } = await api.get(`/v1/audit?${query}`, { signal });
      body.append(...entries.map(row));
      last = entries.at(-1)?.id ?? last;
      more.hidden = entries.length < PAGE;
      if (body.children.length === 0) {
        fill(place, empty("activity", "Nothing yet", "Here is told who did what in the team."));
        return;
      }
      if (!place.contains(body)) {
        fill(
          place,
          h(
            "table",
            { class: "table" },
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                ["Action", "What", "Detail", "Who", "When"].map((name) => h("th", { scope: "col" }, name)),
              ),
            ),
            body,
          ),
        );
      }
    } catch (error) {
      if (error.name !== "AbortError") fill(place, failure(error));
    }
  }

  fill(root, pageHead("Activity", `What was done in ${team.name}, the latest first.`), place, more);
  try {
    const { members } = await api.get(`/v1/teams/${encodeURIComponent(team.id)}/members`, { signal });
    people = new Map(members.map((member) => [member.user_id, member.name || member.email]));
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  await load();
}
