// What the scripts of all panels begin with.

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

// Patches of a module, each of so many tokens: "3 × 16 tokens", or "2 × 16 + 5 tokens" where the last is short.
function sizesSaid(sizes) {
  const last = sizes.at(-1);
  const full = sizes.filter((size) => size === sizes[0]).length;
  if (full === sizes.length) return `${full} × ${plural(last, "token")}`;
  return `${full} × ${sizes[0]} + ${plural(last, "token")}`;
}

// Scroll to a part of the page that a press far from it has changed, unless it can be seen: on a phone buttons stand
// a screen and more away from what they make.
function bringIntoView(part, block) {
  const { top, bottom } = part.getBoundingClientRect();
  if (bottom > 0.25 * innerHeight && top < 0.5 * innerHeight) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  part.scrollIntoView({ block, behavior: still ? "auto" : "smooth" });
}

