// The table of nestings lies over what is below: it goes as menus do.
const table = element.querySelector(".nestings");
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !table.open) return;
  table.open = false;
  table.querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  if (!table.contains(event.target)) table.open = false;
});
