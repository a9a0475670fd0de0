// The last passes of a HAProxy that did something or failed, with what they wrote.

import { KeyedList, el, setAttribute } from './dom.js';
import { Fold } from './folds.js';
import { mark } from './head.js';
import { ago } from './times.js';
import { count, shown, took } from './words.js';

/** A diff is shown up to so many lines at first: a browser lays out more of them slowly. */
const LINES = 2000;

/** A line of a diff. `ins` and `del` say it to those who do not see the colours, as the signs do. */
function diffLine(line) {
  const text = `${shown(line, 2000)}\n`;
  if (/^(\+\+\+|---|@@)/.test(line)) return el('b', {}, text);
  if (line.startsWith('+')) return el('ins', {}, text);
  return line.startsWith('-') ? el('del', {}, text) : text;
}

function drawDiff(diff) {
  const lines = diff.replace(/\n$/, '').split('\n');
  const more = lines.length > LINES ? [`… ${lines.length - LINES} more lines: see /api/v1/passes`] : [];
  return el('pre', { class: 'diff' }, ...lines.slice(0, LINES).map(diffLine), ...more);
}

function drawWritten({ live, backends, blocked, diff }) {
  const how = live ? 'without a reload' : 'with a reload';
  const names = backends.slice(0, 20).map(({ name, action }) => `${shown(name)} (${action})`).join(', ');
  const more = backends.length > 20 ? ` and ${backends.length - 20} more` : '';
  return [
    el('p', {}, `Written ${how}: ${names || 'no backend'}${more}.`),
    blocked ? el('p', {}, shown(blocked, 1000)) : null,
    diff ? drawDiff(diff) : null,
  ].filter(Boolean);
}

function drawPass(pass) {
  const reloads = pass.failed_reloads > 0 ? [`${count(pass.failed_reloads, 'failed reload')}`] : [];
  const facts = [`${count(pass.run_time_changes, 'run-time change')} without a write`, ...reloads,
    `configuration version ${pass.configuration_version}`, `catalog index ${pass.index}`];
  return [
    pass.error ? el('p', {}, `Stage ${pass.stage}: ${shown(pass.error, 2000)}`) : null,
    el('p', {}, `${facts.join(', ')}.`),
    ...(pass.written ?? []).flatMap(drawWritten),
  ].filter(Boolean);
}

function drawSummary(fold, pass) {
  const level = pass.outcome === 'failed' ? 'error' : 'good';
  const reloads = pass.reloads > 0 ? `, ${count(pass.reloads, 'reload')}` : ', no reload';
  setAttribute(fold.element, 'data-level', level);
  fold.summary.replaceChildren(...mark(level), el('b', {}, pass.outcome), ` (${pass.reason}) `, ago(pass.ended),
    `, took ${took(pass.took_ms)}${reloads}`);
  fold.set(pass.ended, () => drawPass(pass));
}

/** The passes as one line that opens to a list of lines that open. */
export class Passes {
  #fold = new Fold({ class: 'passes' });
  #list = el('div');
  #folds = new Map();
  #keyed = new KeyedList(this.#list, ({ key }) => this.#make(key), (_, { key, pass }) => drawSummary(this.#folds.get(key), pass));

  constructor() {
    this.element = this.#fold.element;
    this.#fold.summary.append('Last passes');
    this.#fold.set('', () => [this.#list]);
  }

  #make(key) {
    this.#folds.set(key, new Fold({ class: 'pass' }));
    return this.#folds.get(key).element;
  }

  update(passes) {
    const [newest] = passes;
    const number = `: ${count(passes.length, 'pass', 'passes')} that did something or failed`;
    const about = newest ? [number, `; the newest ${newest.outcome} `, ago(newest.ended)] : [': none yet'];
    this.#fold.summary.replaceChildren('Last passes', ...about);
    this.#keyed.update(passes.map((pass) => ({ key: pass.ended, text: pass.ended, pass })));
    const kept = new Set(passes.map((pass) => pass.ended));
    for (const key of this.#folds.keys()) if (!kept.has(key)) this.#folds.delete(key);
  }
}
