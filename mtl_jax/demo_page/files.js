// Photographs as a person hands them over: {path, file}; the path has the folders that they were given with.

// The files chosen in an input, which may then be chosen again.
export function chosen(input) {
  const files = [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
  input.value = "";
  return files;
}

// The files that were dropped, those within folders too.
export async function dropped(transfer) {
  const files = [...transfer.files]; // both are empty after the first `await`
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return files.map((file) => ({ path: file.name, file }));
  return (await Promise.all(entries.map(within))).flat();
}

async function within(entry) {
  const path = entry.fullPath.slice(1);
  if (entry.isFile) return new Promise((done, fail) => entry.file((file) => done([{ path, file }]), fail));
  const reader = entry.createReader(), found = [];
  for (;;) { // a reader gives some at a time
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return found;
    for (const inner of some) found.push(...(await within(inner)));
  }
}

// The class that a photograph's folder names, "" where it was given without one. It is the outermost folder; of
// my_classes/cat/x.jpg it is `cat`, if all photographs of my_classes lie in such folders.
export function classOf(path, files) {
  const [top, ...rest] = path.split("/");
  const beside = files.filter((each) => each.path.startsWith(`${top}/`));
  if (rest.length > 1 && beside.every((each) => each.path.split("/").length > 2)) return rest[0];
  return rest.length ? top : "";
}

// Whether a system hides a file, as it does .DS_Store.
export const isHidden = ({ path }) => path.split("/").some((part) => part.startsWith("."));
