// Names, tags and ids of a hostile tenant: they are text, and stay where they belong.

import { check, checkAccess, checkHarmless, open, options, resize, run, shoot, until, verdict } from './browser.mjs';

/** Opens all that opens. */
async function openAll(page) {
  await page.evaluate(() => {
    document.querySelector('#more-problems').click();
    document.querySelectorAll('details').forEach((details) => (details.open = true));
  });
  await until(page, 'the passes', () => document.querySelectorAll('details.pass').length > 0);
  await page.evaluate(() => document.querySelectorAll('details').forEach((details) => (details.open = true)));
  await until(page, 'the diffs', () => document.querySelectorAll('.diff').length > 0);
}

/** Puts a text before every text that the controller answers with, except what has a fixed form. */
function spoilAnswers(raw) {
  const isFixed = (value, key) => key === 'severity' || /^\d{4}-\d\d-\d\dT/.test(value);
  const spoil = (value, key) => {
    if (Array.isArray(value)) return value.map((one) => spoil(one));
    if (value !== null && typeof value === 'object') {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, spoil(one, key)]));
    }
    return typeof value === 'string' && !isFixed(value, key) ? raw + value : value;
  };
  const { fetch } = globalThis;
  globalThis.fetch = async (...question) => {
    const answer = await fetch(...question);
    const text = JSON.stringify(spoil(await answer.json()));
    return new Response(text, { status: answer.status, headers: answer.headers });
  };
}

await run(async (browser) => {
  const page = await open(browser);
  await until(page, 'the backends', (backends) => document.querySelectorAll('details.backend').length === backends, options.backends);
  for (const size of ['desk', 'phone']) {
    await resize(page, size);
    await openAll(page);
    await checkHarmless(page, `hostile names, ${size}`);
    await shoot(page, `hostile-${size}`);
  }
  check((await verdict(page)).length < 1000, 'a long name makes a long verdict');
  const text = await page.evaluate(() => document.body.textContent);
  for (const part of options.shown) check(text.includes(part), `the page does not show ${JSON.stringify(part)}`);
  check(!/[\u202a-\u202e\u2066-\u2069\u200b]/.test(text), 'a character that reorders or hides text is on the page');

  // What a plane or an API of a later version might let through: the page does not rely on anybody's checks.
  await page.evaluate(spoilAnswers, options.raw);
  await until(page, 'the spoilt answers', () => document.querySelector('.haproxy .backend summary').textContent.includes('<script>'));
  await checkAccess(page, 'every text hostile');
  await openAll(page);
  await checkHarmless(page, 'every text hostile');
  await shoot(page, 'hostile-all');
});
