// The page of `schnell serve` in a real browser: drawn, cancelled, reproduced, settings read back, axe's rules and
// the console, at two widths and in both color schemes. Run by scripts/check-page.
//
//     node check.mjs URL KEY FOLDER    screenshots go into the folder
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";
import { createRequire } from "node:module";
import { readFileSync, readdirSync, mkdirSync } from "node:fs";

const [url, key, folder] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const faults = [];
const browser = await puppeteer.launch({
  args: chromium.args,
  executablePath: await chromium.executablePath(),
  headless: "shell",
});

function check(is, what) {
  console.log(`${is ? "ok   " : "WRONG"} ${what}`);
  if (!is) faults.push(what);
}

async function open(width, scheme) {
  const page = await browser.newPage();
  await page.setViewport({ width, height: 900, deviceScaleFactor: 1 });
  await page.emulateMediaFeatures([
    { name: "prefers-color-scheme", value: scheme },
    { name: "prefers-reduced-motion", value: "reduce" },
  ]);
  page.on("console", (message) => {
    // A refusal that was asked for is told of here, too.
    const wanted = /status of 40[01]/.test(message.text());
    if (["error", "warn"].includes(message.type()) && !wanted) faults.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`page: ${error.message}`));
  page.on("request", (request) => {
    const to = request.url();
    if (!to.startsWith(url) && !/^(blob|data):/.test(to)) faults.push(`asked elsewhere: ${to}`);
  });
  await page.goto(url, { waitUntil: "networkidle0" });
  return page;
}

const text = (page, selector) => page.$eval(selector, (element) => element.textContent);
const value = (page, id) => page.$eval(`#${id}`, (element) => element.value);
const cards = (page) => page.$$eval("#gallery li", (all) => all.length);

async function fill(page, id, text) {
  await page.$eval(`#${id}`, (element) => (element.value = ""));
  await page.type(`#${id}`, String(text));
}

async function idle(page) {
  await page.waitForFunction(() => !document.querySelector("#draw").disabled, { timeout: 120000 });
}

async function look(page, name) {
  // The policy allows no scripts of others; this one is put in by the browser.
  const violations = await page.evaluate(`${axe}; axe.run(document, { resultTypes: ["violations"] })
    .then((found) => found.violations.map((v) => v.id + ": " + v.nodes.map((n) => n.target + " " + n.failureSummary).join(" | ")))`);
  check(violations.length === 0, `axe, ${name}: ${violations.length} violations ${violations.join("\n")}`);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  check(overflow <= 0, `${name}: nothing is wider than the window`);
  if (folder) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
}

try {
  if (folder) mkdirSync(folder, { recursive: true });
  const page = await open(1280, "light");
  check((await text(page, "#error")).includes("API key"), "a key is asked for");
  check(await page.$eval("#key-details", (details) => details.open), "and there is a place for it");
  await look(page, "key-1280-light");
  await fill(page, "key", key);
  await page.keyboard.press("Tab");
  await page.waitForFunction(() => document.querySelector("#model").textContent, { timeout: 10000 });
  check((await text(page, "#error")) === "", "it is taken");
  await page.reload({ waitUntil: "networkidle0" });
  await look(page, "first-1280-light");
  check((await text(page, "#model")).includes("demo"), "the model has its name");

  await fill(page, "prompt", "a small red star left of a big blue ring on a yellow background");
  await fill(page, "seed", 7);
  await page.click("#draw");
  await page.waitForFunction(() => /step/i.test(document.querySelector("#status").textContent), { timeout: 60000 });
  if (folder) await page.screenshot({ path: `${folder}/drawing-1280-light.png` });
  await idle(page);
  check((await cards(page)) === 1, "a picture was drawn");
  check((await text(page, "#gallery .settings")).includes("seed 7"), "its card has the seed");
  check(await page.$eval("#gallery img", (image) => image.complete && image.naturalWidth > 0), "it is a picture");

  await page.click("#gallery .again");
  await page.waitForSelector(".verdict.same, .verdict.differs", { timeout: 60000 });
  check((await text(page, ".verdict")) === "The same, to the bit.", "it is reproduced");
  await idle(page);
  const isOnItsWay = () => page.$eval("#shown", (image) => image.alt.includes("so far"));
  check(!(await isOnItsWay()), "what it looked like on its way is gone");

  await fill(page, "prompt", "a green circle");
  await fill(page, "steps", 50);
  await page.click("#draw");
  await page.waitForFunction(() => /step/i.test(document.querySelector("#status").textContent), { timeout: 60000 });
  await page.waitForFunction(() => document.querySelector("#shown").alt.includes("so far"), { timeout: 60000 });
  check(await page.$eval("#shown", (image) => image.naturalWidth > 0), "it is shown on its way");
  if (folder) await page.screenshot({ path: `${folder}/preview-1280-light.png` });
  await page.click("#cancel");
  await idle(page);
  check((await text(page, "#status")) === "Cancelled.", "a picture was cancelled");
  check((await cards(page)) === 1 && !(await isOnItsWay()), "of which nothing is kept");
  const cancelled = async () => (await (await fetch(`${url}/metrics`)).text()).match(/cancelled_total (\d+)/)[1];
  for (let i = 0; i < 100 && (await cancelled()) === "0"; i++) await new Promise((resolve) => setTimeout(resolve, 100));
  check((await cancelled()) === "1", "the server has stopped it");

  await page.click("#gallery .use");
  check((await value(page, "seed")) === "7" && (await value(page, "prompt")).includes("red star"), "settings are read back");
  check((await value(page, "steps")) !== "50", "its steps, too");

  await fill(page, "width", 63);
  await page.click("#draw");
  await idle(page);
  check((await text(page, "#error")).includes("multiple of 16"), "a refusal is shown");
  check((await page.$eval("#width", (field) => field === document.activeElement)), "and its field has the focus");
  await look(page, "refused-1280-light");
  await page.click("#gallery .use");

  const client = await page.createCDPSession();
  const saved = `${folder ?? "/tmp"}/saved`;
  mkdirSync(saved, { recursive: true });
  await client.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: saved });
  await page.click("#gallery .download");
  for (let i = 0; i < 50 && !readdirSync(saved).includes("schnell-7.png"); i++) await new Promise((r) => setTimeout(r, 100));
  const file = readFileSync(`${saved}/schnell-7.png`, "latin1");
  check(file.includes("red star") && file.includes("latents"), "the file has its settings and its receipt");

  await fill(page, "negative", "a blue ring");
  await fill(page, "steps", 1);
  await page.click("#draw");
  await idle(page);
  check((await text(page, "#gallery .settings")).includes("away from “a blue ring” (3)"), "one leads away from something");
  await page.click("#gallery .again");
  await idle(page);
  check((await text(page, ".verdict")) === "The same, to the bit.", "it is reproduced with that");
  await fill(page, "negative", "");

  await fill(page, "count", 2);
  await fill(page, "seed", 20);
  await page.keyboard.down("Control");
  await page.focus("#prompt");
  await page.keyboard.press("Enter");
  await page.keyboard.up("Control");
  await idle(page);
  check((await cards(page)) === 4, "two more by the keyboard");
  await look(page, "gallery-1280-light");
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await look(page, "gallery-1280-dark");
  await page.setViewport({ width: 390, height: 844, deviceScaleFactor: 1 });
  await look(page, "gallery-390-dark");
  const narrow = await open(390, "light");
  await look(narrow, "first-390-light");
} catch (error) {
  faults.push(String(error.stack ?? error));
} finally {
  await browser.close();
}
for (const fault of faults) console.log(`fault: ${fault}`);
process.exit(faults.length ? 1 : 0);
