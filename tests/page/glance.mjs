// 200 services of 5: a person sees at a glance that all is well, and which one is not.

import { check, checkAccess, checkHarmless, isInView, open, resize, run, shoot, until, verdict } from './browser.mjs';
import { changeCatalog } from './catalog.mjs';

const focused = (page) => page.evaluate(() => document.activeElement.id || document.activeElement.innerText);

async function tabTo(page, what, isThere) {
  for (let presses = 0; presses < 30; presses += 1) {
    await page.keyboard.press('Tab');
    if (isThere(await focused(page))) return;
  }
  throw new Error(`30 presses of Tab do not lead to ${what}, but to ${await focused(page)}`);
}

/** Tab to the filter, filter, open a backend; each stop of the focus can be seen. */
async function byKeyboard(page) {
  await page.evaluate(() => document.activeElement.blur());
  await tabTo(page, 'the filter', (at) => at === 'filter');
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  check(outline !== 'none', 'the focus cannot be seen');
  await page.keyboard.type('web-042-4');
  await until(page, 'the filter', () => document.querySelectorAll('details.backend:not([hidden])').length === 1);
  await tabTo(page, 'the backend', (at) => at.includes('web-042'));
  await page.keyboard.press('Enter');
  await until(page, 'the open backend', () => document.querySelector('details.backend[open] table')?.innerText.includes('alloc-web-042-4'));
  const rows = await page.$$eval('details.backend[open] tbody tr', (rows) => rows.length);
  check(rows === 5, `the backend shows ${rows} instances`);
}

await run(async (browser) => {
  const page = await open(browser);
  await until(page, '200 services', () => document.querySelectorAll('details.backend').length === 200);
  check(await verdict(page) === 'HAProxy is in line with Nomad.', `the verdict: ${await verdict(page)}`);
  const figures = await page.$eval('#figures', (element) => element.innerText.replace(/\s+/g, ' '));
  for (const part of ['Problems 0', '1 of 1', 'Services 200', 'Instances 1000', 'not holding', 'closed', 'index 1', 'this one']) {
    check(figures.includes(part), `the figures lack "${part}": ${figures}`);
  }
  check(await page.$$eval('details.backend table', (tables) => tables.length) === 0, 'closed backends are not drawn');
  for (const size of ['desk', 'phone']) {
    await resize(page, size);
    await shoot(page, `good-${size}`);
    await checkHarmless(page, `all well, ${size}`);
  }
  await checkAccess(page, 'all well');

  await changeCatalog(({ Services }) => (Services.find(({ ID }) => ID === 'web-137-3').Address = 'no address'));
  await until(page, 'the failing service', () => document.querySelector('#verdict').textContent.includes('web-137'));
  check(await page.title() !== 'nomad-haproxy' && (await page.title()).includes('web-137'), 'the title of the tab says it');
  for (const size of ['desk', 'phone']) {
    await resize(page, size);
    await shoot(page, `failing-${size}`);
    for (const part of ['#verdict', '#figures', '#problem-list > li:first-child']) {
      check(await isInView(page, part), `${part} is not in the first screenful, ${size}`);
    }
    const problem = await page.$eval('#problem-list > li:first-child', (element) => element.innerText);
    check(problem.includes('web-137') && problem.includes('error: '), `the problem does not name what fails: ${problem}`);
    const first = await page.$eval('details.backend:first-child > summary', (element) => element.innerText);
    check(first.includes('web-137') && first.includes('✖'), `the failing backend is not the first, or not marked: ${first}`);
  }
  await resize(page, 'desk');
  await byKeyboard(page);
  for (const size of ['desk', 'phone']) {
    await resize(page, size);
    await page.click('#problem-list > li:first-child button');
    await until(page, 'the backend of the problem', () => document.querySelector('details.backend[open] table')?.innerText.includes('web-137-4'));
    await page.click('details.passes > summary');
    await until(page, 'the passes', () => document.querySelector('details.pass'));
    await page.click('details.pass > summary');
    await until(page, 'the diff of a pass', () => document.querySelector('.diff del')?.innerText.startsWith('-'));
    await checkHarmless(page, `one failing, details open, ${size}`);
    await checkAccess(page, `one failing, details open, ${size}`);
    await shoot(page, `open-${size}`);
  }
});
