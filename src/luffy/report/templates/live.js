/* Served while a run trains: ask for the version of the page now and then, and load it again when there is another. */
(() => {
  if (!values.live) return;
  const box = byId("live-refresh");
  const note = byId("live-note");
  box.checked = sessionStorage.getItem("refresh") !== "off";
  box.addEventListener("change", () => sessionStorage.setItem("refresh", box.checked ? "on" : "off"));
  async function ask() {
    try {
      const answer = await (await fetch("version", { cache: "no-store" })).json();
      if (answer.version !== values.live) {
        if (box.checked) return location.reload();
        note.textContent = "There is news; switch on the refresh to see it.";
      } else note.textContent = `Looked at ${new Date().toLocaleTimeString()}.`;
    } catch {
      note.textContent = "The server does not answer any more.";
    }
  }
  ask();
  setInterval(ask, 5000);
})();
