// A headless Chromium for the tests of the page. It is ended in every case: it hangs on a pipe of this process.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

/** From the Rust test: `base` (the controller's address), `tools`, `shots`, `chromium`, and what a script needs. */
export const options = JSON.parse(process.argv[2]);

const require = createRequire(join(options.tools, 'package.json'));
const puppeteer = require('puppeteer-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const SIZES = { desk: { width: 1280, height: 800 }, phone: { width: 360, height: 740, isMobile: true, hasTouch: true } };
/** From one state to the next, in milliseconds. */
const TIMEOUT = 20_000;
/** Of a sentence: a list of names can have megabytes. */
const LONGEST = 2000;

const failures = new Set();

/** Notes a failure, and goes on: one run says all that is wrong. */
export function check(isTrue, sentence) {
  if (!isTrue) failures.add(sentence.slice(0, LONGEST));
}

/** The page in a new tab; what it should not do is a failure. */
export async function open(browser) {
  const page = await browser.newPage();
  page.setDefaultTimeout(TIMEOUT);
  page.on('pageerror', (error) => check(false, `an error of the page: ${error.stack ?? error}`));
  page.on('request', (request) => {
    const url = request.url();
    check(url.startsWith(`${options.base}/`) || url === 'data:,', `a request goes to ${url}`);
  });
  await page.evaluateOnNewDocument(() => {
    globalThis.violations = [];
    document.addEventListener('securitypolicyviolation', (event) =>
      globalThis.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
  });
  await page.setViewport(SIZES.desk);
  await page.goto(`${options.base}/`);
  return page;
}

/** Waits until a function of the page gives something true. */
export async function until(page, what, state, ...values) {
  try {
    await page.waitForFunction(state, { polling: 50 }, ...values);
  } catch (error) {
    const text = await page.evaluate(() => document.body.innerText.slice(0, 2000));
    throw new Error(`waited for ${what}: ${error.message}; the page says: ${text}`);
  }
}

/** Another window: a phone's loads the page again, as a phone would. */
export async function resize(page, size) {
  await page.setViewport(SIZES[size]);
  await until(page, 'the state and the passes', () => document.body.dataset.level && document.querySelector('.passes time'));
  await page.evaluate(() => scrollTo({ top: 0, behavior: 'instant' }));
}

export const verdict = (page) => page.$eval('#verdict', (element) => element.textContent);

export async function shoot(page, name) {
  await page.screenshot({ path: join(options.shots, `${name}.png`) });
}

/** What the page itself never has. */
const FOREIGN = ['script', 'style', 'img', 'iframe', 'object', 'embed', 'svg', 'form', '[style]', '[onerror]', '[onload]', '[onclick]'];

/** No script ran, no policy was broken, nothing is wider than the window. */
export async function checkHarmless(page, where) {
  const seen = await page.evaluate((foreign) => ({
    violations: globalThis.violations,
    pwned: globalThis.pwned,
    scripts: [...document.scripts].map((script) => script.getAttribute('src')),
    foreign: document.querySelectorAll(foreign).length,
    links: [...document.links].map((link) => link.href),
    width: document.documentElement.scrollWidth,
    window: document.documentElement.clientWidth,
  }), `body :is(${FOREIGN.join(', ')})`);
  check(seen.violations.length === 0, `${where}: the policy was broken: ${seen.violations}`);
  check(seen.pwned === undefined, `${where}: a script of a name ran: ${seen.pwned}`);
  check(String(seen.scripts) === 'page.js', `${where}: there are other scripts: ${seen.scripts}`);
  check(seen.foreign === 0, `${where}: ${seen.foreign} elements are not the page's own`);
  seen.links.forEach((link) => check(link.startsWith(`${options.base}/`), `${where}: a link goes to ${link}`));
  check(seen.width <= seen.window, `${where}: it scrolls sideways, ${seen.width} px in ${seen.window}`);
}

/** axe-core finds nothing serious; in the dark only the colours differ, and it is slow. */
export async function checkAccess(page, where) {
  await page.evaluate(axe);
  for (const [scheme, rules] of [['light', {}], ['dark', { runOnly: ['color-contrast'] }]]) {
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
    const faults = await page.evaluate(async (rules) => {
      const { violations } = await globalThis.axe.run(document, { resultTypes: ['violations'], ...rules });
      const text = ({ id, nodes: [{ html, failureSummary }] }) => `${id}: ${html.slice(0, 200)}: ${failureSummary}`;
      return violations.filter(({ impact }) => ['serious', 'critical'].includes(impact)).map(text);
    }, rules);
    faults.forEach((fault) => check(false, `${where}, ${scheme}: axe-core: ${fault}`));
  }
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'light' }]);
}

/** Whether all of an element is in the window, and nothing is above it. */
export async function isInView(page, selector) {
  return page.$eval(selector, (element) => {
    const box = element.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + Math.min(box.height / 2, 10)];
    return box.top >= 0 && box.bottom <= innerHeight && box.height > 0 && element.contains(document.elementFromPoint(x, y));
  });
}

/** Runs a test with a browser; prints every failure as a sentence. */
export async function run(test) {
  const args = ['--no-first-run', '--disable-dev-shm-usage', '--disable-gpu'];
  // Chromium's sandbox does not work for root.
  if (process.getuid() === 0) args.push('--no-sandbox');
  const browser = await puppeteer.launch({ executablePath: options.chromium, headless: true, pipe: true, args });
  try {
    await test(browser);
  } catch (error) {
    failures.add(error.stack);
  } finally {
    await browser.close();
  }
  failures.forEach((failure) => console.error(`FAILED: ${failure}`));
  process.exitCode = failures.size > 0 ? 1 : 0;
}
