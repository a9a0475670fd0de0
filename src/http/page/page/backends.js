// One section for each HAProxy: its own state, its last passes, and its backends.

import { KeyedList, el, setAttribute, setText } from './dom.js';
import { Fold } from './folds.js';
import { mark } from './head.js';
import { isDown, isSeated } from './judge.js';
import { Passes } from './passes.js';
import { ago } from './times.js';
import { count, duration, shown } from './words.js';

/** A judged backend as text: what is not shown does not count. */
const asText = (judged) => JSON.stringify(judged, (key, value) => (['connections', 'errors'].includes(key) ? undefined : value));

/** Up to so many backends are open from the start. */
const FEW = 5;

const COLUMNS = ['Server', 'Address', 'State', 'Check', 'Service', 'Registration', 'Allocation'];

/** What HAProxy's check says: `DOWN, L4CON: Connection refused`. */
function checked(check) {
  if (!check) return 'not known';
  const result = [check.result, check.description, check.answer].filter(Boolean).join(': ');
  return result ? `${check.status}, ${result}` : check.status;
}

/** The columns of a server. */
function cells(server) {
  const address = server.address.includes(':') ? `[${server.address}]` : server.address;
  const weight = server.weight === null || server.weight === 1 ? '' : `, weight ${server.weight}`;
  const instance = [server.service, server.registration, server.allocation].map((text) => text ?? '');
  return [server.name, `${address}:${server.port}`, server.state + weight, checked(server.check), ...instance];
}

function row(server) {
  const isWrong = isDown(server);
  const [name, ...others] = cells(server).map((text) => shown(text));
  const cell = (text, at) => el('td', { role: 'cell', 'data-column': COLUMNS[at + 1] }, el('bdi', {}, text));
  return el('tr', { role: 'row', 'data-level': isWrong ? 'error' : null },
    el('th', { role: 'rowheader', scope: 'row' }, isWrong ? mark('error') : null, el('bdi', {}, name)),
    others.map(cell));
}

/** The servers of a backend; the free ones are one line, unless they still drain. */
function drawServers({ backend, wrongs, notes }) {
  const isFree = (server) => !isSeated(server) && server.state !== 'drain';
  const [free, used] = [backend.servers.filter(isFree), backend.servers.filter((server) => !isFree(server))];
  const heads = COLUMNS.map((name) => el('th', { role: 'columnheader', scope: 'col' }, name));
  const table = el('table', { role: 'table' },
    el('caption', {}, `Instances of backend ${shown(backend.name)}`),
    el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, heads)),
    el('tbody', { role: 'rowgroup' }, used.map(row)));
  const said = [...wrongs, ...notes].map(({ level, text }) => el('li', {}, mark(level), text));
  const names = free.map((server) => shown(server.name)).join(', ');
  return [
    said.length > 0 ? el('ul', { class: 'said' }, said) : null,
    used.length > 0 ? table : null,
    el('p', {}, free.length > 0 ? `${count(free.length, 'free slot')}: ${names}` : 'No free slot.'),
  ].filter(Boolean);
}

/** One backend as a line that opens. */
class Row {
  fold = new Fold({ class: 'backend' });
  #haystack = null;
  #judged;

  draw(judged) {
    const { backend, level } = judged;
    [this.#judged, this.#haystack] = [judged, null];
    const seated = backend.servers.filter(isSeated).length;
    const services = backend.services.map((name) => shown(name)).join(', ');
    const from = services || (backend.is_ours ? 'no service' : 'a backend of yours, with servers of this controller');
    const wrong = [...judged.wrongs, ...judged.notes][0];
    setAttribute(this.fold.element, 'data-level', level);
    this.fold.summary.replaceChildren(
      el('span', { class: 'name' }, level === 'good' ? null : mark(level), el('b', {}, el('bdi', {}, shown(backend.name))),
        ' ← ', el('bdi', {}, from)),
      el('span', { class: 'facts' }, `${backend.mode} · ${count(seated, 'instance')} · ${backend.slots.free} free`),
      ...(wrong ? [el('span', { class: 'wrong' }, shown(wrong.text, 200))] : []));
    this.fold.set({}, () => drawServers(judged));
  }

  get level() {
    return this.#judged.level;
  }

  isOf(service) {
    const { backend } = this.#judged;
    return [backend.name, ...backend.services].includes(service);
  }

  matches({ words, onlyProblems }) {
    if (onlyProblems && this.level === 'good') return false;
    if (words.length === 0) return true;
    const { name, services, servers } = this.#judged.backend;
    this.#haystack ??= [name, ...services, ...servers.flatMap(cells)].join('\n').toLowerCase();
    return words.every((word) => this.#haystack.includes(word));
  }
}

/** What is known of the process. */
function facts({ haproxy, configuration_version: version, converged, sampled, breaker, slots, is_pending: isPending, answers }) {
  const process = haproxy ? [`HAProxy ${shown(haproxy.version)}, process ${haproxy.pid}`] : [];
  if (haproxy && haproxy.uptime_s !== null) process.push(`up for ${duration(haproxy.uptime_s)}`);
  if (haproxy && haproxy.connections !== null) process.push(`${count(haproxy.connections, 'connection')}`);
  const parts = [
    process.length > 0 ? [process.join(', ')] : [answers === false ? 'has not answered yet' : 'not asked yet'],
    [`configuration version ${version}`],
    converged ? ['last in line ', ago(converged)] : ['never in line since the controller started'],
    [`${slots.seated} seated, ${count(slots.free, 'free slot')}`],
    breaker ? [`breaker ${breaker.state}`] : null,
    sampled ? ['checks seen ', ago(sampled)] : null,
    isPending ? ['something is left to do'] : null,
  ];
  return parts.filter(Boolean).flatMap((part, at) => (at === 0 ? part : [' · ', ...part]));
}

/** One HAProxy. */
export class Haproxy {
  #title = el('h3');
  #facts = el('p', { class: 'facts' });
  #empty = el('p', { hidden: true });
  #backends = el('div', { class: 'backends' });
  #rows = new Map();
  #shown = [];
  #isKnown = false;
  #list;
  passes = new Passes();

  /** `id` is the element's, for links to it. */
  constructor(id) {
    this.id = id;
    this.element = el('section', { class: 'haproxy', id }, this.#title, this.#facts, this.passes.element, this.#empty, this.#backends);
    this.#list = new KeyedList(this.#backends, ({ key }) => this.#make(key), (_, { key, judged }) => this.#rows.get(key).draw(judged));
  }

  #make(key) {
    const row = new Row();
    this.#rows.set(key, row);
    return row.fold.element;
  }

  draw({ target, whose, backends, own }) {
    const state = target.is_ready ? 'in line with Nomad' : 'not in line with Nomad';
    const wrong = backends.filter((judged) => judged.level !== 'good').length;
    const about = wrong > 0 ? `; ${count(wrong, 'backend')} with a problem` : '';
    this.#title.replaceChildren(...mark(own), el('bdi', {}, `${whose}: ${state}${about}`));
    this.#facts.replaceChildren(...facts(target));
    this.#isKnown = target.haproxy !== null;
    this.#list.update(backends.map((judged) => ({ key: judged.backend.name, text: asText(judged), judged })));
    this.#shown = backends.map(({ backend }) => this.#rows.get(backend.name));
    const kept = new Set(this.#shown);
    for (const [key, row] of this.#rows) if (!kept.has(row)) this.#rows.delete(key);
    this.#shown.forEach((row) => row.fold.suggest(backends.length <= FEW));
  }

  /** Hides what the filter leaves out, and gives how many it shows, of how many. */
  filter(filter) {
    let matching = 0;
    for (const row of this.#shown) {
      const isMatching = row.matches(filter);
      matching += isMatching ? 1 : 0;
      if (row.fold.element.hidden === isMatching) row.fold.element.hidden = !isMatching;
    }
    this.#empty.hidden = matching > 0;
    const none = this.#isKnown ? 'It has no backend of this controller.' : 'Its backends are not known yet.';
    setText(this.#empty, this.#shown.length === 0 ? none : 'No backend matches the filter.');
    return [matching, this.#shown.length];
  }

  /** The line of the backend of a service, if it has one. */
  find(service) {
    return this.#shown.find((row) => row.isOf(service))?.fold;
  }
}
