"use strict";
/* What the other parts of the script share. Texts that a model wrote go into text nodes only, never into markup. */
const values = JSON.parse(document.getElementById("values").textContent);
const byId = (id) => document.getElementById(id);
const methodTitle = (name) => values.methods.find((method) => method.name === name)?.title ?? name;
const percent = (share) => `${(100 * share).toFixed(share > 0.0995 || share === 0 ? 0 : share > 0.00995 ? 1 : 2)} %`;

function element(name, className, text, attributes = {}) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

function button(text, onClick, attributes = {}) {
  const made = element("button", "", text, { type: "button", ...attributes });
  made.addEventListener("click", onClick);
  return made;
}

const option = (value, label) => Object.assign(element("option", "", label), { value });

function press(buttons, chosen) {
  for (const one of buttons) one.setAttribute("aria-pressed", String(one === chosen));
}

function download(name, content) {
  const url = URL.createObjectURL(content);
  Object.assign(element("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
