// Furo opens the menu and the contents of a narrow page with labels of checkboxes, which no keyboard reaches.
for (const label of document.querySelectorAll("label.nav-overlay-icon, label.toc-overlay-icon")) {
  const checkbox = document.getElementById(label.htmlFor);
  const button = document.createElement("button");
  button.type = "button";
  button.className = label.className;
  button.setAttribute("aria-label", checkbox.getAttribute("aria-label"));
  button.append(...label.childNodes);
  const tell = () => button.setAttribute("aria-expanded", checkbox.checked);
  button.addEventListener("click", () => checkbox.click());
  checkbox.addEventListener("change", tell);
  tell();
  label.replaceWith(button);
}
