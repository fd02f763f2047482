
(() => {
  // Asks where the page came from whether there is anything new, and takes it in without a jump.
  let version = "";
  const status = () => document.querySelector(".status");

  async function renew() {
    const answer = await fetch("page", { cache: "no-store" });
    const told = new DOMParser().parseFromString(await answer.text(), "text/html");
    const before = document.querySelector("main"), after = told.querySelector("main");
    const folds = Array.from(before.querySelectorAll("details"));
    const were = new Map(folds.map((one) => [one.querySelector("summary").textContent, one.open]));
    for (const one of after.querySelectorAll("details")) {
      one.open = were.get(one.querySelector("summary").textContent) || one.open;
    }
    before.replaceWith(document.adoptNode(after));
    window.fedvlmReady(document);
  }
  async function ask() {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      const told = await answer.text();
      if (answer.ok && told !== version) {
        version = told;
        await renew();
      }
      if (told === "ended") return;
    } catch {
      if (status()) status().textContent = "The run has ended, or was stopped; nothing listens any more.";
      return;
    }
    setTimeout(ask, 1000);
  }
  ask();
})();
