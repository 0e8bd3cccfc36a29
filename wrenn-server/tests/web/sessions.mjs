// Tokens: renewed when they have to be, in one tab at a time, and gone in all of them.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import { logIn } from "./accounts.mjs";

const stored = (page) => page.evaluate(() => JSON.parse(localStorage.getItem("wrenn.session")));

/** Makes the access token one that the server refuses, or one whose time is over. */
function spoil(page, how) {
  return page.evaluate((spoilt) => {
    const session = JSON.parse(localStorage.getItem("wrenn.session"));
    localStorage.setItem("wrenn.session", JSON.stringify({ ...session, ...spoilt }));
  }, how);
}

export async function sessions({ step, context, page, email, password }) {
  const heading = (tab) => tab.getByRole("heading", { name: "Sandboxes", level: 1 });
  await step("a token that is refused is renewed", async () => {
    const before = await stored(page);
    await spoil(page, { access: "refused" });
    await page.goto("/#/sandboxes");
    await page.reload();
    await heading(page).waitFor();
    const after = await stored(page);
    assert.notEqual(after.access, "refused");
    assert.notEqual(after.refresh, before.refresh);
  });
  await step("tabs that renew at a time do not end the session", async () => {
    const tabs = [page, await context.newPage(), await context.newPage()];
    let renewals = 0;
    // Long enough for all of them to find that the token's time is over.
    await context.route("**/v1/auth/refresh", async (route) => {
      renewals += 1;
      await sleep(1000);
      await route.continue();
    });
    // From where nothing asks for anything yet.
    for (const tab of tabs) await tab.goto("/health");
    await spoil(page, { until: 0 });
    await Promise.all(tabs.map((tab) => tab.goto("/", { waitUntil: "commit" })));
    for (const tab of tabs) await heading(tab).waitFor();
    assert.equal(renewals, 1);
    await context.unroute("**/v1/auth/refresh");
    await page.reload();
    await heading(page).waitFor();
    for (const tab of tabs.slice(1)) await tab.close();
  });
  await step("logging out, in all tabs", async () => {
    const other = await context.newPage();
    await other.goto("/");
    await heading(other).waitFor();
    const { access } = await stored(page);
    await page.getByRole("button", { name: "Log out" }).click();
    for (const tab of [page, other]) await tab.getByRole("heading", { name: "Log in" }).waitFor();
    assert.equal(await stored(page), null);
    const me = await page.request.get("/v1/me", { headers: { authorization: `Bearer ${access}` } });
    assert.equal(me.status(), 401);
    await other.close();
  });
  await step("logging in with the new password", async () => {
    await logIn(page, email, password);
    await heading(page).waitFor();
  });
  await step("a session that was ended elsewhere leads to the entrance", async () => {
    await spoil(page, { access: "refused", refresh: "wrr_refused" });
    await page.reload();
    await page.getByText("Your session has ended.").waitFor();
    await logIn(page, email, password);
    await heading(page).waitFor();
  });
}
