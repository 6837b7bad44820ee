"use strict";
// What base and model would have said at a token: shown while it is pointed at, tapped, or chosen
// with the arrow keys. Everything is put in as text.
(() => {
  const detail = document.getElementById("detail");
  let chosen = null;

  const make = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const percent = (share) => `${(100 * share).toPrecision(3)}%`;

  const guesses = (title, share, found) => {
    const part = make("div");
    part.append(make("p", title, "who"), make("p", `gave it ${percent(share)}`, "aside"));
    const list = make("ol");
    for (const [text, p] of found) {
      const item = make("li");
      const bar = make("span", undefined, "bar");
      const inside = make("span");
      inside.style.width = `${Math.min(100, Math.max(0, 100 * p))}%`;
      bar.append(inside);
      item.append(make("code", text), make("span", percent(p), "n"), bar);
      list.append(item);
    }
    part.append(list);
    return part;
  };

  const show = (token) => {
    if (chosen) chosen.classList.remove("chosen");
    chosen = token;
    detail.hidden = !token;
    if (!token) return;
    token.classList.add("chosen");
    const text = token.parentElement;
    text.details ??= JSON.parse(text.nextElementSibling.textContent);
    const index = [...text.children].indexOf(token) - 1; // the first is the text before
    const [kl, base, model, baseSays, says] = text.details[index];
    const head = make("p");
    head.append(make("code", token.textContent), make("span", ` KL ${kl} nats`, "aside"));
    const both = make("div", undefined, "both");
    both.append(guesses("Base", base, baseSays), guesses("Model", model, says));
    detail.replaceChildren(head, both);
  };

  const isToken = (node) => /^k\d/.test(node.className) && node.parentElement.className === "text";

  for (const text of document.querySelectorAll(".text")) {
    text.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse" && isToken(event.target)) show(event.target);
    });
    text.addEventListener("click", (event) => {
      if (isToken(event.target)) show(event.target);
    });
    text.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const inside = chosen && chosen.parentElement === text;
      const next = inside
        ? step > 0 ? chosen.nextElementSibling : chosen.previousElementSibling
        : text.children[1];
      if (next && isToken(next)) {
        show(next);
        next.scrollIntoView({ block: "nearest" });
      }
    });
    text.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") show(null);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(null);
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".text, #detail")) show(null);
  });
})();
