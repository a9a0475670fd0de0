// The few ways in which this page makes elements. Text from outside only ever becomes a text node or the value of
// an attribute of this file's choosing: nothing here, and nothing that uses it, parses markup.

/** An element with attributes and children: nodes, or texts. `null` children and attributes are left out. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Changes a text only where it differs, so that a screen reader does not read it again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Changes an attribute only where it differs; `null` removes it. */
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/**
 * Keeps the children of an element in line with a list: what stays is the same node, so that focus, selection and
 * what a person opened survive. `item` has a `key`, and a `text` that changes when it must be drawn.
 */
export class KeyedList {
  #parent;
  #make;
  #draw;
  #rows = new Map();

  /** `make(item)` gives a new element, `draw(element, item)` fills it. */
  constructor(parent, make, draw) {
    [this.#parent, this.#make, this.#draw] = [parent, make, draw];
  }

  update(items) {
    const before = this.#rows;
    this.#rows = new Map();
    for (const item of items) {
      const row = before.get(item.key) ?? { element: this.#make(item), text: null };
      before.delete(item.key);
      if (row.text !== item.text) this.#draw(row.element, item);
      row.text = item.text;
      this.#rows.set(item.key, row);
    }
    for (const { element } of before.values()) element.remove();
    this.#order();
  }

  get(key) {
    return this.#rows.get(key)?.element;
  }

  #order() {
    let next = this.#parent.firstChild;
    for (const { element } of this.#rows.values()) {
      if (next && next !== element && next.nextSibling === element) {
        // It went down the list, and is moved alone instead of all that it stood before.
        this.#parent.append(next);
        next = element;
      }
      if (element === next) next = next.nextSibling;
      else this.#parent.insertBefore(element, next);
    }
  }
}

/** Runs a change of the document; what had the focus before has it after, also if it was moved. */
export function keepingFocus(change) {
  const focused = document.activeElement;
  change();
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}
