// What a person opens and closes, which a refresh must not change; the rest follows the page's own choice. What is
// inside is drawn when it is open: a thousand closed backends cost a thousand lines.

import { el } from './dom.js';

export class Fold {
  #drawn = null;
  #text = null;
  #draw;
  #isChosen = false;

  constructor(attributes = {}) {
    this.summary = el('summary');
    this.body = el('div', { class: 'body' });
    this.element = el('details', attributes, this.summary, this.body);
    this.summary.addEventListener('click', () => (this.#isChosen = true));
    this.element.addEventListener('toggle', () => this.#fill());
  }

  /** Opens or closes it, unless a person has chosen. */
  suggest(isOpen) {
    if (!this.#isChosen && this.element.open !== isOpen) this.element.open = isOpen;
  }

  /** Opens it for a person. */
  open() {
    [this.#isChosen, this.element.open] = [true, true];
    this.#fill();
  }

  /** What is inside: `draw()` gives its nodes, and `text` says whether they are still the same. */
  set(text, draw) {
    [this.#text, this.#draw] = [text, draw];
    this.#fill();
  }

  #fill() {
    if (!this.element.open || this.#drawn === this.#text) return;
    this.#drawn = this.#text;
    this.body.replaceChildren(...this.#draw());
  }
}
