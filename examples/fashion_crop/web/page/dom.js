// Small things that all parts of the page use.

export const $ = (id) => document.getElementById(id);

export function element(name, properties) {
  return Object.assign(document.createElement(name), properties);
}

// Returns a copy of what a <template> holds.
export function copyOf(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

export function announce(text) {
  if ($("status").textContent !== text) $("status").textContent = text;  // else screen readers repeat it
}

export function showError(message, ...actions) {
  const note = element("div", {className: "note bad"});
  note.append(element("p", {textContent: message}));
  note.append(...actions.map(([name, act]) => element("button", {className: "button", textContent: name, onclick: act})));
  $("alert").replaceChildren(note);
}

export function hideError() {
  $("alert").replaceChildren();
}

export const plural = (count, name) => `${count.toLocaleString("en")} ${name}${count === 1 ? "" : "s"}`;

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);  // when it is saved; the browser reports no end
}
