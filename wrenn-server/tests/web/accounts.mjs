// Accounts, teams and keys: what needs no sandbox.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";

/** Markup, which is to be seen as it is wherever a user's text is shown. */
const HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>";
export const PASSWORD = "correct horse battery";

/** An address that nobody had before: the server may be used again and again. */
function address(name) {
  return `${name}-${randomBytes(5).toString("hex")}@example.org`;
}

export async function signUp(page, email, name) {
  await page.goto("/");
  await page.getByRole("button", { name: "Sign up" }).click();
  await page.getByLabel("Name", { exact: true }).fill(name);
  await page.getByLabel("E-mail").fill(email);
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Sign up" }).click();
  await page.getByRole("heading", { name: "Sandboxes", level: 1 }).waitFor();
}

export async function logIn(page, email, password) {
  await page.getByLabel("E-mail").fill(email);
  await page.getByLabel("Password").fill(password);
  await page.getByRole("button", { name: "Log in" }).click();
}

async function go(page, name) {
  await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name }).click();
}

export async function accounts({ url, visitor, step, look }) {
  const context = await visitor();
  const page = await context.newPage();
  const email = address("ada");

  await step("what is served is guarded", () => served(url));
  await step("the entrance", async () => {
    await page.goto("/test");
    await page.getByRole("heading", { name: "Log in" }).waitFor();
    await look.at(page, "log-in");
    await logIn(page, email, "not the password");
    await page.getByRole("alert").filter({ hasText: "do not go together" }).waitFor();
  });
  await step("signing up", async () => {
    await signUp(page, email, HOSTILE);
    await page.getByRole("heading", { name: "No sandboxes yet" }).waitFor();
    await look.at(page, "no-sandboxes");
  });
  await step("a sandbox of nothing is refused in words", async () => {
    await page.getByRole("button", { name: "New sandbox" }).first().click();
    await page.getByLabel("Template").fill("there-is-none");
    await look.at(page, "new-sandbox");
    await page.getByRole("button", { name: "Create" }).click();
    await page.getByRole("alert").filter({ hasText: "no such template" }).waitFor();
    await page.keyboard.press("Escape");
    assert.equal(await page.getByRole("dialog").count(), 0);
  });
  await step("keys", () => keys(url, page, look));
  await step("the team and who is in it", () => team(visitor, page, look));
  await step("activity", async () => {
    await go(page, "Activity");
    await page.getByText("key.create").first().waitFor();
    await look.at(page, "activity");
  });
  await step("the account", async () => {
    await page.getByRole("link", { name: HOSTILE }).click();
    await page.getByRole("heading", { name: "Account" }).waitFor();
    await look.at(page, "account");
    await page.getByLabel("Current password").fill(PASSWORD);
    await page.getByLabel("New password").fill(`${PASSWORD}, too`);
    await page.getByRole("button", { name: "Change password" }).click();
    await page.getByText("The password is changed.").waitFor();
  });
  await step("no text became markup", async () => {
    assert.equal(await page.locator("img").count(), 0);
    assert.doesNotMatch(await page.title(), /owned/);
  });
  return { context, page, email, password: `${PASSWORD}, too` };
}

async function served(url) {
  const page = await fetch(url);
  const policy = page.headers.get("content-security-policy");
  for (const rule of [
    "default-src 'none'",
    "script-src 'self';",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
  ]) {
    assert.ok(policy.includes(rule), policy);
  }
  const again = await fetch(url, { headers: { "if-none-match": page.headers.get("etag") } });
  assert.equal(again.status, 304);
  const [script] = (await page.text()).match(/\/assets\/[^"]+main\.js/);
  const file = await fetch(new URL(script, url));
  assert.match(file.headers.get("content-type"), /^text\/javascript/);
  assert.match(file.headers.get("cache-control"), /immutable/);
  for (const wrong of [
    "/assets/0/js/main.js",
    script.replace("js/main.js", "index.html"),
    script.replace("js/main.js", "..%2f..%2fCargo.toml"),
  ]) {
    assert.equal((await fetch(new URL(wrong, url))).status, 404, wrong);
  }
}

async function keys(url, page, look) {
  const uses = (key) => fetch(new URL("/v1/keys", url), { headers: { "x-api-key": key } });
  await go(page, "API keys");
  await page.getByRole("button", { name: "New key" }).first().click();
  await page.getByLabel("Name", { exact: true }).fill("laptop");
  await page.getByRole("button", { name: "Create key" }).click();
  const fresh = page.getByRole("region", { name: "The new key" });
  const key = await fresh.locator("code").first().innerText();
  assert.match(key, /^wrn_\w{20,}/);
  assert.equal((await uses(key)).status, 200);
  await look.at(page, "key");
  await fresh.getByRole("button", { name: "I have it" }).click();
  assert.ok(!(await page.content()).includes(key));
  await page.reload();
  const row = page.getByRole("row").filter({ hasText: "laptop" });
  await row.getByText(key.slice(0, 8)).waitFor();
  assert.ok(!(await page.content()).includes(key));
  await look.at(page, "keys");
  await row.getByRole("button", { name: "Revoke laptop" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Revoke" }).click();
  await page.getByRole("heading", { name: "No keys yet" }).waitFor();
  assert.equal((await uses(key)).status, 401);
}

async function team(visitor, page, look) {
  await go(page, "Team");
  await page.getByRole("button", { name: "Rename" }).click();
  await page.getByLabel("Name", { exact: true }).fill(HOSTILE);
  await page.getByRole("dialog").getByRole("button", { name: "Rename" }).click();
  await page.getByRole("heading", { name: HOSTILE, level: 1 }).waitFor();
  await page.getByRole("button", { name: "Invite" }).click();
  await page.getByRole("button", { name: "Make a code" }).click();
  const code = await page.getByRole("region", { name: "The invitation" }).locator("code").innerText();
  assert.match(code, /^wri_/);

  const context = await visitor();
  const bob = await context.newPage();
  const email = address("bob");
  await signUp(bob, email, "Bob");
  await go(bob, "Team");
  await bob.getByRole("button", { name: "Join with a code" }).click();
  await bob.getByLabel("Code").fill(code);
  await bob.getByRole("dialog").getByRole("button", { name: "Join" }).click();
  await bob.getByRole("heading", { name: HOSTILE, level: 1 }).waitFor();
  // A member makes no keys.
  await go(bob, "API keys");
  await bob.getByText("Admins of the team").waitFor();
  assert.equal(await bob.getByRole("button", { name: "New key" }).count(), 0);

  await page.reload();
  const role = page.getByLabel(`Role of ${email}`);
  await role.selectOption("admin");
  await page.getByText(`${email} is admin now.`).waitFor();
  await look.at(page, "team");
  await bob.reload();
  await bob.getByRole("button", { name: "New key" }).first().waitFor();
  // Back in a team of one's own, nothing of the other is in sight.
  await bob.getByLabel("Team", { exact: true }).selectOption({ index: 0 });
  await bob.getByRole("heading", { name: "No sandboxes yet" }).waitFor();
  await page.getByRole("button", { name: `Remove ${email}` }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
  await role.waitFor({ state: "detached" });
  await context.close();
}
