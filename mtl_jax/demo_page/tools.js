// What app.js is written with: requests, elements, words.

export const byId = (id) => document.getElementById(id);
export const fresh = (template) => byId(template).content.firstElementChild.cloneNode(true);
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
export const percent = (value) => (value >= 0.995 && value < 1 ? "> 99 %" : `${Math.round(100 * value)} %`);

// The server's answer to a request. Throws an Error that says what is wrong.
export async function ask(method, path, fields = {}, body = undefined) {
  let response, content;
  try {
    response = await fetch(`${path}?${new URLSearchParams(fields)}`, { method, body });
    content = await response.json();
  } catch {
    throw new Error("The program behind this page does not answer. Is it still running in its terminal?");
  }
  if (!response.ok) throw new Error(content.error);
  return content;
}

// Makes the children of `parent` those of `items`. Nodes of known ids stay, and so do the focus and what is typed.
export function sync(parent, items, make, update) {
  const ids = new Set(items.map((item) => String(item.id)));
  for (const node of [...parent.children]) if (!ids.has(node.dataset.id)) node.remove();
  const known = new Map([...parent.children].map((node) => [node.dataset.id, node]));
  items.forEach((item, i) => {
    const node = known.get(String(item.id)) ?? make(item);
    node.dataset.id = item.id;
    update(node, item);
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null);
  });
}

// Shows a photograph; one that is shown already is not loaded again.
export function show(img, id, name) {
  if (img.dataset.shown === String(id)) return;
  img.dataset.shown = id;
  Object.assign(img, { src: `/thumbnails/${id}`, alt: name, title: name });
}
