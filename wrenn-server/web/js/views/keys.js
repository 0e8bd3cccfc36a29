// The team's API keys.

import * as api from "../api.js";
import { ask, button, confirmed, copyable, empty, failure, notify } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { ago, moment } from "../format.js";
import { mayAdminister, pageHead } from "../shell.js";

export async function show(root, { signal, title, team }) {
  title("API keys");
  const may = mayAdminister(team);
  const place = h("div", {}, h("p", { class: "loading" }, "Loading…"));
  const fresh = h("div");
  const create = () => button("New key", { icon: "plus", kind: "primary", onclick: makeKey });

  function row(key) {
    const revoke = button(`Revoke ${key.name}`, {
      icon: "trash",
      bare: true,
      kind: "quiet-danger",
      onclick: () => revokeKey(key),
    });
    return h(
      "tr",
      {},
      h("td", { class: "cell-name" }, h("strong", {}, key.name)),
      h("td", { "data-label": "Key" }, h("code", {}, `${key.prefix}…`)),
      h("td", { "data-label": "Created", title: moment(key.created_at) }, ago(key.created_at)),
      h("td", { "data-label": "Last used" }, key.last_used_at ? ago(key.last_used_at) : "never"),
      h("td", { class: "cell-actions" }, may ? revoke : null),
    );
  }

  async function load() {
    try {
      const { keys } = await api.get("/v1/keys", { signal });
      if (keys.length === 0) {
        fill(
          place,
          empty(
            "key",
            "No keys yet",
            "Programs and SDKs show a key in place of your password. It is sent as X-API-Key.",
            may ? create() : null,
          ),
        );
        return;
      }
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
              ["Name", "Key", "Created", "Last used"].map((name) => h("th", { scope: "col" }, name)),
              h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")),
            ),
          ),
          h("tbody", {}, keys.map(row)),
        ),
      );
    } catch (error) {
      if (error.name !== "AbortError") fill(place, failure(error));
    }
  }

  async function makeKey() {
    const made = await ask({
      title: "New API key",
      label: "Name",
      hint: "What it is for, so that you know later which one to revoke.",
      maxLength: 100,
      submit: "Create key",
      run: (name) => api.post("/v1/keys", { name }),
    });
    if (!made) return;
    showOnce(made);
    load();
  }

  function showOnce(made) {
    const line = `curl -H "X-API-Key: $WRENN_API_KEY" ${location.origin}/v1/sandboxes`;
    fill(
      fresh,
      h(
        "section",
        { class: "card fresh-key", "aria-label": "The new key", tabIndex: -1 },
        h("h2", {}, `Key “${made.name}”`),
        h("p", {}, "Copy it now: it is not shown again, and only its hash is kept."),
        copyable(made.key, { secret: true }),
        h("p", { class: "quiet" }, "With it in the environment as WRENN_API_KEY:"),
        h("pre", {}, line),
        button("I have it", { icon: "check", onclick: () => fill(fresh) }),
      ),
    );
    fresh.firstChild.focus();
  }

  async function revokeKey(key) {
    const run = async () => {
      await api.remove(`/v1/keys/${encodeURIComponent(key.id)}`);
      notify(`Key ${key.name} is revoked.`);
    };
    await confirmed({
      title: `Revoke ${key.name}?`,
      text: "Whatever uses it is refused from now on.",
      submit: "Revoke",
      run,
    });
    load();
  }

  fill(
    root,
    pageHead(
      "API keys",
      may ? "What programs show in place of a password." : "Admins of the team make and revoke them.",
      may ? create() : null,
    ),
    fresh,
    place,
  );
  await load();
}
