// How tokens and numbers are written: only ever as text, never as markup.

export function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// How strongly steering pushed a token, from -4 (down) to 4 (up); `shift` = α·Δ in nats.
export function push(shift) {
  const size = Math.abs(shift);
  const level = [0.1, 0.5, 1.5, 3].filter((bound) => size >= bound).length;
  return shift < 0 ? -level : level;
}

// A token by itself, its white space visible.
export function named(token) {
  if (token === "") return "∅";
  return token.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

export function signed(number) {
  return `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(2)}`;
}

export function share(p) {
  if (p >= 0.9995) return "100 %";
  if (p >= 0.0005) return `${(100 * p).toFixed(1)} %`;
  return p > 0 ? "< 0.1 %" : "0 %";
}
