// The page: it shows what /state says, and asks the server for every change. Names are set as text, never as HTML.

import { chosen, classOf, dropped, isHidden } from "/files.js";
import { ask, byId, counted, fresh, percent, show, sync } from "/tools.js";

const UNSORTED = "0", NEW = "new", CARRIED = "text/x-photograph";
let state;

function say(text) {
  byId("status").textContent = text;
  clearTimeout(say.timer);
  if (!text.endsWith("…")) say.timer = setTimeout(() => say(""), 5000);
}

function complain(lines) {
  const list = byId("problems").querySelector("ul");
  const unseen = new Set(lines);
  for (const { textContent } of list.children) unseen.delete(textContent);
  list.append(...[...unseen].map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  byId("problems").hidden = false;
}

byId("problems").querySelector("button").onclick = () => {
  byId("problems").querySelector("ul").replaceChildren();
  byId("problems").hidden = true;
};

// Tasks run one after the other, and the page is drawn anew after each.
let last = Promise.resolve();
function enqueue(task) {
  last = last.then(async () => {
    const focused = document.activeElement;
    try {
      await task();
    } catch (error) {
      complain([error.message]);
    }
    try {
      draw(await ask("GET", "/state"));
    } catch (error) {
      complain([error.message]);
    }
    if (!focused.isConnected || focused.hidden) byId(focused.dataset.next)?.focus();
    document.body.dataset.done = Number(document.body.dataset.done ?? 0) + 1; // for tests
  });
}

function draw(content) {
  state = content;
  byId("network").textContent = state.network;
  byId("new-name").maxLength = state.limits.name;
  byId("classes-hint").textContent = state.classes.length
    ? "Or drop folders here: each becomes a class of its name."
    : "No classes yet. Name the first one, or drop folders here: each becomes a class of its name.";
  sync(byId("classes"), state.classes, makeClass, drawClass);
  sync(byId("answers"), state.unsorted, makeAnswer, drawAnswer);
  const filled = state.classes.filter((each) => each.photographs.length).length;
  byId("hint").textContent = state.problem
    ? `No answers: ${state.problem}`
    : !state.unsorted.length
      ? "Drop photographs here whose class you want to know."
      : filled < 2
        ? `Answers need two classes with photographs: ${filled ? "there is one" : "there is none"}.`
        : state.is_calibrated
          ? ""
          : "One photograph of each class: only the order of the probabilities means anything.";
  byId("summary").textContent = summary(state.unsorted);
  byId("remove-all").hidden = !state.unsorted.length;
}

function summary(photographs) {
  const counts = new Map();
  for (const { answer } of photographs) if (answer) counts.set(answer.class, (counts.get(answer.class) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} ${name}`).join(", ");
}

function makeClass({ id }) {
  const card = fresh("class-template");
  card.dataset.place = id;
  const [name, remove] = [card.querySelector(".name"), card.querySelector(".remove")];
  name.maxLength = state.limits.name;
  name.onchange = () =>
    enqueue(async () => {
      try {
        await ask("POST", `/classes/${id}`, { name: name.value });
      } finally {
        name.value = ""; // what the server says takes its place
      }
    });
  remove.dataset.next = "new-name";
  remove.onclick = () => {
    const count = state.classes.find((each) => each.id === id).photographs.length;
    if (count && !confirm(`Remove ${name.value} and its ${counted(count, "photograph")}?`)) return;
    enqueue(() => ask("DELETE", `/classes/${id}`));
  };
  const input = card.querySelector("input[type=file]");
  input.id = `add-${id}`;
  input.onchange = () => add(chosen(input), String(id));
  return card;
}

function drawClass(card, { id, name, photographs }) {
  const field = card.querySelector(".name");
  if (document.activeElement !== field || !field.value) field.value = name;
  card.setAttribute("aria-label", `Class ${name}`);
  card.querySelector(".remove").setAttribute("aria-label", `Remove class ${name}`);
  card.querySelector("input[type=file]").setAttribute("aria-label", `Add photographs to ${name}`);
  card.querySelector(".hint").hidden = photographs.length > 0;
  sync(card.querySelector(".photographs"), photographs, makePhotograph, (node, photograph) => {
    show(node.querySelector("img"), photograph.id, photograph.name);
    node.querySelector("button").dataset.next = `add-${id}`;
  });
}

function makePhotograph({ id, name }) {
  const node = fresh("photograph-template"), button = node.querySelector("button");
  button.setAttribute("aria-label", `Remove ${name}`);
  button.onclick = () => enqueue(() => ask("DELETE", `/photographs/${id}`));
  return node;
}

function makeAnswer({ id, name }) {
  const card = fresh("answer-template"), move = card.querySelector(".move"), remove = card.querySelector(".remove");
  card.querySelector(".file").textContent = name;
  move.setAttribute("aria-label", `Move ${name} to a class`);
  remove.setAttribute("aria-label", `Remove ${name}`);
  move.dataset.next = remove.dataset.next = "add-0";
  move.onchange = () => enqueue(() => ask("POST", `/photographs/${id}`, { class: move.value }));
  remove.onclick = () => enqueue(() => ask("DELETE", `/photographs/${id}`));
  card.ondragstart = (event) => event.dataTransfer.setData(CARRIED, id);
  return card;
}

function drawAnswer(card, { id, name, answer }) {
  show(card.querySelector(".large"), id, name);
  const choices = state.classes.map((each) => new Option(each.name, each.id));
  card.querySelector(".move").replaceChildren(new Option("Move to class…", UNSORTED), ...choices);
  card.querySelector(".move").hidden = !choices.length;
  card.querySelector(".said").textContent = answer?.class ?? "";
  card.querySelector(".likest").hidden = !answer;
  card.querySelector(".note").textContent = answer?.is_example
    ? "It is among the examples too, so this is no prediction."
    : "";
  card.querySelector(".bars").replaceChildren(...(answer?.probabilities ?? []).map(([label, value]) => {
    const [row, text, bar, number] = ["li", "span", "span", "span"].map((tag) => document.createElement(tag));
    text.textContent = text.title = label;
    bar.className = "bar";
    bar.append(document.createElement("i"));
    bar.firstChild.style.width = `${100 * value}%`;
    number.textContent = percent(value);
    row.append(text, bar, number);
    return row;
  }));
  sync(card.querySelector(".nearest"), answer?.nearest ?? [], () => {
    const node = document.createElement("li");
    node.append(new Image(), document.createElement("span"));
    return node;
  }, (node, near) => {
    show(node.firstChild, near.id, near.name);
    node.lastChild.textContent = near.class;
  });
}

// Adds files; `placeOf` says where, given the path of one.
async function upload(files, placeOf) {
  const left = [];
  for (const [i, { path, file }] of files.entries()) {
    say(`Reading ${i + 1} of ${counted(files.length, "photograph")}…`);
    if (file.size > state.max_bytes) {
      left.push(`${file.name}: more than ${state.max_bytes / 2 ** 20} MB`);
      continue;
    }
    try {
      const place = await placeOf(path);
      await ask("POST", "/photographs", { class: place, name: file.name }, file);
    } catch (error) {
      left.push(error.message);
    }
  }
  if (left.length) complain(left);
  say(`${counted(files.length - left.length, "photograph")} added${left.length ? `, ${left.length} left out` : ""}`);
}

function add(given, place) {
  const files = given.filter((each) => !isHidden(each));
  if (place !== NEW) return enqueue(() => upload(files, () => place));
  const made = new Map(), typed = byId("new-name").value;
  byId("new-name").value = "";
  enqueue(() => upload(files, async (path) => {
    const name = classOf(path, files) || typed || "new class";
    const known = state.classes.find((each) => each.name === name);
    if (!made.has(name)) made.set(name, known?.id ?? (await ask("POST", "/classes", { name })).id);
    return made.get(name);
  }));
}

async function drop(transfer, place) {
  const carried = transfer.getData(CARRIED);
  if (carried) {
    if (place === NEW) return say("Make the class first, then drop the photograph on it.");
    if (place !== UNSORTED) enqueue(() => ask("POST", `/photographs/${carried}`, { class: place }));
    return;
  }
  const files = await dropped(transfer).catch(() => null);
  if (!files) complain(["What was dropped cannot be read."]);
  else if (!files.length) complain(["That is no file. Save the photograph first, then drop its file here."]);
  else add(files, place);
}

let over = null;
function mark(zone) {
  over?.classList.remove("over");
  over = zone;
  over?.classList.add("over");
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  mark(event.target.closest?.(".drop"));
});
document.addEventListener("dragleave", (event) => event.relatedTarget || mark(null));
document.addEventListener("dragend", () => mark(null));
document.addEventListener("drop", (event) => {
  event.preventDefault(); // or the browser would open the file in place of the page
  const zone = event.target.closest?.(".drop");
  mark(null);
  if (zone) drop(event.dataTransfer, zone.dataset.place);
  else say("Drop photographs onto a class, or onto Unsorted.");
});

byId("new-class").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = byId("new-name").value;
  enqueue(async () => {
    await ask("POST", "/classes", { name });
    byId("new-name").value = "";
  });
});
byId("new-folder").onchange = (event) => add(chosen(event.target), NEW);
byId("remove-all").onclick = () => {
  if (!confirm(`Remove ${counted(state.unsorted.length, "unsorted photograph")}?`)) return;
  enqueue(() => Promise.all(state.unsorted.map(({ id }) => ask("DELETE", `/photographs/${id}`))));
};
byId("add-0").onchange = (event) => add(chosen(event.target), UNSORTED);
enqueue(async () => {
  const { left_out: lines } = await ask("GET", "/state");
  if (lines.length) complain(lines.map((line) => `left out: ${line}`));
});
