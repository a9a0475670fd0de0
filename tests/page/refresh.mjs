// The page follows the controller by itself, keeps what a person does with it, and says it when nobody answers.

import { check, open, options, run, shoot, until, verdict } from './browser.mjs';
import { changeCatalog } from './catalog.mjs';

/** Opens a backend, focuses it, and scrolls to it. */
async function read(page, service) {
  await page.evaluate((service) => {
    const line = [...document.querySelectorAll('.backend > summary')].find((line) => line.textContent.includes(service));
    line.click();
    line.focus();
    line.scrollIntoView({ block: 'center', behavior: 'instant' });
    globalThis.line = line;
  }, service);
  await until(page, 'the open backend', () => globalThis.line.parentElement.querySelector('table'));
}

/** A hidden tab asks nothing, and waits for nothing; when it is shown, it asks at once. */
async function hides(page) {
  let asked = 0;
  page.on('request', () => (asked += 1));
  await page.evaluate(() => {
    const { setTimeout, clearTimeout } = globalThis;
    globalThis.timers = new Set();
    const ended = (timer) => globalThis.timers.delete(timer);
    globalThis.setTimeout = (task, ...more) => {
      const timer = setTimeout(() => ended(timer) && task(), ...more);
      globalThis.timers.add(timer);
      return timer;
    };
    globalThis.clearTimeout = (timer) => clearTimeout(timer) || ended(timer);
    globalThis.show = (isHidden) => {
      Object.defineProperty(document, 'hidden', { value: isHidden, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    };
  });
  // Between two questions.
  await until(page, 'the page to wait', () => globalThis.timers.size === 1 && (globalThis.show(true), true));
  const before = asked;
  await until(page, 'the timer to end', () => globalThis.timers.size === 0);
  check(asked === before, 'a hidden page asks the controller');
  await page.evaluate(() => globalThis.show(false));
  await until(page, 'the page to wait again', () => globalThis.timers.size === 1);
  check(asked > before, 'a page that is shown again does not ask at once');
}

await run(async (browser) => {
  const page = await open(browser);
  await until(page, '200 services', () => document.querySelectorAll('.backend').length === 200);
  await page.type('#filter', 'web-1');
  await read(page, 'web-150');
  const place = () => page.evaluate(() => globalThis.line.getBoundingClientRect().top);
  const before = await place();

  changeCatalog(({ Services }) => {
    // One fails, and is sorted to the top; one leaves the backend that is open.
    Services.find(({ ID }) => ID === 'web-137-3').Port = 0;
    Services.splice(Services.findIndex(({ ID }) => ID === 'web-150-4'), 1);
  });
  await until(page, 'the instance to leave', () => globalThis.line.parentElement.querySelectorAll('tbody tr').length === 4);
  check((await verdict(page)).includes('web-137'), `the verdict: ${await verdict(page)}`);
  const kept = await page.evaluate(() => ({
    isOpen: globalThis.line.parentElement.open,
    hasFocus: document.activeElement === globalThis.line,
    filter: document.querySelector('#filter').value,
    shown: document.querySelectorAll('.backend:not([hidden])').length,
    first: document.querySelector('.backend').textContent,
  }));
  check(kept.isOpen, 'a refresh closes what was open');
  check(kept.hasFocus, 'a refresh takes the focus');
  check(kept.filter === 'web-1' && kept.shown === 100, `a refresh loses the filter: ${kept.shown} are shown`);
  check(kept.first.includes('web-137'), `the failing backend is not the first: ${kept.first}`);
  check(Math.abs(await place() - before) < 60, `a refresh moves what is read from ${before} to ${await place()} px`);

  // A person reads the one that fails while it is repaired, and sorted back to its place.
  await read(page, 'web-137');
  // Of a backend that did not change no node is made again. The first look at the checks changes all of them.
  await until(page, 'the checks to be seen', () => document.querySelector('.haproxy .facts').textContent.includes('checks seen'));
  await page.evaluate(() => {
    globalThis.changed = 0;
    const still = [...document.querySelectorAll('.backend')].find((backend) => backend.textContent.includes('web-199'));
    new MutationObserver((changes) => (globalThis.changed += changes.length)).observe(still, { childList: true, subtree: true });
  });
  changeCatalog(({ Services }) => (Services.find(({ ID }) => ID === 'web-137-3').Port = 20688));
  await until(page, 'all to be well', () => document.body.dataset.level === 'good');
  check(await page.evaluate(() => globalThis.changed) === 0, 'a backend that is the same is drawn again');
  check(await page.evaluate(() => document.activeElement === globalThis.line), 'a backend that goes down the list loses the focus');

  await hides(page);

  process.kill(options.pid, 'SIGTERM');
  await until(page, 'the page to say that nobody answers', () =>
    document.querySelector('#verdict').textContent.startsWith('The controller does not answer. What is shown is as of '));
  check((await page.$eval('#freshness', (element) => element.textContent)).includes('no connection'), 'it says why');
  check(await page.$$eval('.backend', (backends) => backends.length) === 200, 'what was known stays on the page');
  await page.evaluate(() => scrollTo({ top: 0, behavior: 'instant' }));
  await shoot(page, 'silent');
});
