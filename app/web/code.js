import { choice, copy, h, iconButton } from "./dom.js";
import { curl, javascript, python } from "./snippets.js";

const WRITERS = { curl, python, javascript };

/** The drawer `</>`: the current request as curl, Python and JavaScript, ready to copy. */
export class Code {
  constructor(client, button, drawer) {
    Object.assign(this, { client, button, drawer });
    this.language = "curl";
    this.request = null;
    this.text = h("code", {});
    button.addEventListener("click", () => this.toggle());
    addEventListener("keydown", (event) => event.key === "Escape" && !drawer.hidden && this.toggle());
    drawer.append(
      h("div", { class: "row" },
        choice("Language", [["curl", "curl"], ["python", "Python"], ["javascript", "JavaScript"]], "curl", (language) => {
          this.language = language;
          this.#render();
        }),
        h("button", { class: "chip copy", onclick: (event) => copy(this.text.textContent, event.currentTarget) }, "Copy"),
        iconButton("close", "Close", () => this.toggle())),
      h("pre", { tabindex: "0", "aria-label": "Code" }, this.text));
  }

  toggle() {
    this.drawer.hidden = !this.drawer.hidden;
    document.body.classList.toggle("with-code", !this.drawer.hidden);
    this.button.setAttribute("aria-expanded", String(!this.drawer.hidden));
    this.#render();
    (this.drawer.hidden ? this.button : this.drawer.querySelector('[aria-pressed="true"]')).focus();
  }

  /** Shows a request (see `snippets.js`), or that there is none yet. */
  show(request) {
    this.request = request;
    this.#render();
  }

  #render() {
    if (this.drawer.hidden) return;
    this.text.textContent = this.request ? WRITERS[this.language](this.request, this.client) : "Nothing has been asked here yet: the code of the next request comes here.";
  }
}
