// Numbers, times and foreign texts as people read them. Pure.

/** `1 service`, `3 services`. */
export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

// Controls, and what reorders, hides or breaks a line: a name that has them would look like another name.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb]/g;
const LONGEST = 160;

/** A text from outside: what cannot be seen is written as `\u202e`, and a long text is cut. */
export function shown(text, longest = LONGEST) {
  const string = String(text);
  const cut = string.length > longest ? `${string.slice(0, longest)}…` : string;
  return cut.replace(UNSEEN, (unseen) => `\\u${unseen.codePointAt(0).toString(16).padStart(4, '0')}`);
}

/** A service of a note: its name, with the namespace outside of `default`. */
export function serviceName({ namespace, name }) {
  return namespace === 'default' ? name : `${namespace}/${name}`;
}

const UNITS = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];

/** Seconds as `12 s`, `3 min`, `5 h`, `2 d`. */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [size, unit] = UNITS.find(([size]) => whole >= size) ?? UNITS[3];
  return `${Math.floor(whole / size)} ${unit}`;
}

/** Milliseconds of a pass. */
export function took(milliseconds) {
  return milliseconds < 1000 ? `${milliseconds} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** The time of day, with the date if it is not today's. */
export function clock(milliseconds, now = Date.now()) {
  const [time, today] = [new Date(milliseconds), new Date(now)];
  const hours = time.toLocaleTimeString([], { hour12: false });
  return time.toDateString() === today.toDateString() ? hours : `${time.toLocaleDateString()} ${hours}`;
}
