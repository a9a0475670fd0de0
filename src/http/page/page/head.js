// The top of the page: the verdict, the figures, and the problems.

import { KeyedList, el, setAttribute, setText } from './dom.js';
import { isSeated } from './judge.js';
import { count, shown } from './words.js';
import { ago } from './times.js';

const MARKS = { error: '✖', warning: '▲', good: '✔', old: '?' };
const WORDS = { error: 'Problem', warning: 'Warning', good: 'All is well' };
/** So many problems are shown until a person asks for the rest: the routes must stay within reach. */
const FIRST = 20;

/** A level for people: a mark of its own shape, and its word for screen readers. */
export function mark(level) {
  return [el('span', { class: `mark ${level}`, 'aria-hidden': 'true' }, MARKS[level]), el('span', { class: 'unseen' }, `${WORDS[level]}: `)];
}

const byId = (id) => document.getElementById(id);

export function showVerdict({ level, text }) {
  const verdict = byId('verdict');
  setAttribute(document.body, 'data-level', level);
  setText(verdict, text);
  document.title = `${MARKS[level]} ${text} nomad-haproxy`.slice(0, 120);
}

/** What is routed: services and instances of all HAProxys, each counted once. */
function routed(haproxys) {
  const [services, instances] = [new Set(), new Set()];
  for (const { backends } of haproxys) {
    for (const { backend } of backends) {
      backend.services.forEach((service) => services.add(service));
      for (const server of backend.servers.filter(isSeated)) {
        services.add(server.service);
        instances.add(server.registration);
      }
    }
  }
  // A server line of an old version does not name its service.
  services.delete(null);
  return { services: services.size, instances: instances.size };
}

function leader({ election, leads, holder, error }) {
  if (!election) return figure('Leader', 'this one', 'no election');
  if (error) return figure('Leader', 'not known', 'this one writes nothing', 'error');
  return leads ? figure('Leader', 'this one') : figure('Leader', 'another', holder ? shown(holder.name, 100) : 'this one waits');
}

/** A figure: its name, its value, something smaller about it, and a level if it is not as it should be. */
function figure(name, value, about = '', level = null) {
  return el('div', { 'data-level': level }, el('dt', {}, name),
    el('dd', {}, level ? mark(level) : null, value, about ? el('small', {}, ' ', about) : null));
}

/** Something that is wrong with some HAProxys, which are named if there are several. */
function trouble(name, haproxys, isTrue, yes, no) {
  const names = haproxys.filter(isTrue).map(({ whose }) => whose);
  if (names.length === 0) return figure(name, no);
  return figure(name, yes, haproxys.length === 1 ? '' : names.join(', '), 'error');
}

export function showFigures({ catalog, leader: lead }, { haproxys, problems }) {
  const { services, instances } = routed(haproxys);
  const of = (total) => (total === null ? '' : `of ${total} in the catalog`);
  const ready = haproxys.filter(({ target }) => target.is_ready).length;
  const states = [...new Set(haproxys.map(({ target }) => target.breaker?.state).filter(Boolean))];
  const read = catalog.read ? ago(catalog.read) : 'not read';
  byId('figures').replaceChildren(
    figure('Problems', String(problems.length), '', problems[0]?.level),
    figure('In line', `${ready} of ${haproxys.length}`, 'HAProxys', ready === haproxys.length ? null : 'error'),
    figure('Services', String(services), of(catalog.services)),
    figure('Instances', String(instances), of(catalog.instances)),
    figure('Catalog', read, catalog.index === null ? '' : `index ${catalog.index}`, catalog.error ? 'error' : null),
    trouble('Guard', haproxys, ({ target }) => target.guard, 'holding', 'not holding'),
    trouble('Breaker', haproxys, ({ target }) => target.breaker?.state === 'open', 'open', states.join(', ') || 'not started'),
    leader(lead));
}

function drawProblem(element, { level, title, lines, hint, command, times = [], service, isRouted }, show) {
  const time = times.filter(([, time]) => time).map(([name, time]) => [`${name} `, ago(time), '. ']);
  const shownLines = lines.slice(0, 10).map((line) => el('li', {}, line));
  if (lines.length > 10) shownLines.push(el('li', {}, `and ${lines.length - 10} more`));
  // The same one as before, which may have the focus.
  const button = element.querySelector('button') ?? el('button', { type: 'button' });
  button.replaceChildren('Show below', el('span', { class: 'unseen' }, `: ${title}`));
  button.onclick = () => show(service);
  setAttribute(element, 'data-level', level);
  element.replaceChildren(
    el('h3', {}, mark(level), el('bdi', {}, title)),
    el('ul', {}, shownLines),
    ...(time.length ? [el('p', {}, ...time)] : []),
    ...(hint ? [el('p', { class: 'hint' }, hint, command ? [' ', el('code', {}, command)] : null)] : []),
    ...(isRouted ? [button] : []),
  );
}

/** The list of problems; `show(service)` brings a person to the backend of a service. */
export class Problems {
  #list;
  #problems = [];
  #all = false;

  constructor(show) {
    this.#list = new KeyedList(byId('problem-list'), () => el('li'), (element, { problem }) => drawProblem(element, problem, show));
    byId('more-problems').addEventListener('click', () => {
      this.#all = true;
      this.update(this.#problems);
      byId('problem-list').children[FIRST]?.querySelector('button')?.focus();
    });
  }

  update(problems) {
    this.#problems = problems;
    const some = this.#all ? problems : problems.slice(0, FIRST);
    this.#list.update(some.map((problem) => ({ key: problem.key, text: JSON.stringify(problem), problem })));
    byId('no-problems').hidden = problems.length > 0;
    byId('more-problems').hidden = some.length === problems.length;
    setText(byId('more-problems'), `Show ${count(problems.length - some.length, 'more problem')}`);
    setText(byId('problems-title'), problems.length > 0 ? `${count(problems.length, 'problem')}` : 'Problems');
  }
}

export function showVersion(version) {
  setText(byId('version'), shown(version));
}
