// Several HAProxys, one of which is gone; and every kind of trouble at once, in the controller's words.

import { check, checkAccess, checkHarmless, isInView, open, resize, run, shoot, until, verdict } from './browser.mjs';

// Not `innerText`: that of what is not drawn, as it is far below the window, is empty.
const texts = (page, selector) => page.$$eval(selector, (elements) => elements.map((element) => element.textContent));

/** Trouble of every kind in a status of the controller; what real parts show is tested with them. */
function addTrouble(status) {
  const [one, other] = status.haproxys;
  const service = { namespace: 'shop', name: 'basket' };
  const time = new Date().toISOString();
  status.catalog.nomad_up = false;
  status.catalog.error = 'connection refused';
  const backend = (name, services, servers) =>
    ({ name, is_ours: true, services, mode: 'tcp', slots: { seated: servers.length, free: 0 }, servers });
  const server = (name, check) => ({
    name, address: '::1', port: 80, state: 'ready', weight: 1, service: 'cart', registration: `id-${name}`, allocation: 'a', check,
  });
  const down = { status: 'DOWN', result: 'L4CON', description: 'Layer 4 connection problem', answer: null };
  const up = { ...down, status: 'UP', result: 'L7OK', description: null };
  for (const target of [one, other]) {
    target.is_ready = true;
    target.not_ready = null;
    target.breaker = { ...target.breaker, state: 'closed' };
    target.last_pass = null;
    target.notes = [{ severity: 'warning', service, code: 'bad-tag', text: 'tag "haproxy.balance=best" is ignored' }];
  }
  one.breaker = { ...one.breaker, state: 'open', failures: 5, changed: time, next_probe: time };
  const held = { service, instances: 2, why: 'Nomad does not know the allocation' };
  other.guard = { reason: 'the read removes every server', instances: 2, services: [held] };
  for (const target of [one, other]) target.namespaces = [{ namespace: 'gone', code: 'missing-namespace', text: 'it does not exist' }];
  other.sampled = time;
  other.backends = [
    backend('good', ['good'], [server('good_1', up)]),
    backend('empty', ['empty'], []),
    backend('cart', ['cart'], [server('cart_1', down), server('cart_2', up)]),
    backend('dead', ['dead'], [server('dead_1', down)]),
  ];
  return status;
}

/** What the page says of it. */
const TROUBLE = [
  'Nomad does not answer\nconnection refused',
  'The circuit breaker of edge-a is open',
  'The guard holds 2 instances on edge-b: the read removes every server',
  'shop/basket: 2 instances: Nomad does not know the allocation',
  'nomad-haproxy apply --allow-removals',
  'Namespace gone\nerror: it does not exist (on both HAProxys)',
  "dead\nerror: backend dead: 1 of 1 instance down by HAProxy's check: dead_1 (on edge-b)",
  "cart\nwarning: backend cart: 1 of 2 instances down by HAProxy's check: cart_1",
  'empty\nwarning: backend empty: no instance',
  'shop/basket\nwarning: tag "haproxy.balance=best" is ignored (on both HAProxys)',
];

await run(async (browser) => {
  const page = await open(browser);
  await until(page, 'both', () => document.querySelectorAll('.haproxy').length === 2);
  const text = await verdict(page);
  check(text.startsWith('edge-a is not in line with Nomad'), `the verdict: ${text}`);
  check(text.includes('the circuit breaker of edge-a is open'), `the verdict: ${text}`);
  const titles = await texts(page, '.haproxy > h3');
  check(titles[0].includes('edge-a: not in line') && titles[1].includes('edge-b: in line'), `the worst is not the first: ${titles}`);
  check(titles[0].includes('✖') && titles[1].includes('✔'), `they are not marked: ${titles}`);
  const links = await texts(page, '#names a');
  check(links[0].includes('edge-a') && links[1].includes('edge-b'), `there is a link to each: ${links}`);
  await page.click('#names li:last-child a');
  check(await page.$eval('.haproxy:last-child', (element) => element.matches(':target')), 'the link leads to its section');
  const open5 = await page.$$eval('.haproxy .backend[open] table', (tables) => tables.length);
  check(open5 === 4, `of few backends the instances are shown at once: ${open5}`);
  for (const size of ['desk', 'phone']) {
    await resize(page, size);
    check(await isInView(page, '#problem-list > li:first-child h3'), `the first problem is not in the first screenful, ${size}`);
    await checkHarmless(page, `two HAProxys, ${size}`);
    await checkAccess(page, `two HAProxys, ${size}`);
    await shoot(page, `fleet-${size}`);
  }

  await resize(page, 'desk');
  await page.evaluate(`{
    const fetched = globalThis.fetch;
    ${addTrouble}
    globalThis.fetch = async (path, ...more) => {
      const answer = await fetched(path, ...more);
      if (!path.endsWith('status')) return answer;
      return new Response(JSON.stringify(addTrouble(await answer.json())), { headers: answer.headers });
    };
  }`);
  await until(page, 'the trouble', () => document.querySelector('#problem-list').innerText.includes('basket'));
  const problems = (await page.$$eval('#problem-list > li', (items) => items.map((item) => item.innerText))).join('\n');
  for (const part of TROUBLE) check(problems.includes(part), `the problems lack "${part}":\n${problems}`);
  const names = (await texts(page, '.haproxy .backend > summary b')).filter((name) => !name.startsWith('web'));
  check(/^dead,(cart,empty|empty,cart),good$/.test(String(names)), `the order of the backends: ${names}`);
  const rows = await page.$$eval('tr[data-level=error]', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent).join('|')));
  const down = '✖Problem: cart_1|[::1]:80|ready|DOWN, L4CON: Layer 4 connection problem|cart|id-cart_1|a';
  check(rows.includes(down), `the server that is down: ${rows}`);
  await checkAccess(page, 'all the trouble');
  await shoot(page, 'trouble-desk');
});
