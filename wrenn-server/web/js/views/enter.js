// Signing up and logging in.

import * as api from "../api.js";
import { field, form } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { mark } from "../icons.js";
import * as session from "../session.js";

export function show(app, { message, entered }) {
  const place = h("div", { class: "enter-card" });
  const choose = (signUp, note) => fill(place, signUp ? signUpForm() : logInForm(note));
  const other = (text, label, go) =>
    h("p", { class: "enter-other" }, text, " ", h("button", { type: "button", class: "link", onclick: go }, label));

  async function logIn(email, password) {
    session.begin(await api.publicPost("/v1/auth/login", { email, password }));
    entered();
  }

  function logInForm(note) {
    const email = h("input", { type: "email", name: "email", autocomplete: "username", required: true });
    const password = h("input", {
      type: "password",
      name: "password",
      autocomplete: "current-password",
      required: true,
    });
    return [
      h("h1", {}, "Log in"),
      note ? h("p", { class: "banner", role: "status" }, note) : null,
      form({
        fields: [field("E-mail", email), field("Password", password)],
        submit: "Log in",
        run: () => logIn(email.value, password.value),
      }),
      other("No account yet?", "Sign up", () => {
        choose(true);
        place.querySelector("input").focus();
      }),
    ];
  }

  function signUpForm() {
    const name = h("input", { type: "text", name: "name", autocomplete: "name", maxLength: 100 });
    const email = h("input", { type: "email", name: "email", autocomplete: "username", required: true });
    const password = h("input", {
      type: "password",
      name: "password",
      autocomplete: "new-password",
      required: true,
      minLength: 10,
      maxLength: 256,
    });
    const run = async () => {
      const account = { email: email.value, password: password.value, name: name.value };
      await api.publicPost("/v1/auth/signup", account);
      try {
        await logIn(account.email, account.password);
      } catch (error) {
        // The server does not tell whether the address had an account, so that nobody learns who has one.
        if (error.code !== "invalid_credentials") throw error;
        choose(false, "Log in with the password of your account. If you forgot it, ask whoever runs this server.");
      }
    };
    return [
      h("h1", {}, "Create an account"),
      form({
        fields: [
          field("Name", name, "What your team sees. You may leave it out."),
          field("E-mail", email),
          field("Password", password, "At least 10 characters."),
        ],
        submit: "Sign up",
        run,
      }),
      other("You have an account?", "Log in", () => {
        choose(false);
        place.querySelector("input").focus();
      }),
    ];
  }

  choose(false, message);
  fill(
    app,
    h(
      "div",
      { class: "enter" },
      h(
        "section",
        { class: "enter-about" },
        h("div", { class: "brand" }, mark(), h("span", {}, "Wrenn")),
        h("h2", {}, "MicroVMs that pause, resume and branch."),
        h(
          "ul",
          {},
          h("li", {}, "A machine with a kernel of its own for every sandbox"),
          h("li", {}, "Paused to disk, and back where it was"),
          h("li", {}, "Branched while it runs, files and memory alike"),
        ),
      ),
      h("main", {}, place),
    ),
  );
}
