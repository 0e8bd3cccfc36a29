// The user: who they are, and their password.

import * as api from "../api.js";
import { copyable, field, form, notify } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { moment } from "../format.js";
import { pageHead } from "../shell.js";

export async function show(root, { title, me }) {
  title("Account");
  const username = h("input", { type: "email", autocomplete: "username", value: me.email, readOnly: true });
  const current = h("input", { type: "password", autocomplete: "current-password", required: true });
  const next = h("input", {
    type: "password",
    autocomplete: "new-password",
    required: true,
    minLength: 10,
    maxLength: 256,
  });
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  fill(
    root,
    pageHead("Account"),
    h(
      "div",
      { class: "columns" },
      h(
        "section",
        { class: "card" },
        h("h2", {}, "You"),
        h(
          "dl",
          { class: "facts-list" },
          me.name ? fact("Name", me.name) : null,
          fact("E-mail", me.email),
          fact("Since", moment(me.created_at)),
          fact("Id", copyable(me.id)),
          me.operator ? fact("Operator", "You see and drain hosts.") : null,
        ),
      ),
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Password"),
        form({
          fields: [
            field("E-mail", username),
            field("Current password", current),
            field("New password", next, "At least 10 characters. All other sessions of yours end."),
          ],
          submit: "Change password",
          run: async () => {
            await api.post("/v1/me/password", { current: current.value, new: next.value });
            current.value = "";
            next.value = "";
            notify("The password is changed.");
          },
        }),
      ),
    ),
  );
}
