// The team: its name, members, invitations; other teams.

import * as api from "../api.js";
import { ask, button, busy, confirmed, copyable, failure, field, formDialog, notify, select } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { ago, duration, moment } from "../format.js";
import * as session from "../session.js";
import { mayAdminister, pageHead } from "../shell.js";

const ROLES = [
  ["member", "Member"],
  ["admin", "Admin"],
  ["owner", "Owner"],
];
const nameOf = (role) => ROLES.find(([id]) => id === role)?.[1] ?? role;

export async function show(root, context) {
  const { signal, title, me, team, reload } = context;
  title("Team");
  const may = mayAdminister(team);
  const owner = team.role === "owner";
  const path = (rest = "") => `/v1/teams/${encodeURIComponent(team.id)}${rest}`;
  const members = h("div", {}, h("p", { class: "loading" }, "Loading…"));
  const invitations = h("div");
  const fresh = h("div");

  const head = pageHead(
    team.name,
    `You are ${nameOf(team.role).toLowerCase()} of this team.`,
    may ? button("Rename", { icon: "edit", onclick: rename }) : null,
    may ? button("Invite", { icon: "plus", kind: "primary", onclick: invite }) : null,
  );
  fill(
    root,
    head,
    fresh,
    h("section", { class: "block" }, h("h2", {}, "Members"), members),
    may ? h("section", { class: "block" }, h("h2", {}, "Invitations"), invitations) : null,
    h(
      "section",
      { class: "block" },
      h("h2", {}, "Other teams"),
      h(
        "div",
        { class: "actions" },
        button("Join with a code", { icon: "link", onclick: join }),
        button("New team", { icon: "plus", onclick: create }),
      ),
    ),
  );

  function memberRow(member) {
    const self = member.user_id === me.id;
    let role = nameOf(member.role);
    if (owner) {
      role = select(ROLES, member.role);
      role.setAttribute("aria-label", `Role of ${member.email}`);
      role.addEventListener("change", async () => {
        try {
          await api.patch(path(`/members/${encodeURIComponent(member.user_id)}`), { role: role.value });
          notify(`${member.email} is ${nameOf(role.value).toLowerCase()} now.`);
          if (self) reload();
        } catch (error) {
          role.value = member.role;
          notify(error.message, "bad");
        }
      });
    }
    const label = self ? "Leave the team" : `Remove ${member.email}`;
    const out = button(label, {
      icon: self ? "logout" : "trash",
      bare: true,
      kind: "quiet-danger",
      onclick: () => takeOut(member, self),
    });
    return h(
      "tr",
      {},
      h(
        "td",
        { class: "cell-name" },
        h(
          "div",
          {},
          h("strong", {}, member.name || member.email),
          member.name ? h("span", { class: "quiet" }, ` ${member.email}`) : null,
        ),
      ),
      h("td", { "data-label": "Role" }, role),
      h("td", { "data-label": "Joined", title: moment(member.joined_at) }, ago(member.joined_at)),
      h("td", { class: "cell-actions" }, self || may ? out : null),
    );
  }

  async function loadMembers() {
    const found = await api.get(path("/members"), { signal });
    fill(
      members,
      h(
        "table",
        { class: "table" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Member", "Role", "Joined"].map((name) => h("th", { scope: "col" }, name)),
            h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")),
          ),
        ),
        h("tbody", {}, found.members.map(memberRow)),
      ),
    );
  }

  async function loadInvitations() {
    if (!may) return;
    const found = await api.get(path("/invitations"), { signal });
    if (found.invitations.length === 0) {
      fill(invitations, h("p", { class: "quiet" }, "None is open."));
      return;
    }
    fill(
      invitations,
      h(
        "ul",
        { class: "list" },
        found.invitations.map((one) => {
          const withdraw = button("Withdraw", { kind: "small" });
          withdraw.addEventListener("click", () =>
            busy(withdraw, async () => {
              try {
                await api.remove(path(`/invitations/${encodeURIComponent(one.id)}`));
              } catch (error) {
                notify(error.message, "bad");
              }
              load();
            }),
          );
          const left = duration((Date.parse(one.expires_at) - Date.now()) / 1000);
          return h(
            "li",
            {},
            h("span", {}, `For a new ${one.role}, made ${ago(one.created_at)}, good for ${left}`),
            withdraw,
          );
        }),
      ),
    );
  }

  async function load() {
    try {
      await Promise.all([loadMembers(), loadInvitations()]);
    } catch (error) {
      if (error.name !== "AbortError") fill(members, failure(error));
    }
  }

  async function takeOut(member, self) {
    const done = await confirmed({
      title: self ? `Leave ${team.name}?` : `Remove ${member.email}?`,
      text: self
        ? "You see nothing of it any more, until somebody invites you."
        : "They see nothing of the team any more.",
      submit: self ? "Leave" : "Remove",
      run: () => api.remove(path(`/members/${encodeURIComponent(member.user_id)}`)),
    });
    if (done && self) reload();
    else load();
  }

  async function rename() {
    if (
      await ask({
        title: "Rename the team",
        label: "Name",
        value: team.name,
        maxLength: 100,
        submit: "Rename",
        run: (name) => api.patch(path(), { name }),
      })
    )
      reload();
  }

  async function invite() {
    const role = select(
      ROLES.filter(([id]) => id === "member" || (owner && id === "admin")),
      "member",
    );
    const made = await formDialog({
      title: "Invite somebody",
      fields: [field("As", role, "Members work with sandboxes and snapshots; admins make keys and invitations too.")],
      submit: "Make a code",
      run: () => api.post(path("/invitations"), { role: role.value }),
    });
    if (!made) return;
    fill(
      fresh,
      h(
        "section",
        { class: "card fresh-key", tabIndex: -1, "aria-label": "The invitation" },
        h("h2", {}, "An invitation"),
        h("p", {}, "Whoever has this code may join, once, within a week. It is not shown again."),
        copyable(made.code, { secret: true }),
        button("I have it", { icon: "check", onclick: () => fill(fresh) }),
      ),
    );
    fresh.firstChild.focus();
    load();
  }

  async function join() {
    const joined = await ask({
      title: "Join a team",
      label: "Code",
      hint: "It begins with wri_.",
      submit: "Join",
      run: (code) => api.post("/v1/invitations/accept", { code: code.trim() }),
    });
    if (joined) goTo(joined);
  }

  async function create() {
    const made = await ask({
      title: "New team",
      label: "Name",
      maxLength: 100,
      submit: "Make team",
      run: (name) => api.post("/v1/teams", { name }),
    });
    if (made) goTo(made);
  }

  function goTo(other) {
    session.chooseTeam(other.id);
    notify(`You are in ${other.name} now.`);
    reload();
  }

  await load();
}
