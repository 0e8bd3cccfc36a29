// Elements. Whatever is put into the page goes through here, as text: there is no way to give HTML.

/**
 * Makes an element. A property that begins with `on` is an event's listener, `class` and attributes with a dash or that
 * the element has no property for are attributes, and the rest are its properties. Children are nodes and texts; those
 * that are null or false are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.includes("-") || !(name in element)) element.setAttribute(name, value);
    else element[name] = value;
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child);
  }
}

/** Puts children in the place of those that an element has. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** Sets a text, and touches nothing where it is there already: a selection stays. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Brings the children of an element in line with a list, one for each item by its key. Those that stay are updated and
 * not made anew, so that focus stays with them.
 */
export function keyed(element, items, key, create) {
  const known = element.keyedChildren ?? (element.keyedChildren = new Map());
  const wanted = new Set(items.map(key));
  for (const [id, child] of known) {
    if (wanted.has(id)) continue;
    child.element.remove();
    known.delete(id);
  }
  let place = null;
  for (const item of items) {
    const id = key(item);
    let child = known.get(id);
    if (!child) {
      child = create(item);
      known.set(id, child);
    }
    child.update(item);
    const next = place ? place.nextSibling : element.firstChild;
    if (next !== child.element) element.insertBefore(child.element, next);
    place = child.element;
  }
}

let ids = 0;

/** An id for an element that another names. */
export function freshId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}
