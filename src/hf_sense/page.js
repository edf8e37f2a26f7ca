// Tokens are chosen with mouse or keyboard; marks of a plane say their context. Works on a page from a server and on a file.
(() => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

  function choose(button) {
    const key = button.dataset.key;
    document.querySelectorAll(".hs-token[aria-pressed]").forEach((other) => {
      other.setAttribute("aria-pressed", String(other === button));
    });
    const panel = document.getElementById("hs-panel-" + key);
    if (panel) {
      document.querySelectorAll(".hs-panel[data-of]").forEach((other) => (other.hidden = other !== panel));
      return;
    }
    const field = document.querySelector("#hs-choice textarea, #hs-choice input");
    if (!field) return;
    // The framework looks at the property's own setter, and sees no change if the value is the same.
    const kind = field.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(field, key);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function move(from, others, event) {
    const at = others.indexOf(from);
    let to = null;
    if (event.key in step) to = others[at + step[event.key]];
    if (event.key === "Home") to = others[0];
    if (event.key === "End") to = others[others.length - 1];
    if (!to) return;
    event.preventDefault();
    if (from.hasAttribute("tabindex")) {
      from.setAttribute("tabindex", "-1");
      to.setAttribute("tabindex", "0");
    }
    to.focus();
  }

  function tell(event) {
    const mark = event.target.closest && event.target.closest("[data-tip]");
    if (!mark) return;
    const tip = mark.closest("figure").querySelector(".hs-tip");
    if (tip) tip.textContent = mark.dataset.tip;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("button.hs-token");
    if (button) choose(button);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !event.target.closest) return;
    const token = event.target.closest("button.hs-token");
    if (token) move(token, [...token.closest(".hs-text").querySelectorAll("button.hs-token")], event);
    const mark = event.target.closest(".hs-mark");
    if (mark) move(mark, [...mark.closest("svg").querySelectorAll(".hs-mark")], event);
  });
  document.addEventListener("mouseover", tell);
  document.addEventListener("focusin", tell);
})();
