// From `/api/v1/status` to what a person must know first: is all well, and if not, what is wrong with which thing.
// Pure: no document, no time.

import { count, serviceName, shown } from './words.js';

/** The worst first. */
const RANK = { error: 0, warning: 1, good: 2 };
const worst = (levels) => levels.reduce((one, other) => (RANK[other] < RANK[one] ? other : one), 'good');
const byRank = (one, other) => RANK[one.level] - RANK[other.level];

/** Whether HAProxy's check says that this server is down; `DOWN 1/2` is on its way up, but takes no traffic yet. */
export function isDown(server) {
  return server.state === 'ready' && /^DOWN/.test(server.check?.status ?? '');
}

/** Whether an instance sits in it. */
export const isSeated = (server) => server.registration !== null;

/** A backend with what is wrong with it; `notes` are those of its services. */
function judgeBackend(backend, notes) {
  const seated = backend.servers.filter(isSeated);
  const down = seated.filter(isDown);
  const wrongs = [];
  if (seated.length === 0 && backend.is_ours) {
    wrongs.push({ level: 'warning', text: 'no instance: a request to it gets 503, or its connection is refused' });
  }
  if (down.length > 0) {
    const names = down.slice(0, 3).map((server) => shown(server.name)).join(', ');
    const more = down.length > 3 ? `, and ${down.length - 3} more` : '';
    const text = `${down.length} of ${count(seated.length, 'instance')} down by HAProxy's check: ${names}${more}`;
    wrongs.push({ level: down.length === seated.length ? 'error' : 'warning', text });
  }
  const level = worst([...wrongs, ...notes].map((wrong) => wrong.level));
  return { backend, wrongs, notes, level };
}

/** What is wrong with a HAProxy as a whole. `whose` names it. */
function haproxyProblems(target, whose) {
  const { breaker, guard, last_pass: last } = target;
  const problems = [];
  const add = (level, kind, title, lines, more = {}) =>
    problems.push({ key: `${kind} ${target.name}`, level, title, lines, ...more });
  if (!target.is_ready) {
    add('error', 'ready', `${whose} is not in line with Nomad`, [shown(target.not_ready.replace(/^not ready: /, ''), 1000)]);
  }
  if (breaker && breaker.state !== 'closed') {
    const isOpen = breaker.state === 'open';
    const lines = [isOpen
      ? `After ${count(breaker.failures, 'failure')} in a row nothing but a probe is sent to it. `
        + 'If HAProxy runs, it goes on with the configuration that it has.'
      : 'A probe is asking it whether it answers again.'];
    const hint = isOpen ? 'Check that HAProxy and its Data Plane API run, and that the controller can reach them.' : null;
    add(isOpen ? 'error' : 'warning', 'breaker', `The circuit breaker of ${whose} is ${breaker.state}`, lines, {
      clause: `the circuit breaker of ${whose} is ${breaker.state}`,
      hint,
      times: isOpen ? [['Opened', breaker.changed], ['Next probe', breaker.next_probe]] : [],
    });
  }
  if (guard) {
    const lines = guard.services.map(({ service, instances, why }) =>
      `${service ? shown(serviceName(service)) : 'an unnamed service'}: ${count(instances, 'instance')}: ${shown(why, 1000)}`);
    add('error', 'guard', `The guard holds ${count(guard.instances, 'instance')} on ${whose}: ${shown(guard.reason, 1000)}`, lines, {
      clause: `the guard holds ${count(guard.instances, 'instance')} on ${whose}`,
      hint: 'They leave when Nomad reports that their allocations ended. If they are gone for good, remove them now (POST /api/v1/guard/release does the same) with',
      command: 'nomad-haproxy apply --allow-removals',
    });
  }
  if (target.is_ready && last?.outcome === 'failed') {
    const lines = [`stage ${last.stage}: ${shown(last.error ?? '', 1000)}`];
    add('warning', 'pass', `The last pass on ${whose} failed`, lines, { clause: `the last pass on ${whose} failed` });
  }
  return problems;
}

/** One HAProxy: its own problems, and its backends, the worst first. */
function judgeHaproxy(target, isOnly) {
  const whose = isOnly ? 'HAProxy' : shown(target.name);
  const notesOf = new Map();
  // What is only worth knowing is no problem.
  for (const { severity, service, code, text } of target.notes.filter((note) => note.severity !== 'info')) {
    const name = serviceName(service);
    notesOf.set(name, [...(notesOf.get(name) ?? []), { level: severity, code, text: shown(text, 1000) }]);
  }
  const backends = target.backends
    .map((backend) => judgeBackend(backend, backend.services.flatMap((name) => notesOf.get(name) ?? [])))
    .sort(byRank);
  const problems = haproxyProblems(target, whose);
  const own = worst(problems.map((problem) => problem.level));
  const level = worst([{ level: own }, ...backends, ...[...notesOf.values()].flat()].map((part) => part.level));
  return { target, whose, problems, notesOf, backends, own, level };
}

/** Adds a line to a problem that several HAProxys may have; the same on several is one line. */
function addLine(groups, { key, ...about }, haproxy, { level, text }) {
  const problem = groups.get(key) ?? { key, ...about, parts: new Map() };
  const part = problem.parts.get(text) ?? { level, text, where: [] };
  if (!part.where.includes(haproxy)) part.where.push(haproxy);
  problem.parts.set(text, part);
  groups.set(key, problem);
}

const aboutService = (name) => ({ key: `service ${name}`, service: name, title: shown(name) });

const aboutNamespace = (name) =>
  ({ key: `namespace ${name}`, title: `Namespace ${shown(name)}`, clause: `nothing of namespace ${shown(name)} is read` });

/** The problems of one HAProxy's services and namespaces. */
function addLines(groups, { target, notesOf, backends }) {
  const { name: haproxy, guard, namespaces } = target;
  for (const { namespace, text } of namespaces) {
    addLine(groups, aboutNamespace(namespace), haproxy, { level: 'error', text: shown(text, 1000) });
  }
  for (const [name, notes] of notesOf) {
    // The guard's own problem has these.
    const others = notes.filter(({ code }) => !guard || code !== 'guard-held');
    others.forEach((note) => addLine(groups, aboutService(name), haproxy, note));
  }
  for (const { backend, wrongs } of backends) {
    const about = aboutService(backend.services[0] ?? backend.name);
    wrongs.forEach(({ level, text }) => addLine(groups, about, haproxy, { level, text: `backend ${shown(backend.name)}: ${text}` }));
  }
}

/** How many HAProxys are all of them. */
const all = (number) => (number === 2 ? 'both' : `all ${number}`);

function sharedProblems(haproxys) {
  const groups = new Map();
  haproxys.forEach((one) => addLines(groups, one));
  const where = (names) => {
    if (haproxys.length === 1) return '';
    if (names.length === haproxys.length) return ` (on ${all(names.length)} HAProxys)`;
    return ` (on ${names.map((name) => shown(name)).join(', ')})`;
  };
  const routed = new Set(haproxys.flatMap(({ backends }) => backends.flatMap(({ backend }) => [backend.name, ...backend.services])));
  return [...groups.values()].map(({ parts, ...problem }) => {
    const sorted = [...parts.values()].sort(byRank);
    const lines = sorted.map((part) => `${part.level}: ${part.text}${where(part.where)}`);
    return { ...problem, level: sorted[0].level, lines, isRouted: routed.has(problem.service) };
  });
}

function catalogProblems({ nomad_up: isUp, error }) {
  if (!error && isUp !== false) return [];
  const [title, clause] = isUp === false
    ? ['Nomad does not answer', 'Nomad does not answer']
    : ['The catalog cannot be read', 'the catalog cannot be read'];
  const hint = 'HAProxy keeps what it has until the catalog can be read.';
  return [{ key: 'catalog', level: 'error', title, clause, lines: error ? [shown(error, 1000)] : [], hint }];
}

/** Nobody knows whether this controller leads. */
function leaderProblems({ error }) {
  if (!error) return [];
  const [title, clause] = ['It is not known who leads', 'it is not known who leads'];
  const hint = 'This controller writes nothing until Nomad says that it leads.';
  return [{ key: 'leader', level: 'error', title, clause, lines: [shown(error, 1000)], hint }];
}

/** Names, at most three of them. */
function listed(names) {
  return names.length > 3 ? `${names.slice(0, 3).join(', ')} and ${names.length - 3} more` : names.join(', ');
}

function inLine(haproxys) {
  const not = haproxys.filter(({ target }) => !target.is_ready);
  if (haproxys.length === 0) return ['error', 'No HAProxy is known yet'];
  if (not.length === 1) {
    // Without the times of `not_ready`, as a screen reader would read it every few seconds, and without the causes of
    // the cause, which the problem has.
    const [why] = (not[0].target.last_pass?.error ?? '').split(': ');
    return ['error', `${not[0].whose} is not in line with Nomad${why ? `: ${shown(why, 100)}` : ''}`];
  }
  if (not.length > 1) {
    const names = listed(not.map((one) => one.whose));
    return ['error', `${not.length} of ${haproxys.length} HAProxys are not in line with Nomad: ${names}`];
  }
  if (haproxys.length === 1) return ['good', 'HAProxy is in line with Nomad'];
  const number = all(haproxys.length);
  return ['good', `${number[0].toUpperCase()}${number.slice(1)} HAProxys are in line with Nomad`];
}

/** What is wrong beside that, of one level: `1 service has an error: web-137`. */
function alsoWrong(problems, level) {
  const services = problems.filter((problem) => problem.service).map((problem) => problem.title);
  const clauses = problems.filter((problem) => !problem.service).map((problem) => problem.clause);
  const parts = clauses.slice(0, 2);
  const has = services.length > 1 ? `have ${level}s` : { error: 'has an error', warning: 'has a warning' }[level];
  if (services.length > 0) parts.push(`${count(services.length, 'service')} ${has}: ${listed(services)}`);
  if (clauses.length > 2) parts.push(`there are ${count(clauses.length - 2, 'more problem')}`);
  return parts.join(', and ');
}

/** The sentence at the top. */
function verdict(haproxys, problems) {
  const [level, sentence] = inLine(haproxys);
  const others = problems.filter((problem) => !problem.key.startsWith('ready '));
  if (others.length === 0) return { level, text: `${sentence}.` };
  const worstLevel = others[0].level;
  const also = alsoWrong(others.filter((problem) => problem.level === worstLevel), worstLevel);
  const link = level === 'good' ? ', but ' : '. Also, ';
  return { level: worst([level, worstLevel]), text: `${sentence}${link}${also}.` };
}

/** Everything that the page shows first. */
export function judge(status) {
  const haproxys = status.haproxys.map((target) => judgeHaproxy(target, status.haproxys.length === 1)).sort(byRank);
  const common = [...catalogProblems(status.catalog), ...leaderProblems(status.leader)];
  const problems = [...common, ...haproxys.flatMap((one) => one.problems), ...sharedProblems(haproxys)].sort(byRank);
  return { haproxys, problems, verdict: verdict(haproxys, problems) };
}
