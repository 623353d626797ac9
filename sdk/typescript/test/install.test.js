import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { NODE_MODULES, ROOT, folder, gateway, key } from "./kit.js";

const HERE = join(ROOT, "sdk/typescript");
const TSC = join(NODE_MODULES, ".bin/tsc");
const TYPES = ["--typeRoots", join(NODE_MODULES, "@types")];

/** Runs a command; what it said, also where it failed. */
function run(command, words, cwd) {
  try {
    return execFileSync(command, words, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  } catch (error) {
    return assert.fail(`${command} ${words.join(" ")}: ${error.stdout}${error.stderr}`);
  }
}

const PROGRAM = `
import { Client, once, type Claim, type Decision, ActionKeys, KeyReused } from "onlyonce";

const client: Client = new Client(process.argv[2]);
const half = client.once(async function half(n: number): Promise<{ half: number }> {
  return { half: n / 2 };
}, { key: (n) => \`${"${process.argv[3]}"}-\${n.toFixed(0)}\`, lease: "10s" });
const found: { half: number } = await half(10);
console.log("got", found.half);

export async function settle(decision: Decision): Promise<void> {
  if (decision.decision === "execute") await client.complete(decision satisfies Claim, null);
}
export const keys: ActionKeys = new ActionKeys("./keys", { window: "24h" });
export const isReused = (error: unknown): error is KeyReused => error instanceof KeyReused;
// @ts-expect-error The key is a function of a number.
export const wrong = (): unknown => once(async (n: number) => n, { key: (n: string) => n });
`;

test("npm installs it from the checkout, and it works from there, with its types", async (t) => {
  const project = folder(t);
  writeFileSync(join(project, "package.json"), '{ "name": "app", "private": true, "type": "module" }\n');
  run("npm", ["install", "--no-audit", "--no-fund", "--install-links", HERE], project);
  assert.deepEqual(readdirSync(join(project, "node_modules/onlyonce")).sort(), [
    "README.md",
    "package.json",
    "src",
    "types",
  ]);
  writeFileSync(join(project, "app.ts"), PROGRAM);
  const options = ["--module", "nodenext", "--target", "es2022", "--strict", "--types", "node", ...TYPES];
  run(TSC, [...options, "app.ts"], project);
  const { control } = await gateway(t);
  assert.equal(run(process.execPath, ["app.js", control, key()], project), "got 5\n");
});

test("the modules are typed, strictly", () => {
  run(TSC, ["-p", ".", ...TYPES], HERE);
});

test("the declarations are those of the modules", (t) => {
  const made = folder(t);
  run(
    TSC,
    ["-p", ".", ...TYPES, "--noEmit", "false", "--declaration", "--emitDeclarationOnly", "--outDir", made],
    HERE,
  );
  const committed = join(HERE, "types");
  assert.deepEqual(readdirSync(made).sort(), readdirSync(committed).sort());
  for (const name of readdirSync(made)) {
    const [is, was] = [made, committed].map((path) => readFileSync(join(path, name), "utf8"));
    assert.equal(was, is, `types/${name} is not made of src: run npm run types`);
  }
});
