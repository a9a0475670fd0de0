// The catalog file of the controller under test.

import { readFileSync, renameSync, writeFileSync } from 'node:fs';

import { options } from './browser.mjs';

/** Changes it in one step. */
export function changeCatalog(change) {
  const catalog = JSON.parse(readFileSync(options.catalog, 'utf8'));
  change(catalog);
  catalog.Index += 1;
  writeFileSync(`${options.catalog}.new`, JSON.stringify(catalog));
  renameSync(`${options.catalog}.new`, options.catalog);
}
