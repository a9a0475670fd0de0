// Times of the controller, seen from its own clock: the one of this machine may differ.

import { el, setAttribute, setText } from './dom.js';
import { clock, duration } from './words.js';

/** The controller's clock less ours, in milliseconds. */
let ahead = 0;

/** Reads the controller's clock from the `Date` of an answer; it counts in seconds. */
export function setClock(date) {
  const theirs = Date.parse(date ?? '');
  if (!Number.isNaN(theirs) && Math.abs(theirs - Date.now() - ahead) > 2000) ahead = theirs - Date.now();
}

function relative(time) {
  const seconds = (Date.now() + ahead - Date.parse(time)) / 1000;
  if (Math.abs(seconds) < 1) return 'now';
  return seconds < 0 ? `in ${duration(-seconds)}` : `${duration(seconds)} ago`;
}

/** `12 s ago`, kept true by refreshTimes. */
export function ago(time) {
  return el('time', { datetime: time, title: clock(Date.parse(time)) }, relative(time));
}

/** Brings every time of the page up to now. */
export function refreshTimes() {
  for (const element of document.querySelectorAll('time')) {
    setText(element, relative(element.dateTime));
    setAttribute(element, 'title', clock(Date.parse(element.dateTime)));
  }
}
