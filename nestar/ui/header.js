// In a Space the page is a frame as tall as its content: nothing sticks to the window's foot, which is the frame's.
document.documentElement.classList.toggle("framed", window.parent !== window);

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
