// The page: asks the controller for its state every few seconds, and draws what changed.

import { KeyedList, el, keepingFocus, setText } from './page/dom.js';
import { Haproxy } from './page/backends.js';
import { Problems, mark, showFigures, showVerdict, showVersion } from './page/head.js';
import { judge } from './page/judge.js';
import { refreshTimes, setClock } from './page/times.js';
import { clock, duration } from './page/words.js';

/** From one answer to the next question. */
const INTERVAL = 3000;
/** An answer that takes longer counts as none. */
const TIMEOUT = 10_000;

const byId = (id) => document.getElementById(id);

/** What was answered last. */
const known = { status: null, text: null, at: null, passes: null, version: null };
const haproxys = new Map();
/** How many sections were made: their ids are numbers, as a name can be anything. */
let made = 0;
const problems = new Problems(showService);
const sections = new KeyedList(byId('haproxys'), ({ key }) => haproxys.get(key).element,
  (_, { key, judged }) => haproxys.get(key).draw(judged));

const names = new KeyedList(byId('names'), () => el('li'), (element, { key, one }) => {
  const link = element.querySelector('a') ?? el('a', { href: `#${haproxys.get(key).id}` });
  link.replaceChildren(...mark(one.level), one.whose);
  element.replaceChildren(link);
});

/** The controller gave no answer that can be used. */
class Silence extends Error {}

function why(error) {
  return error.name === 'TimeoutError' ? `no answer within ${TIMEOUT / 1000} s` : 'no connection';
}

async function ask(path) {
  let [response, text] = [];
  try {
    response = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT) });
    text = await response.text();
  } catch (error) {
    throw new Silence(why(error));
  }
  if (!response.ok) throw new Silence(`${path} answers with ${response.status}`);
  setClock(response.headers.get('date'));
  return text;
}

function draw(status) {
  const judged = judge(status);
  showVersion(status.version);
  showVerdict(judged.verdict);
  showFigures(status, judged);
  problems.update(judged.problems);
  for (const { target } of judged.haproxys) {
    if (!haproxys.has(target.name)) haproxys.set(target.name, new Haproxy(`haproxy-${(made += 1)}`));
  }
  // Each draws itself, and compares its backends one by one.
  sections.update(judged.haproxys.map((one) => ({ key: one.target.name, text: one, judged: one })));
  for (const name of haproxys.keys()) if (!judged.haproxys.some(({ target }) => target.name === name)) haproxys.delete(name);
  // A single one is found without links.
  const named = judged.haproxys.length > 1 ? judged.haproxys : [];
  names.update(named.map((one) => ({ key: one.target.name, text: one.level, one })));
  applyFilter();
}

function applyFilter() {
  const words = byId('filter').value.toLowerCase().split(/\s+/).filter(Boolean);
  const filter = { words, onlyProblems: byId('only-problems').checked };
  const counts = [...haproxys.values()].map((haproxy) => haproxy.filter(filter));
  const sum = (at) => counts.reduce((total, pair) => total + pair[at], 0);
  setText(byId('shown'), `Showing ${sum(0)} of ${sum(1)} backends.`);
}

/** Brings a person to the backend of a service. */
function showService(service) {
  [byId('filter').value, byId('only-problems').checked] = ['', false];
  applyFilter();
  const fold = [...haproxys.values()].map((haproxy) => haproxy.find(service)).find(Boolean);
  if (!fold) return;
  fold.open();
  fold.summary.focus();
  fold.element.scrollIntoView({ block: 'start' });
}

/** The passes are asked for only when one ended: their diffs are long. */
async function askPasses() {
  const { started, haproxys: targets } = known.status;
  const ended = JSON.stringify([started, targets.map(({ name, last_pass: last }) => [name, last?.ended])]);
  if (ended === known.passes) return;
  const answer = JSON.parse(await ask('api/v1/passes'));
  keepingFocus(() => answer.haproxys.forEach(({ name, passes }) => haproxys.get(name)?.passes.update(passes)));
  known.passes = ended;
}

async function refresh() {
  const text = await ask('api/v1/status');
  const status = JSON.parse(text);
  if (text !== known.text || document.body.classList.contains('old')) keepingFocus(() => draw(status));
  known.version ??= status.version;
  const isUpgraded = known.version !== status.version;
  [known.status, known.text, known.at] = [status, text, Date.now()];
  document.body.classList.remove('old');
  setText(byId('freshness'), isUpgraded ? 'The controller was upgraded: load this page again.' : `State at ${clock(known.at)}.`);
  await askPasses();
}

/** Says it when there is no answer, or none that can be shown, and how old is what is on the page. */
function showSilence(error) {
  document.body.classList.add('old');
  const what = error instanceof Silence ? 'The controller does not answer.' : 'What the controller answers cannot be shown.';
  const since = known.at ? ` What is shown is as of ${clock(known.at)}.` : '';
  showVerdict({ level: 'old', text: what + since });
  const age = known.at ? `${duration((Date.now() - known.at) / 1000)} old; ` : '';
  setText(byId('freshness'), `${age}${error.message}; the next attempt is in ${INTERVAL / 1000} s.`);
}

let timer = null;
let isAsking = false;

async function turn() {
  clearTimeout(timer);
  // Another turn ends soon, and sets the timer.
  if (isAsking || document.hidden) return;
  isAsking = true;
  await refresh().catch(showSilence);
  refreshTimes();
  isAsking = false;
  timer = setTimeout(turn, INTERVAL);
}

byId('filter').addEventListener('input', applyFilter);
byId('only-problems').addEventListener('change', applyFilter);
document.addEventListener('visibilitychange', turn);
turn();
