// Does with keys alone what people do on the console, from signing in to a settled unknown: Tab, Enter,
// arrow keys and typing. At every stop the focus is seen, and no live change takes it away. Prints one line
// for each thing that was done.
"use strict";
const assert = require("node:assert/strict");
const { call, job, run, say } = require("./console_kit.cjs");

const { control, token } = job;
const MOST_STOPS = 60;

const main = async (browser) => {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  context.setDefaultTimeout(10_000);
  const page = await context.newPage();
  const tree = await context.newCDPSession(page);

  /** Where the focus is: what a person sees of it. */
  const focus = () => page.evaluate(() => {
    const element = document.activeElement;
    // The switch of the colours shows its focus on what stands beside the input.
    const shown = [element, element.nextElementSibling].filter(Boolean).map((one) => getComputedStyle(one));
    const box = element.getBoundingClientRect();
    return {
      tag: element.tagName,
      id: element.id,
      text: ((element.labels?.[0] ?? element).textContent ?? "").trim().slice(0, 60),
      isOutlined: shown.some((style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0),
      isInView: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
    };
  });
  const seen = async () => {
    const at = await focus();
    assert.ok(at.tag !== "BODY" && at.isOutlined && at.isInView, JSON.stringify(at));
    return at;
  };
  /** Tab by Tab to what has this text, or this id. */
  const tabTo = async (wanted) => {
    const stops = [];
    for (let press = 0; press < MOST_STOPS; press += 1) {
      await page.keyboard.press("Tab");
      // Behind the last stop is the browser itself, and then the page begins anew.
      if ((await focus()).tag === "BODY") continue;
      const at = await seen();
      if (at.text.startsWith(wanted) || at.id === wanted) return at;
      stops.push(at.text.slice(0, 30));
    }
    assert.fail(`no ${wanted} among ${JSON.stringify(stops)}`);
  };
  const enter = () => page.keyboard.press("Enter");
  /** Everything that can have the focus has a name for who cannot see it. */
  const named = async () => {
    const { nodes } = await tree.send("Accessibility.getFullAXTree");
    const isFocusable = (node) => node.properties?.some(({ name, value }) => name === "focusable" && value.value);
    const controls = nodes.filter((node) => !node.ignored && isFocusable(node))
      .filter((node) => !["RootWebArea", "main"].includes(node.role.value));
    const nameless = controls.filter((node) => !node.name?.value.trim()).map((node) => node.role.value);
    assert.deepEqual(nameless, [], page.url());
    assert.ok(controls.length > 1, page.url());
  };

  await page.goto(`${control}/console`);
  assert.equal((await seen()).id, "token");
  await named();
  await page.keyboard.type(token);
  await enter();
  await page.getByText("Nothing has run yet").waitFor();
  say("signed in");

  await page.keyboard.press("Tab");
  assert.equal((await seen()).text, "Skip to the content");
  await enter();
  assert.equal((await seen()).id, "main");
  await tabTo("30d");
  await page.keyboard.press("?");
  assert.equal((await seen()).text, "Close");
  await named();
  await enter();
  assert.equal((await seen()).text, "30d");
  say("past the rail, and the list of keys");

  // The first request gives the page other sections.
  await page.keyboard.press("Shift+Tab");
  await page.getByText("Live").waitFor();
  assert.equal(await call("first-1", "sk-acme"), 200);
  await page.getByRole("link", { name: "first-1" }).waitFor();
  assert.equal((await seen()).text, "7d");
  await named();
  // What changes a link's own table, and the table's order.
  await tabTo("first-1");
  assert.equal(await call("second-1", "sk-acme"), 200);
  await page.getByRole("link", { name: "second-1" }).waitFor();
  assert.equal((await seen()).text, "first-1");
  await page.keyboard.press("k");
  assert.equal((await seen()).text, "second-1");
  await tabTo("In words");
  await enter();
  assert.equal(await call("first-1", "sk-acme", { "X-Stainless-Retry-Count": "1" }), 200);
  await page.getByText("in 1 replay and 0 joins", { exact: true }).waitFor();
  await page.locator(".chart li", { hasText: "in 1 replay and" }).waitFor();
  assert.equal((await seen()).text, "In words");
  say("live changes take the focus from nobody");

  await tabTo("Operations");
  await enter();
  await page.waitForURL("**/console/operations");
  await named();
  await tabTo("model");
  await page.keyboard.type("gpt-5-mini");
  await tabTo("Filter");
  await enter();
  await page.getByText("What the ledger says of this model").waitFor();
  assert.equal(await page.locator("td.key").count(), 2);
  await tabTo("state");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowDown");
  assert.equal(await page.inputValue("#state"), "completed");
  await tabTo("Clear");
  await enter();
  await page.waitForURL("**/console/operations");
  say("filters");

  await call("charge-card-66", "sk-acme", { "X-Sandbox-Fault": "cut-stream" }).catch(() => {});
  await page.getByRole("link", { name: "charge-card-66" }).waitFor();
  await tabTo("charge-card-66");
  await tabTo("Unknown");
  await enter();
  await page.getByRole("heading", { name: "charge-card-66" }).waitFor();
  await named();
  await tabTo("Settle it");
  await enter();
  await page.locator("#settle").waitFor();
  await named();
  await tabTo("It did not run");
  await page.keyboard.press("ArrowDown");
  assert.ok((await seen()).text.startsWith("It ran"));
  await page.keyboard.press("ArrowUp");
  assert.ok((await seen()).text.startsWith("It did not run"));
  await tabTo("reason");
  await page.keyboard.type("their list has no trace of it");
  await enter();
  await page.getByText("In their words").waitFor();
  await page.locator(".state.released").waitFor();
  await named();
  say("an unknown is settled");

  for (const place of ["Spend", "Store and health", "Configuration"]) {
    await tabTo(place);
    await enter();
    await page.locator("[aria-current=page]", { hasText: place }).waitFor();
    await named();
  }
  await tabTo("Auto");
  await page.keyboard.press("ArrowLeft");
  assert.equal((await seen()).text, "Dark");
  await tabTo("Sign out");
  await enter();
  await page.getByLabel("Token").waitFor();
  say("everywhere, and out");
};

run(main);
